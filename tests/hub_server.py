"""A server that speaks what `huggingface_hub` asks the hub for, with models of our own."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", "tokenizer.json")  # what the hub keeps by LFS


class HubServer:
    """Serves `models`: name -> {file: content}. What goes wrong is set by the other attributes."""

    def __init__(self):
        self.models: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.instead: dict[str, bytes] = {}  # file -> the content that is sent in place of the right one
        self.cut: set[str] = set()  # files of which half is sent
        self.down = False
        self.fetched: list[str] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self.address = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, path):
        """Status, headers, the body, and how much of it is sent."""
        if self.down:
            return 503, {}, b"", 0
        if api := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/?]+)(\?.*)?", path):
            model, revision, _ = api.groups()
        elif resolve := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            model, revision, file = resolve.groups()
        else:
            return 404, {}, b"", 0
        if model not in self.models:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"", 0
        if model in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b"", 0
        if revision not in ("main", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"", 0
        files = self.models[model]
        if api:
            siblings = [_sibling(name, content) for name, content in files.items()]
            body = json.dumps({"id": model, "modelId": model, "sha": COMMIT, "siblings": siblings}).encode()
            return 200, {"Content-Type": "application/json"}, body, len(body)
        if file not in files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b"", 0
        content = files[file]
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_digest(file, content)}"', "Accept-Ranges": "bytes"}
        body = self.instead.get(file, content)
        return 200, headers, body, len(body) // 2 if file in self.cut else len(body)


def _digest(name, content):
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sibling(name, content):
    told = {"rfilename": name, "size": len(content), "blobId": hashlib.sha1(b"blob").hexdigest()}
    if name.endswith(LARGE):
        told["lfs"] = {"sha256": _digest(name, content), "size": len(content), "pointerSize": 134}
    else:
        told["blobId"] = _digest(name, content)
    return told


def _handler_for(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            status, headers, body, _ = server.answer(self.path)
            self._head(status, headers, len(body))

        def do_GET(self):
            status, headers, body, sent = server.answer(self.path)
            if status == 200 and "/resolve/" in self.path:
                server.fetched.append(self.path.rpartition("/")[2])
            begin = 0
            if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                begin = int(asked[1])
                status, headers = 206, headers | {"Content-Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"}
            self._head(status, headers, len(body) - begin)
            self.wfile.write(body[begin:sent])
            if sent < len(body):
                self.close_connection = True

        def _head(self, status, headers, length):
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()

        def log_message(self, *args):
            pass

    return Handler
