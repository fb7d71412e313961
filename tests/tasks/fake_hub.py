"""A hub on loopback with one dataset and one gated model: the answers that huggingface_hub reads, no more."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef" * 2 + "01234567"
LARGE = 100
"""Bytes from which on a file's SHA-256 is known to the hub."""


class FakeHub:
    """Serves `files` of `repository` at `revision`; `broken` names are served with other bytes."""

    def __init__(self, repository: str, files: dict[str, bytes], revision: str = "main", commit: str = COMMIT) -> None:
        self.repository, self.files, self.revision, self.commit = repository, files, revision, commit
        self.broken: set[str] = set()
        self.gated = False
        self.asked: list[str] = []
        self.address = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of one request."""
        path = unquote(path.partition("?")[0])
        self.asked.append(path)
        if self.repository not in path:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if not any(f"/{known}" in path for known in (self.revision, self.commit)):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        if path.startswith("/api/"):
            return 200, {"Content-Type": "application/json"}, json.dumps(self._info()).encode()
        name = path.partition(f"/resolve/{self.commit}/")[2]
        if name not in self.files:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit}, b""
        body = self.files[name] + (b"?" if name in self.broken else b"")
        return 200, {"X-Repo-Commit": self.commit, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, body

    def _info(self) -> dict:
        siblings = []
        for name, body in self.files.items():
            lfs = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
            siblings.append({"rfilename": name, "size": len(body)} | ({"lfs": lfs} if len(body) >= LARGE else {}))
        return {"id": self.repository, "sha": self.commit, "siblings": siblings, "tags": [], "private": False}


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve `hub` as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
