# SPDX-License-Identifier: Apache-2.0
"""The demo as a Space of the Hub: a folder that runs from its own requirements.

This package is in the folder as it lies here, since it cannot be installed by name: Python finds a package, and the
version that it states, beside the program that it runs.
"""

import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCardData
from packaging.requirements import Requirement
from packaging.version import Version

import svit_hf
from svit_hf.demo.page import ABOUT
from svit_hf.demo.pictures import read_upload
from svit_hf.demo.viewer import Viewer
from svit_hf.errors import SViTError
from svit_hf.extras import EXTRAS
from svit_hf.files import require_new_folder, whole_folder
from svit_hf.hub.remote_code import save_with_code


PACKAGE = "svit-hf"
# longer edge of an example, in pixels
EXAMPLE_EDGE = 1024

APP = '''\
"""The demo of svit-hf. Run it with: python app.py"""

from pathlib import Path

from svit_hf.demo.page import serve
from svit_hf.demo.viewer import open_viewer


HERE = Path(__file__).parent
MODELS = {models}

viewers = [open_viewer(str(HERE / "models" / name)) for name in MODELS]
examples = sorted((HERE / "examples").glob("*"))
serve(viewers, examples, announce=lambda address: print(f"Open {{address}}", flush=True))
'''


def write_space(viewers: Sequence[Viewer], examples: Sequence[Path], folder: Path) -> None:
    """Write the demo of models as a Space.

    Args:
        viewers: One model, or two.
        examples: Pictures to try. They are written anew, so that nothing but the picture is published of them.
        folder: The folder to write, new or empty.

    Raises:
        SViTError: If the folder is in use or cannot be written.
    """
    require_new_folder(folder, "space")
    names = _different(viewer.name for viewer in viewers)
    is_dense = any(viewer.dense is not None for viewer in viewers)
    try:
        with whole_folder(folder) as temporary:
            for name, viewer in zip(names, viewers, strict=True):
                _save_model(viewer, temporary / "models" / name)
            _write_examples(examples, temporary / "examples")
            _copy_package(temporary)
            (temporary / "app.py").write_text(APP.format(models=names), encoding="utf-8")
            (temporary / "requirements.txt").write_text("\n".join(requirements(is_dense)) + "\n", encoding="utf-8")
            (temporary / "README.md").write_text(_card(names), encoding="utf-8")
    except OSError as error:
        raise SViTError(f"`space` is {str(folder)!r}, which cannot be written: {error}") from error


def _save_model(viewer: Viewer, folder: Path) -> None:
    model: Any = viewer.model
    if viewer.dense is None:
        save_with_code(model, folder, viewer.preprocessing.processor)
    else:
        viewer.dense.model.save_pretrained(folder)
        viewer.preprocessing.processor.save_pretrained(folder)


def requirements(is_dense: bool = False) -> list[str]:
    """Return what the demo needs, for a model with a head too, in the versions that it has here."""
    stated = map(Requirement, distribution(PACKAGE).requires or [])
    needed = [item.name for item in stated if item.marker is None or item.marker.evaluate({"extra": ""})]
    needed += [*EXTRAS["demo"], *(EXTRAS["dense"] if is_dense else ())]
    # a build's own part of a version, as in 2.13.0+cpu, is not known elsewhere
    return [f"{name}=={Version(version(name)).public}" for name in sorted(set(needed), key=str.lower)]


def _different(names: Iterator[str]) -> list[str]:
    """Return names for folders, in which no two are the same."""
    found: list[str] = []
    for name in names:
        plain = "".join(character if character.isalnum() or character in "-_." else "-" for character in name)
        plain = plain.lstrip(".") or "model"
        found.append(f"{plain}-{len(found) + 1}" if plain in found else plain)
    return found


def _write_examples(examples: Sequence[Path], folder: Path) -> None:
    folder.mkdir()
    for number, file in enumerate(examples, 1):
        picture = read_upload(str(file)).picture
        picture.thumbnail((EXAMPLE_EDGE, EXAMPLE_EDGE))
        picture.save(folder / f"{number:02d}.png")


def _copy_package(folder: Path) -> None:
    """Copy this package, and of what its installation has noted, name and version."""
    source = Path(svit_hf.__file__).parent
    shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    stated = distribution(PACKAGE)
    noted = folder / f"{source.name}-{stated.version}.dist-info"
    noted.mkdir()
    (noted / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {stated.version}\n", encoding="utf-8"
    )


def _card(names: Sequence[str]) -> str:
    data = SpaceCardData(
        title=f"Super tokens: {' and '.join(names)}",
        emoji="🔬",
        colorFrom="yellow",
        colorTo="red",
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version="3.11",
        app_file="app.py",
        license="unknown",
        short_description="What an SViT sees in a picture",
        tags=["svit", "super-tokens", "interpretability"],
    )
    return f"""---
{data}
---

# Super tokens: {" and ".join(names)}

{ABOUT}

`python app.py` runs it, after `pip install -r requirements.txt`.

| Here | What it is |
|---|---|
| `app.py` | the program |
| `models/` | {" and ".join(names)}, with the code that loads them without this package |
| `examples/` | pictures to try |
| `svit_hf/` | the package svit-hf {version(PACKAGE)}, Apache License 2.0 |

The licence above is that of models and pictures. State it before you make the Space public.
"""
