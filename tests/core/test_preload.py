"""The preloaded process: same streams, folder, environment and exit code as a fresh one; nobody outlives anybody."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.core import preload

ROOT = str(Path(__file__).resolve().parents[2])
SERVER = """
import os, sys, time
from pipeline.core import preload
def run(argv):
    if argv[0] == "say":
        print(argv[1], os.getcwd(), os.environ.get("MARK"), flush=True)
        print("beside", file=sys.stderr)
    elif argv[0] == "exit":
        sys.exit(int(argv[1]))
    elif argv[0] == "fail":
        raise ValueError("on purpose")
    elif argv[0] == "abort":
        os.abort()
    elif argv[0] == "sleep":
        open(argv[1], "w").write(str(os.getpid()))
        time.sleep(60)
    return 0
preload.serve(preload.listening(sys.argv[1]), (), run)
"""
CLIENT = "import sys; from pipeline.core.preload import submit; sys.exit(submit(sys.argv[1], sys.argv[2:]))"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("preload") / "socket")
    with subprocess.Popen([sys.executable, "-c", SERVER, path], stdin=subprocess.PIPE) as server:
        _until(lambda: Path(path).exists())
        yield path
        server.stdin.close()
        assert server.wait(timeout=20) == 0


def _until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _client(address, *argv, **options):
    command = [sys.executable, "-c", CLIENT, address, *argv]
    return subprocess.run(command, text=True, capture_output=True, timeout=30, check=False, **options)


def test_streams_folder_and_environment_are_the_clients(address, tmp_path):
    done = _client(address, "say", "hello", cwd=tmp_path, env=os.environ | {"MARK": "m", "PYTHONPATH": ROOT})
    assert (done.stdout, done.stderr, done.returncode) == (f"hello {tmp_path} m\n", "beside\n", 0)


def test_exit_codes_pass_through(address):
    assert _client(address, "exit", "7").returncode == 7
    failed = _client(address, "fail")
    assert failed.returncode == 1
    assert "ValueError: on purpose" in failed.stderr
    assert _client(address, "abort").returncode == 128 + signal.SIGABRT


def test_a_killed_client_takes_its_job_with_it(address, tmp_path):
    note = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", CLIENT, address, "sleep", str(note)]) as client:
        _until(lambda: note.exists() and note.read_text())
        job = int(note.read_text())
        assert _alive(job)
        client.kill()
    _until(lambda: not _alive(job))
    assert _client(address, "exit", "3").returncode == 3


@pytest.mark.parametrize("said", [b"", b"\0\0", b"\0\0\1\0{"])
def test_a_client_that_is_killed_while_it_asks_harms_nobody(address, said):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        client.sendall(said)
    assert _client(address, "exit", "3").returncode == 3


def test_the_owners_end_is_the_end_of_all(tmp_path):
    """The server reads its stdin only to learn when its owner has gone, however that happened."""
    path, note = str(tmp_path / "socket"), tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", SERVER, path], stdin=subprocess.PIPE) as server:
        _until(lambda: Path(path).exists())
        with subprocess.Popen(
            [sys.executable, "-c", CLIENT, path, "sleep", str(note)], stderr=subprocess.PIPE
        ) as client:
            _until(lambda: note.exists() and note.read_text())
            server.stdin.close()
            assert client.wait(timeout=20) == 1
            client.stderr.read()
        server.wait(timeout=20)
    _until(lambda: not _alive(int(note.read_text())))


def test_a_server_that_is_not_there_is_an_error(tmp_path):
    done = _client(str(tmp_path / "nobody"), "exit", "0")
    assert done.returncode == 1
    assert "preloaded process" in done.stderr


def test_nothing_is_started_where_the_environment_has_decided(monkeypatch):
    monkeypatch.setenv(preload.VARIABLE, "")
    server = preload.Preloaded()
    server.start()
    server.stop()
    assert os.environ[preload.VARIABLE] == ""


def test_the_first_client_never_comes_too_early(monkeypatch):
    """A job may start as soon as `start` has returned, long before the server has imported anything."""
    monkeypatch.delenv(preload.VARIABLE, raising=False)
    server = preload.Preloaded()
    server.start()
    address = os.environ[preload.VARIABLE]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
    server.stop()
    assert preload.VARIABLE not in os.environ
    assert not Path(address).parent.exists()
