# SPDX-License-Identifier: Apache-2.0
import contextlib
import dataclasses
import shlex
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from transformers.utils import logging as transformers_logging

import svit_hf
from svit_hf import cli
from svit_hf.errors import SViTError
from svit_hf.files import whole_file


@pytest.fixture
def probe(monkeypatch):
    """Add a command `probe`, and return what it does: a dictionary to put `raises` or `returns` into."""
    behaviour = {"returns": 0}

    @dataclass
    class ProbeCommand:
        """Do what the test says.

        Args:
            size: A number.
            streams: Yes or no, or not said.
        """

        size: int = 1
        streams: bool | None = None

        def run(self) -> int:
            behaviour["size"], behaviour["streams"] = self.size, self.streams
            behaviour.get("does", lambda: None)()
            if "raises" in behaviour:
                raise behaviour["raises"]
            return behaviour["returns"]

    module = ModuleType("probe_command")
    module.ProbeCommand = ProbeCommand
    monkeypatch.setitem(sys.modules, "probe_command", module)
    monkeypatch.setitem(cli.COMMANDS, "probe", cli.Command("probe_command", "ProbeCommand", "Probe."))
    return behaviour


@pytest.fixture(scope="module")
def completion(tmp_path_factory):
    """Return a function that gives what bash makes of words, the last of which is not complete."""
    file = tmp_path_factory.mktemp("completion") / "svit-hf.bash"
    with file.open("w") as out, contextlib.redirect_stdout(out):
        assert cli.main(["--completion", "bash"]) == 0

    script = f"""
        source {shlex.quote(str(file))}
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        _tyro_svit_hf
        echo "${{COMPREPLY[@]}}"
    """

    def complete(*words):
        command = ["bash", "-c", script, "bash", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    return complete


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_command_is_a_documented_dataclass(name, capsys):
    command = cli._find(name)
    assert dataclasses.is_dataclass(command)
    assert callable(command.run)
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"svit-hf {name}" in shown
    assert (
        "--output-dir" in shown
        or "output_dir" not in {field.name for field in dataclasses.fields(command)}
        or ("OUTPUT_DIR" in shown)
    )


@pytest.mark.parametrize("argument", ["-h", "--help"])
def test_help_lists_every_command(argument, capsys):
    assert cli.main([argument]) == 0
    shown = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"  {name} " in shown
        assert command.summary in shown


def test_no_command_shows_help_and_fails(capsys):
    assert cli.main([]) == 2
    assert "quickstart" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"svit-hf {svit_hf.__version__}\n"


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["ev"], ["evaluate"]),
        (["export", "m", "o", "--for"], ["--format"]),
        (["export", "m", "o", "--format", "we"], ["web"]),
        (["train", "--optimization.epo"], ["--optimization.epochs"]),
        (["data", "in"], ["inspect"]),
    ],
    ids=["command", "option", "value", "recipe", "action"],
)
def test_bash_completes(words, completed, completion):
    assert completion("svit-hf", *words) == completed


def test_other_shells(capsys):
    assert cli.main(["--completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef svit-hf\n")
    assert cli.main(["--completion", "dos"]) == 2
    assert "`--completion` is 'dos'; allowed are bash, zsh, tcsh." in capsys.readouterr().err


def test_unknown_command_is_named_with_the_nearest_one(capsys):
    assert cli.main(["quikstart", "--epochs", "1"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "'quikstart'" in printed.err
    assert "Did you mean `quickstart`?" in printed.err
    assert "doctor" in printed.err


def test_arguments_and_status_are_passed_on(probe):
    probe["returns"] = 3
    assert cli.main(["probe", "--size", "7"]) == 3
    assert probe["size"] == 7


def test_arguments_come_from_the_process_by_default(probe, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["svit-hf", "probe", "--size", "5"])
    assert cli.main() == 0
    assert probe["size"] == 5


@pytest.mark.parametrize(("word", "value"), [("true", True), ("True", True), ("false", False), ("None", None)])
def test_yes_and_no_are_said_as_in_json_or_python(probe, word, value):
    assert cli.main(["probe", "--streams", word]) == 0
    assert probe["streams"] is value


@pytest.mark.parametrize("is_terminal", [True, False])
def test_bars_of_transformers_stay_out_of_files(probe, monkeypatch, is_terminal):
    disabled = []
    monkeypatch.setattr(transformers_logging, "disable_progress_bar", lambda: disabled.append(True))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    assert cli.main(["probe"]) == 0
    assert bool(disabled) != is_terminal


def test_wrong_argument_is_refused(probe, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["probe", "--sise", "7"])
    assert stop.value.code == 2
    assert "sise" in "".join(capsys.readouterr())


def test_error_for_the_user_is_one_message(probe, capsys):
    probe["raises"] = SViTError("`size` is 1; it has to be at least 2.")
    assert cli.main(["probe"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "svit-hf: `size` is 1; it has to be at least 2.\n"
    assert printed.out == ""


def test_interruption_is_no_traceback(probe, capsys):
    probe["raises"] = KeyboardInterrupt()
    assert cli.main(["probe"]) == 130
    assert capsys.readouterr().err == "svit-hf: interrupted\n"


@pytest.fixture
def sigterm():
    """Let SIGTERM do no harm to the tests, and be what it was afterwards."""
    earlier = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, earlier)


def test_sigterm_leaves_nothing_half_written(probe, sigterm, tmp_path):
    def write():
        with whole_file(tmp_path / "report.json") as file:
            file.write_text("half of the")
            signal.raise_signal(signal.SIGTERM)

    probe["does"] = write
    with pytest.raises(SystemExit) as stop:
        cli.main(["probe"])
    assert stop.value.code == 143
    assert not list(tmp_path.iterdir())
    # as it was before the command
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("error", "is_hinted"),
    [
        (ImportError("no module named somewhere"), True),
        (RuntimeError("operator torchvision::nms does not exist"), True),
        (RuntimeError("out of memory"), False),
    ],
    ids=["import", "torchvision", "other"],
)
def test_broken_installation_points_to_the_doctor(probe, error, is_hinted):
    probe["raises"] = error
    with pytest.raises(type(error)) as caught:
        cli.main(["probe"])
    assert any("svit-hf doctor" in note for note in getattr(caught.value, "__notes__", [])) == is_hinted


def test_installed_program_is_the_module_that_is_shipped():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    module, _, function = project["project"]["scripts"]["svit-hf"].partition(":")
    assert callable(getattr(import_module(module), function))
    assert f"src/{module}.py" in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_module_is_the_same_program(fresh_python):
    assert fresh_python("-m", "svit_hf", "--version") == f"svit-hf {svit_hf.__version__}\n"


def test_program_imports_nothing_heavy_before_a_command_needs_it(fresh_python):
    code = """
import sys
from svit_hf_program import main
sys.argv[1:] = ["--help"]
assert main() == 0
print("LOADED", *sys.modules)
sys.argv[1:] = ["convert", "--help"]
try:
    main()
finally:
    print("LOADED", *sys.modules)
    import svit_hf
    svit_hf.SViTConfig()
"""
    before, after = (part.split("\n")[0].split() for part in fresh_python("-c", code).split("LOADED")[1:])
    assert "svit_hf.cli" in before
    assert not {name.partition(".")[0] for name in before} & {"torch", "transformers", "datasets", "numpy"}
    assert "svit_hf.model.modeling_svit" in after
