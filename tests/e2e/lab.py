"""Runs single stages in forked children of one process that has loaded torch, and does them harm on request.

Started as a server by `Lab`: one JSON request a line on stdin, one JSON answer a line on stdout. A fork costs
milliseconds where a fresh process spends seconds on imports, so that a test can afford to kill a run at many points.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

WATCHED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.copyfile"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Done:
    """How a stage ended. `code` is negative for a signal; `events` counts what it did to files it may write."""

    code: int
    output: str
    seconds: float
    events: int


class Lab:
    """A process that runs stages as children: `run(command, cwd)`, where `command` is what stands after `pipeline`."""

    def __init__(self, code: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(code), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, command: list[str], cwd: Path, **harm: float | str) -> Done:
        """Run one stage. Harm kills it: `event=n` before it touches files for the n-th time, `touching=name` before it
        touches a path with that in its name, `after=s` after seconds, `bytes=n` in the write that would make a file
        longer than n.
        """
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.write(json.dumps({"command": command, "cwd": str(cwd), "harm": harm}) + "\n")
        self.server.stdin.flush()
        return Done(**json.loads(self.server.stdout.readline()))

    def close(self) -> None:
        """End the server."""
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait()
        if self.server.stdout:
            self.server.stdout.close()


def _watch(cwd: Path, harm: dict, count: list[int]) -> None:
    """Count what is about to happen to the files of results/ that this process may write; kill where `harm` says."""
    last, name = harm.get("event", float("inf")), harm.get("touching")

    def seen(event: str, arguments: tuple) -> None:
        if event not in WATCHED or not isinstance(arguments[0], str | os.PathLike):
            return
        if event == "open" and not (arguments[1] in ("w", "wb", "x", "xb", "a", "ab") or arguments[2] & WRITING):
            return
        in_open_folder = event in ("os.remove", "os.rmdir") and arguments[1] >= 0  # shutil.rmtree goes down by handles
        if not (in_open_folder or (cwd / arguments[0]).is_relative_to(cwd / "results")):
            return
        count[0] += 1
        if count[0] >= last or (name and name in str(arguments[0])):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(seen)


def _child(request: dict, log: Path, tally: int) -> None:
    """Run the stage in this process, which ends with it."""
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.chdir(request["cwd"])
    harm, count, code = request["harm"], [0], 70
    if "bytes" in harm:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (harm["bytes"], harm["bytes"]))
    _watch(Path(request["cwd"]), harm, count)
    try:
        from pipeline.__main__ import main  # noqa: PLC0415  (the tested tree's, in the child only)

        code = main(request["command"])
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        import traceback  # noqa: PLC0415

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(tally, str(count[0]).encode())
        os._exit(code or 0)


def _answer(request: dict, log: Path) -> Done:
    started = time.monotonic()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _child(request, log, write)
    os.close(write)
    if "after" in request["harm"]:
        time.sleep(request["harm"]["after"])
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(read) as pipe:
        events = int(pipe.read() or 0)
    return Done(code, log.read_text(errors="replace"), time.monotonic() - started, events)


def _serve() -> None:
    import tempfile  # noqa: PLC0415

    import torch  # noqa: PLC0415
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401, PLC0415  (loaded once, for all)

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            done = _answer(json.loads(line), Path(folder) / "log")
            print(json.dumps(vars(done)), flush=True)


if __name__ == "__main__":
    _serve()
