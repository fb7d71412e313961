"""A server on loopback that takes W&B runs and keeps count; or one that takes connections and never answers."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HISTORY = "wandb-history.jsonl"


class Server(ThreadingHTTPServer):
    """`history` holds every line that was sent, by run, in the order of arrival; `finished` the exit codes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.history: dict[str, list[dict]] = {}
        self.finished: dict[str, int] = {}
        self.requests = 0

    def tail(self, run: str) -> dict | None:
        """What the server says of a run that is to be resumed."""
        lines = self.history.get(run)
        if not lines:
            return None
        counts = {"historyLineCount": len(lines), "eventsLineCount": 0, "logLineCount": 0}
        tails = {"historyTail": json.dumps([json.dumps(lines[-1])]), "eventsTail": "[]"}
        own = {"id": run, "name": run, "displayName": run, "config": "{}", "summaryMetrics": json.dumps(lines[-1])}
        return counts | tails | own | {"tags": [], "notes": None, "wandbConfig": '{"t": 1}'}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = self.path.strip("/").split("/")
        answer = {}
        if parts[-1] == "graphql":
            self.server.requests += 1
            answer = {"data": self._asked(json.loads(body))}
        elif parts[-1] == "file_stream":
            self._stream(parts[-2], json.loads(body))
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_PUT = do_POST

    def _asked(self, query: dict) -> dict:
        entity, run = {"id": "e", "name": "me"}, query.get("variables", {}).get("name")
        model = {"id": "p", "name": "p", "entity": entity}
        if query["operationName"] == "RunResumeStatus":
            return {"model": model | {"bucket": self.server.tail(run)}}
        if query["operationName"] == "CreateRunFiles":
            port = self.server.server_port
            files = [{"name": name, "uploadUrl": f"http://127.0.0.1:{port}/"} for name in query["variables"]["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if query["operationName"] == "UpsertBucket":
            return {"upsertBucket": {"bucket": {"id": run, "name": run, "displayName": run, "project": model}}}
        return {
            "viewer": entity | {"entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
        }

    def _stream(self, run: str, sent: dict) -> None:
        lines = self.server.history.setdefault(run, [])
        if history := sent.get("files", {}).get(HISTORY):
            assert history["offset"] == len(lines), (history, len(lines))
            lines += map(json.loads, history["content"])
        if sent.get("complete"):
            self.server.finished[run] = sent["exitcode"]


@contextmanager
def serving() -> Iterator[Server]:
    """Serve until the block ends."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def hanging() -> Iterator[str]:
    """Yield the address of a server that takes every connection and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)  # the system accepts; nobody reads
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
