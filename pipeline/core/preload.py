"""A process that has torch and transformers imported, and forks itself for every local job.

The imports cost 4 CPU-seconds a process, and a sweep is hundreds of jobs. The server imports nothing of this package
beyond this file and the entry point, so a job runs the code that lies there when it starts. Nothing that starts a
thread or touches a device runs before the fork.

A client sends its arguments, folder, environment, and its own stdout and stderr; it gets the exit code. Either side
that ends takes the job with it: a killed client its job, a killed Snakemake the server and all jobs.
"""

import array
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

VARIABLE = "PIPELINE_PRELOADED"
MODULES = ("torch", "transformers.models.llama.modeling_llama", "safetensors.torch", "pydantic")
LENGTH_BYTES = 4


class Preloaded:
    """The server as its owner sees it: started and stopped, and ended with the owner however that ends."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server in the background, and tell every later child process of it.

        Nothing is started where the environment says already what to use; empty means a new process for each job.
        """
        if VARIABLE in os.environ:
            return
        address = tempfile.mkdtemp(prefix="preloaded-") + "/socket"
        with listening(address) as listener:  # at once, so that the first job finds it and waits for the imports
            command = [sys.executable, "-m", "pipeline.core.preload", address, str(listener.fileno())]
            self._server = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
        os.environ[VARIABLE] = address

    def stop(self) -> None:
        """Stop the server and whatever it still runs."""
        if self._server is None:
            return
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.terminate()  # it may still be importing, and reads no end of stdin then
        self._server.wait()
        self._server = None
        shutil.rmtree(Path(os.environ.pop(VARIABLE)).parent, ignore_errors=True)  # it may have done so itself


def submit(address: str, argv: list[str]) -> int:
    """Run `python -m pipeline <argv>` in a fork of the server at `address`, and return its exit code."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(address)
        except OSError as error:
            print(f"no preloaded process at {VARIABLE}={address} ({error}); unset it", file=sys.stderr)
            return 1
        request = json.dumps({"argv": argv, "cwd": str(Path.cwd()), "environ": dict(os.environ)}).encode()
        streams = array.array("i", [sys.stdout.fileno(), sys.stderr.fileno()])
        length = len(request).to_bytes(LENGTH_BYTES)
        client.sendmsg([length], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        client.sendall(request)
        answer = client.recv(LENGTH_BYTES)
    if not answer:
        print("the preloaded process has ended, and the job with it", file=sys.stderr)
        return 1
    return int.from_bytes(answer)


@dataclass
class _Server:
    """One listening socket, its clients, and the job of each. One thread: a fork copies no other."""

    listener: socket.socket
    run: Callable[[list[str]], int]
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    jobs: dict[socket.socket, int] = field(default_factory=dict)

    def serve(self) -> None:
        """Serve until the owner closes our stdin."""
        wake, waker = socket.socketpair()
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        for source in (sys.stdin, self.listener, wake):
            self.selector.register(source, selectors.EVENT_READ)
        try:
            while self._answer(wake):
                self._reap()
        finally:
            # Signals still come while jobs end and modules clean up after themselves: nothing is left to do on them.
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _answer(self, wake: socket.socket) -> bool:
        """Wait for something to happen and answer it; say whether the owner is still there."""
        for key, _ in self.selector.select():
            if key.fileobj is sys.stdin:
                return False
            if key.fileobj is self.listener:
                self._accept()
            elif key.fileobj is wake:
                wake.recv(4096)
            elif isinstance(key.fileobj, socket.socket):
                self._drop(key.fileobj)
        return True

    def end(self) -> None:
        """Kill every job that still runs."""
        for client in list(self.jobs):
            self._drop(client)

    def _accept(self) -> None:
        client, _ = self.listener.accept()
        try:
            request, streams = _receive(client)
        except (ValueError, OSError):  # it was killed before it had said all
            client.close()
            return
        if (child := os.fork()) == 0:
            self._become(request, streams)
        for stream in streams:
            os.close(stream)
        self.jobs[client] = child
        self.selector.register(client, selectors.EVENT_READ)

    def _become(self, request: dict, streams: list[int]) -> None:
        """Turn this fork into the job: its streams, folder, environment; and never return."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            self.selector.close()
            self.listener.close()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for stream, number in zip(streams, (1, 2), strict=True):
                os.dup2(stream, number)
            os.chdir(request["cwd"])
            os.environ.clear()
            os.environ.update(request["environ"])
            code = self.run(request["argv"])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _drop(self, client: socket.socket) -> None:
        """The client has ended: kill its job with all its children, and do not wait for an answer to be read."""
        self.selector.unregister(client)
        with suppress(ProcessLookupError):
            os.killpg(self.jobs[client], signal.SIGKILL)
        os.waitpid(self.jobs.pop(client), 0)
        client.close()

    def _reap(self) -> None:
        """Tell the clients of finished jobs their exit code: as a shell says it where a signal ended the job."""
        for client, child in list(self.jobs.items()):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid == 0:
                continue
            code = os.waitstatus_to_exitcode(status)
            with suppress(BrokenPipeError):
                client.sendall((code if code >= 0 else 128 - code).to_bytes(LENGTH_BYTES))
            self.selector.unregister(client)
            client.close()
            del self.jobs[client]


def _receive(client: socket.socket) -> tuple[dict, list[int]]:
    """Read one request and the client's stdout and stderr."""
    size = array.array("i").itemsize
    length, ancillary, _, _ = client.recvmsg(LENGTH_BYTES, socket.CMSG_SPACE(2 * size))
    streams = array.array("i")
    for _, _, data in ancillary:
        streams.frombytes(data[: len(data) - len(data) % size])
    with client.makefile("rb") as text:
        return json.loads(text.read(int.from_bytes(length))), list(streams)


def listening(address: str) -> socket.socket:
    """Return a socket that clients may connect to from now on."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(128)
    return listener


def serve(listener: socket.socket, modules: Iterable[str], run: Callable[[list[str]], int]) -> None:
    """Import `modules`; run what clients ask for until the owner closes our stdin."""
    with listener:
        for name in modules:
            importlib.import_module(name)
        server = _Server(listener, run)
        try:
            server.serve()
        finally:
            server.end()


if __name__ == "__main__":
    try:
        inherited = socket.socket(fileno=int(sys.argv[2]))
        serve(inherited, MODULES, importlib.import_module("pipeline.__main__").run)
    finally:
        shutil.rmtree(Path(sys.argv[1]).parent, ignore_errors=True)  # the owner may have done so
