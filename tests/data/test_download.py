"""Downloads, against a server of our own on this machine."""

import hashlib
import socket
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from minigpt_ext.data import download
from minigpt_ext.data.download import TINY_SHAKESPEARE, PublicFile, obtain

CONTENT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 50
PAUSES = (0.0, 0.0, 0.0)


class Server:
    """Answers each request by the next of `answers`: (status, body, length it claims); the last one again and again."""

    def __init__(self):
        self.answers = [(200, CONTENT, len(CONTENT))]
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, body, length = outer.answers[min(outer.requests, len(outer.answers) - 1)]
                outer.requests += 1
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/input.txt"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MINIGPT_DATA", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file(server):
    return PublicFile("text.txt", server.address, hashlib.sha256(CONTENT).hexdigest())


def cached(tmp_path):
    return tmp_path / "cache" / "minigpt_ext" / "text.txt"


def test_a_file_is_downloaded_once_and_kept(server, file, tmp_path):
    assert obtain(file, PAUSES) == CONTENT
    assert cached(tmp_path).read_bytes() == CONTENT
    assert [f.name for f in cached(tmp_path).parent.iterdir()] == ["text.txt"]
    assert obtain(file, PAUSES) == CONTENT
    assert server.requests == 1


def test_a_damaged_cache_is_fetched_again(server, file, tmp_path):
    obtain(file, PAUSES)
    cached(tmp_path).write_bytes(CONTENT[:-1])
    assert obtain(file, PAUSES) == CONTENT
    assert cached(tmp_path).read_bytes() == CONTENT and server.requests == 2


def test_a_server_that_recovers_is_asked_again(server, file):
    server.answers = [(503, b"", 0), (500, b"", 0), (200, CONTENT[:99], len(CONTENT)), (200, CONTENT, len(CONTENT))]
    assert obtain(file, PAUSES) == CONTENT
    assert server.requests == 4


def test_a_server_that_does_not_recover_is_given_up(server, file, tmp_path):
    server.answers = [(503, b"", 0)]
    with pytest.raises(ValueError, match=r"cannot download http://127.0.0.1.*: 503 .*text\.txt.*MINIGPT_DATA"):
        obtain(file, PAUSES)
    assert server.requests == 4 and not cached(tmp_path).exists()


def test_a_file_that_is_gone_is_not_asked_for_again(server, file):
    server.answers = [(404, b"", 0)]
    with pytest.raises(ValueError, match="404"):
        obtain(file, PAUSES)
    assert server.requests == 1


def test_other_content_is_refused_and_not_kept(server, file, tmp_path):
    server.answers = [(200, b"log in to the hotel's network", 29)]
    with pytest.raises(ValueError, match="other content"):
        obtain(file, PAUSES)
    assert server.requests == 1 and not cached(tmp_path).exists()


def test_a_body_cut_short_is_not_kept(server, file, tmp_path):
    server.answers = [(200, CONTENT[:1000], len(CONTENT))]
    with pytest.raises(ValueError, match="the connection broke after 1000 bytes"):
        obtain(file, PAUSES)
    assert not cached(tmp_path).exists()


def test_without_a_network_the_error_says_which_file_to_put_where(file, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = replace(file, address=f"http://127.0.0.1:{unused.getsockname()[1]}/input.txt")
    with pytest.raises(ValueError) as caught:
        obtain(closed, PAUSES)
    message = str(caught.value)
    assert "refused" in message and str(cached(tmp_path)) in message and "MINIGPT_DATA" in message
    assert file.sha256 in message


def test_a_silent_server_is_given_up(file):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/input.txt"
        with pytest.raises(ValueError, match="timed out"):
            obtain(replace(file, address=address), pauses=(), timeout=0.1)


def test_the_folder_of_ones_own_comes_first(server, file, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_bytes(CONTENT)
    monkeypatch.setenv("MINIGPT_DATA", str(tmp_path))
    assert obtain(file, PAUSES) == CONTENT and server.requests == 0

    (tmp_path / "text.txt").write_bytes(CONTENT + b"!")
    with pytest.raises(ValueError, match=r"text\.txt \(MINIGPT_DATA\) has sha256 .*, expected"):
        obtain(file, PAUSES)

    (tmp_path / "text.txt").unlink()
    assert obtain(file, PAUSES) == CONTENT and server.requests == 1


def test_a_cache_that_cannot_be_written_is_named(server, file, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="cannot keep the download at"):
        obtain(file, PAUSES)


def test_the_cache_has_its_usual_place_without_the_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_folder() == tmp_path / ".cache" / "minigpt_ext"


def test_tiny_shakespeare_is_pinned():
    assert len(TINY_SHAKESPEARE.sha256) == 64 and "/master/" not in TINY_SHAKESPEARE.address
