# SPDX-License-Identifier: Apache-2.0
"""Local folders of images as people have them: which files are images, which split and class each belongs to.

Nothing is opened here. What is not used is counted, so that it can be said.
"""

import glob
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from svit_hf.data.decoding import readable_suffixes
from svit_hf.errors import SViTError, listed


# words in the names of files and folders, and the split that they mean
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "valset": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "testset": "test",
    "eval": "test",
    "evaluation": "test",
    "holdout": "test",
}
# words that may stand beside those in the name of a split's folder; with any other it is the name of a class
FILLERS = frozenset(
    (
        "class", "classes", "cropped", "crops", "data", "dataset", "final", "folder", "full", "image",
        "images", "img", "imgs", "new", "part", "photos", "pictures", "resized", "seg", "set", "split",
        "subset",
    )
)  # fmt: skip
# what systems and programs leave behind; whatever begins with a dot counts as such too
FOREIGN_NAMES = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "desktop.ini"}
)
HIDDEN = "hidden files and files of the system"

Parts = tuple[str, ...]


@dataclass(frozen=True)
class FolderSplit:
    """The images of a split of a folder.

    Attributes:
        files: Their paths below the folder, in order.
        classes: The class of each; none if the split is unlabelled.
    """

    files: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in order."""
        return tuple(sorted(set(self.classes)))


@dataclass(frozen=True)
class ImageFolder:
    """What a folder of images holds.

    Attributes:
        root: The folder.
        splits: The splits, by name.
        unused: How many files are not used, by the reason.
    """

    root: Path
    splits: dict[str, FolderSplit]
    unused: Counter[str] = field(default_factory=Counter)


def split_of_name(name: str) -> str | None:
    """Return the split that the name of a folder means, such as `seg_train`, `Valid Set` or `test2017`."""
    words = re.findall(r"[a-z]+", name.lower())
    splits = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
    is_plain = all(word in SPLIT_WORDS or word in FILLERS for word in words)
    return splits[0] if len(splits) == 1 and is_plain else None


def is_foreign(name: str) -> bool:
    """Whether a file or folder belongs to the system or is hidden, rather than to the data."""
    return name.startswith(".") or name.lower() in FOREIGN_NAMES


def list_folder(root: Path) -> tuple[list[Parts], Counter[str]]:
    """Return all files below a folder, as the parts of their paths, and what was passed over.

    Links are followed, to files and to folders; a link to a folder that it is in itself is followed once.

    Raises:
        SViTError: If a folder cannot be read.
    """
    files: list[Parts] = []
    unused: Counter[str] = Counter()

    def refuse(error: OSError) -> None:
        raise SViTError(f"`path` is {str(root)!r}, of which a part cannot be read: {error}") from error

    ancestors: dict[str, frozenset[str]] = {str(root): frozenset({os.path.realpath(root)})}
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        above = ancestors.pop(folder)
        kept = []
        for name in sorted(folders):
            path = os.path.join(folder, name)  # noqa: PTH118 - as many calls as there are folders
            real = os.path.realpath(path)
            if is_foreign(name):
                unused[f"the folder {name}, which is hidden or of the system"] += 1
            elif real in above:
                unused[f"the link {name}, which leads back to a folder that it is in"] += 1
            else:
                kept.append(name)
                ancestors[path] = above | {real}
        folders[:] = kept
        parts = Path(folder).relative_to(root).parts
        hidden = [name for name in names if is_foreign(name)]
        unused[HIDDEN] += len(hidden)
        files += [(*parts, name) for name in sorted(set(names) - set(hidden))]
    return sorted(files), +unused


def picture_files(source: str) -> list[str]:
    """Return the picture files, in order, of a path: a file, a folder with pictures somewhere in it, or a glob."""
    if Path(source).is_dir():
        found = [str(Path(source, *parts)) for parts in list_folder(Path(source))[0]]
    else:
        # Path.glob takes no absolute patterns
        found = [source] if Path(source).is_file() else glob.glob(source, recursive=True)  # noqa: PTH207
    return sorted(file for file in found if Path(file).suffix.lower() in readable_suffixes() and Path(file).is_file())


def arrange_images(root: Path, files: Iterable[Parts], unused: Counter[str]) -> ImageFolder:
    """Find out the split and the class of each image of a folder.

    Folders on top that are all called like splits are splits; a single folder around them is passed through
    (`images/train`, `images/val`), and so is a folder in a split that is called like it (`seg_train/seg_train`). The
    class is the folder below the split; what is deeper is grouping. Without such names all images are for training.
    `unused` is what was passed over before.

    Raises:
        SViTError: If it is not clear what is a split and what is a class; the message lists what is there.
    """
    unused = Counter(unused)
    images = _unwrapped([_Placed(parts, "/".join(parts)) for parts in _images_of(files, unused)])
    tops = sorted({image.below[0] for image in images if len(image.below) > 1})
    if not _has_splits(tops, images):
        split = _split(images, unused, "images beside the folders of the classes")
        return ImageFolder(root, {"train": split} if split.files else {}, +unused)
    unused["images beside the folders of the splits"] += sum(len(image.below) == 1 for image in images)
    folders: dict[str, str] = {}
    splits = {}
    for top in tops:
        members = [image.inside() for image in images if image.below[0] == top and len(image.below) > 1]
        name = split_of_name(top)
        if name is None:
            _leave_out(root, top, tops, members, unused)
            continue
        if name in folders:
            raise SViTError(
                f"`path` is {str(root)!r}, where both {folders[name]!r} and {top!r} are the split {name}; rename one "
                "of them, or move it away."
            )
        folders[name] = top
        # archives are often unpacked into a folder of their own name
        while len(inner := {image.below[0] for image in members}) == 1 and split_of_name(next(iter(inner))) == name:
            members = [image.inside() for image in members]
        splits[name] = _split(members, unused, f"images in {top}, beside the folders of its classes")
    return ImageFolder(root, splits, +unused)


@dataclass(frozen=True)
class _Placed:
    """A file, and the parts of its path that are still to be understood."""

    below: Parts
    path: str

    def inside(self) -> "_Placed":
        return _Placed(self.below[1:], self.path)


def _images_of(files: Iterable[Parts], unused: Counter[str]) -> list[Parts]:
    suffixes = readable_suffixes()
    images = []
    for parts in files:
        suffix = Path(parts[-1]).suffix.lower()
        if suffix in suffixes:
            images.append(parts)
        else:
            unused[f"files {suffix}" if suffix else "files without a suffix"] += 1
    return images


def _unwrapped(images: list[_Placed]) -> list[_Placed]:
    """Pass through a single folder around all that has folders of splits in it."""
    tops = {image.below[0] for image in images}
    inner = {image.below[1] for image in images if len(image.below) > 2}
    is_wrapped = len(tops) == 1 and all(len(image.below) > 2 for image in images) and any(map(split_of_name, inner))
    if is_wrapped and split_of_name(next(iter(tops))) is None:
        return _unwrapped([image.inside() for image in images])
    return images


def _has_splits(tops: list[str], images: list[_Placed]) -> bool:
    """Whether the folders on top are splits: not if one of several with nothing but images happens to be called so."""
    called_so = [top for top in tops if split_of_name(top)]
    are_flat = all(len(image.below) <= 2 for image in images)
    return bool(called_so) and not (are_flat and len(called_so) == 1 < len(tops))


def _leave_out(root: Path, top: str, tops: list[str], members: list[_Placed], unused: Counter[str]) -> None:
    if any(len(image.below) > 1 for image in members):
        raise SViTError(
            f"`path` is {str(root)!r}, where some folders are splits and others are not: {listed(tops)}. Splits are "
            "called train, validation or test; put all classes into folders of that kind, or move the rest away."
        )
    unused[f"images in {top}, which is no split and has no folders of classes"] += len(members)


def _split(images: list[_Placed], unused: Counter[str], beside: str) -> FolderSplit:
    """Make a split of images with `CLASS/.../NAME` below them, or of images without any folder."""
    in_folders = [image for image in images if len(image.below) > 1]
    if not in_folders:
        return FolderSplit(tuple(image.path for image in images), ())
    unused[beside] += len(images) - len(in_folders)
    return FolderSplit(tuple(image.path for image in in_folders), tuple(image.below[0] for image in in_folders))


def similar_names(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return groups of class names that differ only in case, in spaces around them, or in how accents are encoded."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFC", name).casefold().strip(), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]
