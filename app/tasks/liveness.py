"""Which processes are alive: each holds a lock that dies with it.

A lock file where the store is a file, a session's advisory lock on PostgreSQL. A process that
hangs keeps its lock; its runs have deadlines of their own. A child that a tool forked, and that
outlives the process, does not.
"""

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

import psycopg
import sqlalchemy as sa

from app.tasks.store import POSTGRES, Store


class Locks(Protocol):
    """Locks by the name of a process. Every method blocks, and raises OSError or psycopg.Error."""

    def acquire(self, name: str) -> bool:
        """Take a process's lock, if nobody has it."""
        ...

    def release(self, name: str) -> None:
        """Let go of a lock that was taken."""
        ...

    def sweep(self) -> None:
        """Remove what processes that were killed left behind."""
        ...

    def close(self) -> None:
        """Let go of all."""
        ...


class FileLocks:
    """One file for each process, beside the store."""

    # Nobody else can lose a lock file: one that is free means that its process is gone.
    grace_s = 0.0

    def __init__(self, store: Path) -> None:
        self._folder = store.with_suffix(".alive")
        self._folder.mkdir(exist_ok=True)
        self._held: dict[str, IO[str]] = {}

    def acquire(self, name: str) -> bool:
        """Take a process's lock, if nobody has it."""
        if name in self._held:
            return True
        file = (self._folder / name).open("a")
        try:
            # The kind that SQLite uses too: unlike flock's, it does not pass to forked children.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have removed the file since it was opened here. Only who has the
            # lock of a file removes it, so one that is there now is that of its process.
            removed = os.fstat(file.fileno()).st_nlink == 0
        except BlockingIOError:
            removed = True
        if removed:
            file.close()
            return False
        self._held[name] = file
        return True

    def release(self, name: str) -> None:
        """Let go of a lock; its process is gone, so its file goes too."""
        with self._held.pop(name):
            (self._folder / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove the files of processes that were killed, before this one has its own.

        One that another process has just made, and not locked yet, goes too: it makes another.
        """
        for file in list(self._folder.iterdir()):
            if self.acquire(file.name):
                self.release(file.name)

    def close(self) -> None:
        """Let go of all."""
        for name in list(self._held):
            self.release(name)


class ServerLocks:
    """Advisory locks of one session; they need a direct connection, not a transaction pool."""

    # A restart of the server takes everybody's lock at once: one that is free for this long is
    # that of a process which is gone.
    grace_s = 2.0

    def __init__(self, url: sa.URL) -> None:
        self._url = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._session: psycopg.Connection | None = None
        self._of_parent: psycopg.Connection | None = None
        self._held: set[str] = set()
        self._forks = _Forks(self._close_in_child)

    def acquire(self, name: str) -> bool:
        """Take a process's lock, if nobody has it; again after a lost connection."""
        if self._session is None or self._session.closed or self._session.broken:
            self._held.clear()
            self._session = self._connect()
            if self._session is None:
                return False
        if name in self._held:
            self._session.execute("select 1")
            return True
        asked = self._session.execute("select pg_try_advisory_lock(%s)", (_number(name),))
        taken = bool((asked.fetchone() or (False,))[0])
        if taken:
            self._held.add(name)
        return taken

    def release(self, name: str) -> None:
        """Let go of a lock."""
        self._held.discard(name)
        if self._session is not None:
            self._session.execute("select pg_advisory_unlock(%s)", (_number(name),))

    def sweep(self) -> None:
        """Nothing is left behind: a lock goes with its session."""

    def close(self) -> None:
        """Let go of all."""
        if self._session is not None:
            self._session.close()

    def _connect(self) -> psycopg.Connection | None:
        """A session of this process alone; None where a fork came between."""
        before = self._forks.last
        session = psycopg.connect(
            self._url,
            autocommit=True,
            **POSTGRES,
            application_name="watchkeeper-alive",
        )
        self._session = session  # from here on a child closes it
        if self._forks.under_way or self._forks.last is not before:
            session.close()  # a word to the server, so it ends whoever else has the socket
            return None
        return session

    def _close_in_child(self) -> None:
        """The server takes a session for alive as long as anybody has its socket."""
        # Once only: by the time of a child's child the number may be another file's.
        session, self._session = self._session, None
        if session is not None and not session.closed:
            self._of_parent = session  # kept, or its end would be told as a leak
            # Not a word to the server, which would end the parent's session.
            os.close(session.fileno())


class _Forks:
    """When this process forks. What it is given to call is called in each child."""

    def __init__(self, in_child: Callable[[], None]) -> None:
        # Each step here is atomic; a lock could be somebody else's in the child.
        self.last: object = None
        self._forking: set[int] = set()
        os.register_at_fork(before=self._begin, after_in_parent=self._end, after_in_child=in_child)

    @property
    def under_way(self) -> bool:
        """Whether one is going on."""
        return bool(self._forking)

    def _begin(self) -> None:
        self._forking.add(threading.get_ident())
        self.last = object()

    def _end(self) -> None:
        self.last = object()
        self._forking.discard(threading.get_ident())


def locks_of(store: Store) -> FileLocks | ServerLocks:
    """The kind that fits a store."""
    return ServerLocks(store.url) if store.path is None else FileLocks(store.path)


def _number(name: str) -> int:
    digest = hashlib.sha256(f"watchkeeper:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
