# SPDX-License-Identifier: Apache-2.0
"""Addresses as checkpoints, against a server on this machine that breaks off."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from svit_hf import SViTForImageClassification
from svit_hf.cli import main
from svit_hf.convert import downloading
from svit_hf.convert.downloading import fetch_checkpoint
from svit_hf.errors import ConversionError


CHECKPOINT = Path(__file__).parents[1] / "golden" / "tiny_checkpoint.pth"
# gdown keeps what it has received in pieces of half a megabyte
PIECE = 512 * 1024
CONTENT = bytes(range(256)) * (PIECE // 64)

pytest.importorskip("gdown", reason="gdown is not installed")


class Server(ThreadingHTTPServer):
    """A server of one file; `break_after` bytes of an answer, it closes the connection."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.break_after, self.asked = CONTENT, None, []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/weights.pth"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if self.path.partition("?")[0] != "/weights.pth":
            self.send_error(404)
            return
        start = int(wanted[6:-1]) if wanted else 0
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if server.break_after is None else body[: server.break_after])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def files_in(folder):
    return sorted(file.name for file in folder.iterdir())


def test_file_stays_a_file(tmp_path):
    assert fetch_checkpoint("a/b.pth", tmp_path / "out") == Path("a/b.pth")


def test_download_is_kept_and_not_made_twice(server, tmp_path):
    file = fetch_checkpoint(server.address, tmp_path / "out")
    assert file.read_bytes() == CONTENT
    assert fetch_checkpoint(server.address, tmp_path / "out") == file
    assert server.asked == [None]
    assert files_in(tmp_path) == [file.name]


def test_given_up_download_is_continued_by_the_same_command(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloading, "TRIES", 0)
    server.break_after = 2 * PIECE
    with pytest.raises(ConversionError, match="Give the same command again"):
        fetch_checkpoint(server.address, tmp_path / "out")
    server.break_after = None
    assert fetch_checkpoint(server.address, tmp_path / "out").read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={2 * PIECE}-"


def test_missing_file_is_a_sentence(server, tmp_path):
    with pytest.raises(ConversionError, match="cannot be downloaded: 404"):
        fetch_checkpoint(server.address + "x", tmp_path / "out")
    assert files_in(tmp_path) == []


def test_server_that_is_not_there_is_a_sentence(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(downloading, "TRIES", 0)
    address = server.address.replace(str(server.server_port), "9")
    assert main(["convert", address, str(tmp_path / "out")]) == 2
    assert "refused" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["ftp://host/a.pth", "file:///etc/passwd"])
def test_other_kinds_of_addresses_are_refused(address, tmp_path):
    with pytest.raises(ConversionError, match="addresses begin with http or https"):
        fetch_checkpoint(address, tmp_path / "out")


def test_password_in_an_address_is_hidden(server, tmp_path, capsys):
    address = server.address.replace("http://", "http://me:secret@")
    with pytest.raises(ConversionError) as refused:
        fetch_checkpoint(address + "x", tmp_path / "out")
    assert "secret" not in f"{refused.value}{capsys.readouterr()}"


@pytest.mark.parametrize(
    ("link", "message"),
    [
        ("https://drive.google.com/drive/folders/1uaT5OarQd9i", "a folder; open it in a browser"),
        ("https://drive.google.com/drive/my-drive", "names no file of Google Drive"),
    ],
)
def test_links_to_no_file_of_google_drive_are_refused(link, message, tmp_path):
    with pytest.raises(ConversionError, match=message):
        fetch_checkpoint(link, tmp_path / "out")


def test_without_gdown_an_address_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("svit_hf.convert.downloading.find_spec", lambda name: None)
    with pytest.raises(ConversionError, match="pip install gdown"):
        fetch_checkpoint("https://drive.google.com/file/d/1AbC/view", tmp_path / "out")


def test_command_converts_what_it_downloads_as_safely_as_a_file(server, tmp_path, capsys):
    server.content = CHECKPOINT.read_bytes()
    fields = tmp_path / "tiny.json"
    fields.write_text(
        '{"num_attention_heads": [1, 2, 2, 4], "super_token_sizes": [8, 4, 1, 1], '
        '"num_sampling_iterations": [1, 1, 1, 1]}'
    )
    assert main(["convert", server.address, str(tmp_path / "out"), "--config", str(fields)]) == 0
    SViTForImageClassification.from_pretrained(tmp_path / "out")
    # a program in the place of the weights
    server.content = b"cposix\nsystem\n(S'touch hacked'\ntR."
    assert main(["convert", server.address + "?2", str(tmp_path / "other")]) == 2
    assert "cannot be read as tensors" in capsys.readouterr().err
