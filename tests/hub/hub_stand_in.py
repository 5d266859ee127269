# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the Hub: its HTTP interface, as far as pushing models and reading data sets needs it.

Repositories are in `hub_repositories.py`; here are the requests, and the faults that can be asked for. Only what
huggingface_hub was seen to ask for is there, and everything else is answered with 404.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from hub.hub_repositories import RefusalError, Repository, apply_operations, sha256


class Answer(NamedTuple):
    """Answer to a request."""

    status: int
    content: object = b""
    headers: dict = {}


@dataclass
class Fault:
    """Requests that go wrong, and how.

    Attributes:
        request: Regular expression for method and path, such as "POST .*/commit/".
        status: The answer; None drops the connection without one.
        times: How many requests.
        is_done: Whether the request is carried out all the same, so that only its answer gets lost.
        headers: Of the answer.
    """

    request: str
    status: int | None = 500
    times: int = 1
    is_done: bool = False
    headers: dict = field(default_factory=dict)


class HubStandIn:
    """Content of the stand-in.

    Attributes:
        endpoint: Address of the server.
        repositories: By id.
        large_files: Contents by sha256.
        requests: Method and path of every request so far.
        faults: What shall go wrong.
        tampered: Paths of files that listings describe as other ones.
    """

    def __init__(self):
        self.endpoint = ""
        self.repositories = {}
        self.large_files = {}
        self.requests = []
        self.faults = []
        self.tampered = set()
        self.lock = threading.RLock()

    def num_requests(self, pattern):
        """Count the requests that a regular expression fits."""
        return sum(re.search(pattern, request) is not None for request in self.requests)

    def take_fault(self, request):
        """Return the fault that is due for a request, or None."""
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.request, request):
                fault.times -= 1
                return fault
        return None


@contextmanager
def hub_stand_in() -> Iterator[HubStandIn]:
    """Run a stand-in until the block ends."""
    hub = HubStandIn()
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub})) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        # the interval is how long the end of the block may take
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield hub
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"
    # headers and content are two packets; the second would wait for an acknowledgement of the first
    disable_nagle_algorithm = True

    def log_message(self, *arguments):
        pass

    def answer(self):
        request = f"{self.command} {urlsplit(self.path).path}"
        body = self._read_body()
        with self.hub.lock:
            self.hub.requests.append(request)
            fault = self.hub.take_fault(request)
            answer = self._carry_out(request, body) if fault is None or fault.is_done else None
        if fault is not None and fault.status is None:
            self.close_connection = True
            return
        if fault is not None:
            answer = Answer(fault.status, {"error": "injected fault"}, fault.headers)
        self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815 - the names that the base class calls

    def _read_body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, answer):
        is_raw = isinstance(answer.content, bytes)
        data = answer.content if is_raw else json.dumps(answer.content).encode()
        headers = {"Content-Type": "application/octet-stream" if is_raw else "application/json"}
        self.send_response(answer.status)
        for name, value in (headers | {"Content-Length": len(data)} | answer.headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _carry_out(self, request, body):
        try:
            for pattern, method in _ROUTES:
                if match := re.fullmatch(pattern, request):
                    return method(self, body, **{name: unquote(part) for name, part in match.groupdict("").items()})
            raise RefusalError(404, "NotFound")
        except RefusalError as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.code}
            return Answer(refusal.status, {"error": refusal.code}, headers)

    def _repository(self, repo, revision="main"):
        """Return a repository, and the id of a commit of it."""
        if self.headers.get("Authorization") is None:
            # as for one that is private
            raise RefusalError(401, "RepoNotFound")
        if repo not in self.hub.repositories:
            raise RefusalError(404, "RepoNotFound")
        repository = self.hub.repositories[repo]
        return repository, repository.head(revision)

    def _create(self, body):
        if self.headers.get("Authorization") is None:
            raise RefusalError(401, "Unauthorized")
        wanted = json.loads(body)
        repo = f"{wanted['organization']}/{wanted['name']}"
        status = 409 if repo in self.hub.repositories else 200
        self.hub.repositories.setdefault(repo, Repository(is_private=wanted.get("visibility") == "private"))
        return Answer(status, {"url": f"{self.hub.endpoint}/{repo}", "name": repo})

    def _validate_card(self, body):
        errors = [] if json.loads(body)["content"].startswith("---\n") else [{"message": "no metadata"}]
        return Answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def _create_branch(self, body, repo, branch):
        repository, head = self._repository(repo)
        if branch in repository.branches:
            raise RefusalError(409, "BranchExists")
        repository.branches[branch] = head
        return Answer(200, {})

    def _describe(self, body, repo, revision="main"):
        repository, head = self._repository(repo, revision)
        siblings = [{"rfilename": path} for path in sorted(repository.commits[head].files)]
        return Answer(
            200, {"id": repo, "sha": head, "private": repository.is_private, "tags": [], "siblings": siblings}
        )

    def _list(self, body, repo, revision, folder):
        """List a folder, and what is in its folders if that is asked for."""
        repository, head = self._repository(repo, revision)
        inside = {path: file for path, file in repository.commits[head].files.items() if path.startswith(folder)}
        folders = {parent.as_posix() for path in inside for parent in PurePosixPath(path).parents} - {".", folder}
        entries = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        entries += [file.entry(path) for path, file in sorted(inside.items())]
        if "recursive=true" not in urlsplit(self.path).query.lower():
            here = PurePosixPath(folder)
            entries = [entry for entry in entries if PurePosixPath(entry["path"]).parent == here]
        for entry in entries:
            if entry["path"] in self.hub.tampered:
                (entry.get("lfs") or entry)["oid"] = "0" * len((entry.get("lfs") or entry)["oid"])
        return Answer(200, entries)

    def _choose_upload(self, body, repo, revision):
        repository, head = self._repository(repo, revision)
        stored = repository.commits[head].files
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": stored[file["path"]].oid if file["path"] in stored else None,
            }
            for file in json.loads(body)["files"]
        ]
        return Answer(200, {"files": files})

    def _offer_upload(self, body, repo):
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in json.loads(body)["objects"]]
        for entry in objects:
            if entry["oid"] not in self.hub.large_files:
                entry["actions"] = {"upload": {"href": f"{self.hub.endpoint}/_lfs/{entry['oid']}", "header": {}}}
        return Answer(200, {"transfer": "basic", "objects": objects})

    def _upload(self, body, oid):
        if sha256(body) != oid:
            raise RefusalError(400, "WrongContent")
        self.hub.large_files[oid] = body
        return Answer(200)

    def _commit(self, body, repo, branch):
        repository, head = self._repository(repo, branch)
        header, *operations = (json.loads(line) for line in body.splitlines())
        if header["value"].get("parentCommit") not in (None, head):
            raise RefusalError(412, "ParentMoved")
        files = apply_operations(repository.commits[head].files, operations, self.hub.large_files)
        commit = repository.commit(branch, files, header["value"]["summary"])
        return Answer(200, {"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{commit}", "commitOid": commit})

    def _read(self, body, repo, revision, path):
        repository, head = self._repository(repo, revision)
        if path not in repository.commits[head].files:
            raise RefusalError(404, "EntryNotFound")
        file = repository.commits[head].files[path]
        headers = {"X-Repo-Commit": head, "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        if file.is_lfs:
            headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": len(file.data)}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return Answer(200, file.data, headers)
        first, last = int(wanted[1]), min(int(wanted[2] or len(file.data)), len(file.data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(file.data)}"
        return Answer(206, file.data[first : last + 1], headers)


_REPO = "(?P<repo>[^/]+/[^/]+)"
# a data set is kept under a name that begins so
_DATA_SET = "(?P<repo>datasets/[^/]+/[^/]+)"
_REVISION = "(?P<revision>[^/]+)"
_FOLDER = "(?:/(?P<folder>.*))?"
_ROUTES = [
    ("POST /api/repos/create", _Handler._create),
    ("POST /api/validate-yaml", _Handler._validate_card),
    (f"POST /api/models/{_REPO}/branch/(?P<branch>[^/]+)", _Handler._create_branch),
    (f"POST /api/models/{_REPO}/preupload/{_REVISION}", _Handler._choose_upload),
    (f"POST /api/models/{_REPO}/commit/(?P<branch>[^/]+)", _Handler._commit),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler._offer_upload),
    ("PUT /_lfs/(?P<oid>[0-9a-f]{64})", _Handler._upload),
    (f"GET /api/models/{_REPO}/revision/{_REVISION}", _Handler._describe),
    (f"GET /api/models/{_REPO}/tree/{_REVISION}{_FOLDER}", _Handler._list),
    (f"GET /api/{_DATA_SET}", _Handler._describe),
    (f"GET /api/{_DATA_SET}/revision/{_REVISION}", _Handler._describe),
    (f"GET /api/{_DATA_SET}/tree/{_REVISION}{_FOLDER}", _Handler._list),
    (f"(?:GET|HEAD) /{_DATA_SET}/resolve/{_REVISION}/(?P<path>.+)", _Handler._read),
]
