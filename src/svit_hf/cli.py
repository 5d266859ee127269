# SPDX-License-Identifier: Apache-2.0
"""The command line: `svit-hf COMMAND`.

A command is a typed dataclass with a method `run() -> int`; its fields are the arguments, its docstring is the help.
One that has to read its command line itself has a class method `parse(arguments, program)`.
To add one, write it in the folder it belongs to and name it in `COMMANDS`.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module, reload
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol

from svit_hf.errors import SViTError, nearest
from svit_hf.memory_allocator import keep_freed_memory


PROGRAM = "svit-hf"
SHELLS = ("bash", "zsh", "tcsh")


class Runnable(Protocol):
    """Interface of the dataclass of a command."""

    def run(self) -> int:
        """Do the work and return the exit status."""


class Command(NamedTuple):
    """Entry of the table of commands; nothing is imported until one runs.

    Attributes:
        module: Where its dataclass is.
        dataclass: Name of the dataclass.
        summary: What it does, in a line.
    """

    module: str
    dataclass: str
    summary: str


COMMANDS = {
    "quickstart": Command(
        "svit_hf.quickstart.command", "QuickstartCommand", "Train a tiny SViT here and now, offline."
    ),
    "train": Command(
        "svit_hf.recipes.command", "TrainCommand", "Train a recipe, or continue to, on any number of devices."
    ),
    "evaluate": Command("svit_hf.tasks.command", "EvaluateCommand", "Evaluate a model on annotated images."),
    "predict": Command("svit_hf.tasks.command", "PredictCommand", "Predict what is in images, to files."),
    "data": Command("svit_hf.tasks.data_command", "DataCommand", "Look at images before training, or write shards."),
    "push": Command("svit_hf.hub.command", "PushCommand", "Publish a model on the Hub in one verified commit."),
    "convert": Command("svit_hf.convert.command", "ConvertCommand", "Make a Transformers folder of an official .pth."),
    "export": Command("svit_hf.export.command", "ExportCommand", "Make an ONNX or torch.export program of a model."),
    "benchmark": Command("svit_hf.benchmark.command", "BenchmarkCommand", "Find the fastest form of a model, here."),
    "visualize": Command("svit_hf.visualization.command", "VisualizeCommand", "Draw what a model sees in pictures."),
    "demo": Command("svit_hf.demo.command", "DemoCommand", "Show a model, or compare two, in the browser."),
    "ablate": Command("svit_hf.ablation.command", "AblateCommand", "Train variants of a recipe, and compare them."),
    "samplers": Command("svit_hf.samplers.command", "SamplersCommand", "Compare super-token samplers on pictures."),
    "doctor": Command("svit_hf.doctor", "DoctorCommand", "Check this installation, and a model."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Command and arguments; those of the process by default.

    Returns:
        The exit status: what the command says, which is 0 if all went well; that of the error (`svit_hf.errors`) for
        what the user can do something about, mostly 2; 130 when interrupted.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    name, arguments = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help"):
        print(_overview())  # noqa: T201 - a program's result
        return 0 if argv else 2
    if name == "--version":
        print(f"{PROGRAM} {version('svit-hf')}")  # noqa: T201 - a program's result
        return 0
    try:
        if name == "--completion":
            return _print_completion(arguments)
        kind: Any = _find(name)
        # after the name is known to be right: 0.1 s
        import tyro

        from svit_hf.option_fields import ARGUMENTS

        program = f"{PROGRAM} {name}"
        # the defaults of some arguments depend on others
        parse = getattr(kind, "parse", None)
        if parse:
            command = parse(arguments, program)
        else:
            command = tyro.cli(kind, args=arguments, prog=program, registry=ARGUMENTS)
        keep_freed_memory()
        with _ending_on_sigterm():
            return command.run()
    except SViTError as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return error.exit_code
    except (ImportError, RuntimeError) as error:
        # a torchvision that does not belong to the installed torch makes Transformers raise either
        if isinstance(error, ImportError) or "torchvision" in str(error):
            error.add_note(f"`{PROGRAM} doctor` tells what is wrong with an installation.")
        raise
    except KeyboardInterrupt:
        sys.stderr.write(f"{PROGRAM}: interrupted\n")
        return 130


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end a command as an error does: nothing that is half written stays."""
    # Python handles signals there alone
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _find(name: str) -> type[Runnable]:
    if name not in COMMANDS:
        raise SViTError(f"there is no command {name!r}. {nearest(name, COMMANDS)}Commands are {', '.join(COMMANDS)}.")
    # which finds out itself whether that succeeds
    if name != "doctor":
        import_package()
    dataclass: type[Runnable] = getattr(import_module(COMMANDS[name].module), COMMANDS[name].dataclass)
    return dataclass


def import_package() -> None:
    """Execute `svit_hf/__init__.py`, if `svit_hf_program` has put that off; keep Transformers' bars out of files."""
    package = sys.modules["svit_hf"]
    if not hasattr(package, "__version__"):
        reload(package)
    if not sys.stderr.isatty():
        # not before the package, which first sets a broken torchvision aside
        from transformers.utils import logging

        logging.disable_progress_bar()


def _print_completion(arguments: Sequence[str]) -> int:
    """Print what makes a shell complete commands, their options, and the values of these."""
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise SViTError(f"`--completion` is {' '.join(arguments)!r}; allowed are {', '.join(SHELLS)}.")
    import tyro

    from svit_hf.option_fields import ARGUMENTS

    # tyro ends the process once it has printed
    with contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(
            {name: _find(name) for name in COMMANDS},
            prog=PROGRAM,
            args=["--tyro-print-completion", *arguments],
            registry=ARGUMENTS,
        )
    return 0


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return f"""usage: {PROGRAM} COMMAND [ARGUMENTS]

SViT, the Vision Transformer with Super Token Sampling, for Hugging Face Transformers.

commands:
{commands}

{PROGRAM} COMMAND --help lists the arguments of a command; {PROGRAM} --version prints the version;
{PROGRAM} --completion {{{",".join(SHELLS)}}} prints what makes a shell complete commands and options."""
