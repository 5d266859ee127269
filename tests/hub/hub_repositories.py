# SPDX-License-Identifier: Apache-2.0
"""Repositories of models in memory, with branches and commits, as the stand-in of the Hub keeps them.

Files are stored as on a Hub without Xet: in git, or large ones under their sha256 by git-lfs.
"""

import base64
import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple


class RefusalError(Exception):
    """Answer to a request that is not carried out: a status, and a code of the Hub."""

    def __init__(self, status, code):
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code


class StoredFile(NamedTuple):
    """File of a commit."""

    data: bytes
    is_lfs: bool = False

    @property
    def oid(self):
        """The hash by which the Hub knows it."""
        return sha256(self.data) if self.is_lfs else blob_id(self.data)

    def entry(self, path):
        """Return the entry of the file in listings."""
        if not self.is_lfs:
            return {"type": "file", "path": path, "size": len(self.data), "oid": self.oid}
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\nsize {len(self.data)}\n".encode()
        )
        large = {"oid": self.oid, "size": len(self.data), "pointerSize": len(pointer)}
        return {"type": "file", "path": path, "size": len(self.data), "oid": blob_id(pointer), "lfs": large}


class Commit(NamedTuple):
    """Commit: its files by path, its parent's id, and its title."""

    files: dict
    parent: str | None
    title: str


@dataclass
class Repository:
    """Repository: its commits by id, and the id of the newest one of each branch."""

    is_private: bool
    commits: dict = field(default_factory=dict)
    branches: dict = field(default_factory=dict)

    def __post_init__(self):
        # as on the Hub, a new repository has a commit
        self.branches["main"] = None
        self.commit("main", {".gitattributes": StoredFile(b"*.safetensors filter=lfs\n")}, "initial commit")

    def head(self, revision="main"):
        """Return the id of a commit, given it or a branch."""
        commit = self.branches.get(revision, revision)
        if commit not in self.commits:
            raise RefusalError(404, "RevisionNotFound")
        return commit

    def commit(self, branch, files, title):
        """Add a commit to a branch, and return its id."""
        commit = Commit(files, self.branches[branch], title)
        content = repr((commit.parent, title, len(self.commits), sorted((path, f.oid) for path, f in files.items())))
        oid = hashlib.sha1(content.encode()).hexdigest()
        self.commits[oid] = commit
        self.branches[branch] = oid
        return oid

    def contents(self, revision="main"):
        """Return the contents of the files of a revision, by path."""
        return {path: file.data for path, file in self.commits[self.head(revision)].files.items()}

    def titles(self, branch="main"):
        """Return the titles of the commits of a branch, newest first."""
        oid, titles = self.head(branch), []
        while oid is not None:
            titles.append(self.commits[oid].title)
            oid = self.commits[oid].parent
        return titles


def apply_operations(files, operations, large_files):
    """Return the files of a commit, given those before it and the lines of the request."""
    files = dict(files)
    for operation in operations:
        value = operation["value"]
        match operation["key"]:
            case "file":
                files[value["path"]] = StoredFile(base64.b64decode(value["content"]))
            case "lfsFile":
                files[value["path"]] = StoredFile(large_files[value["oid"]], is_lfs=True)
            case key:
                raise RefusalError(400, f"Unknown operation {key}")
    return files


def blob_id(data):
    """Return git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data):
    """Return git-lfs's hash of a file."""
    return hashlib.sha256(data).hexdigest()
