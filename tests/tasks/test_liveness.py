"""Process locks: those of killed processes are removed, and a forked child holds none."""

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from app.tasks.liveness import FileLocks, ServerLocks
from tests.service import served
from tests.tasks.background import quick, url_in

# Python 3.12 and newer warn of what is tried here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

_HOLDER = """
import pathlib, sys
from app.tasks.liveness import FileLocks
locks = FileLocks(pathlib.Path(sys.argv[1]))
print(locks.acquire("living"), flush=True)
sys.stdin.read()
"""


@contextmanager
def a_living_process(store: Path) -> Iterator[None]:
    """Another process, which has the lock `living`."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        yield
        process.stdin.close()
        assert process.wait(20) == 0


def forked(check: Callable[[], bool]) -> bool:
    """The result of a check in a forked child."""
    child = os.fork()
    if child == 0:
        held = False
        try:
            held = check()
        finally:
            os._exit(0 if held else 1)
    return os.waitpid(child, 0)[1] == 0


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_sweep_removes_lock_files_of_killed_processes(tmp_path: Path) -> None:
    """A sweep removes files that nobody has locked and keeps those of living processes."""
    store = tmp_path / "store.sqlite"
    locks = FileLocks(store)
    folder = tmp_path / "store.alive"
    with a_living_process(store):
        (folder / "killed").touch()
        locks.sweep()
        assert [file.name for file in folder.iterdir()] == ["living"]
        assert not locks.acquire("living")
    assert locks.acquire("living")
    locks.close()
    assert not list(folder.iterdir())


@pytest.mark.on_file
async def test_start_sweeps_lock_files(tmp_path: Path) -> None:
    """A service that starts removes the files of killed processes and leaves none itself."""
    folder = tmp_path / "store.alive"
    folder.mkdir()
    (folder / "killed").touch()
    async with served({"a": quick()}, store_url=url_in(tmp_path)):
        [mine] = folder.iterdir()
        assert mine.name != "killed"
    assert not list(folder.iterdir())


def test_file_swept_before_it_is_locked_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A swept file is not taken for a lock, since other processes would not see it."""
    locks = FileLocks(tmp_path / "store.sqlite")
    file = tmp_path / "store.alive" / "new"

    def late(*asked: Any) -> None:
        file.unlink()
        monkeypatch.undo()
        fcntl.lockf(*asked)

    monkeypatch.setattr(fcntl, "lockf", late)
    assert not locks.acquire("new")
    assert locks.acquire("new")
    assert file.exists()
    locks.close()


class Session:
    """Stands for a session with PostgreSQL; its socket is real."""

    def __init__(self) -> None:
        self.closed = self.broken = False
        self.socket, self.server = socket.socketpair()
        self.fileno = self.socket.fileno

    def execute(self, *_: Any) -> "Session":
        return self

    def fetchone(self) -> tuple[bool]:
        return (True,)

    def close(self) -> None:
        self.closed = True
        self.socket.close()
        self.server.close()


def test_forked_child_closes_the_socket_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forked child closes the socket once; a file of its own with that number stays open."""
    session = Session()
    monkeypatch.setattr(psycopg, "connect", lambda *_, **__: session)
    locks = ServerLocks(sa.make_url("postgresql://nobody@127.0.0.1/none"))
    assert locks.acquire("me")
    number = session.fileno()

    def in_child() -> bool:
        if is_open(number) or session.closed:
            return False
        other = os.open(os.devnull, os.O_RDONLY)
        os.dup2(other, number)
        return forked(lambda: is_open(number))

    assert forked(in_child)
    assert is_open(number)
    locks.close()


def test_session_made_during_a_fork_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session whose socket a child may have is ended and never used for locks."""
    sessions: list[Session] = []

    def connect(*_: Any, **__: Any) -> Session:
        sessions.append(Session())
        if len(sessions) == 1:
            assert forked(lambda: True)
        return sessions[-1]

    monkeypatch.setattr(psycopg, "connect", connect)
    locks = ServerLocks(sa.make_url("postgresql://nobody@127.0.0.1/none"))
    assert not locks.acquire("me")
    assert sessions[0].closed
    assert locks.acquire("me")
    locks.close()
    assert len(sessions) == 2
