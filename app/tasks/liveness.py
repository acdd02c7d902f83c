"""Shows which processes are alive: each holds a lock that ends with the process.

A file store has one lock file for each process. On PostgreSQL the lock is an advisory lock of a
session. A process that hangs keeps its lock; its runs have deadlines of their own. A child that a
tool forked does not inherit the lock when it outlives the process.
"""

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeAlias

import psycopg
import sqlalchemy as sa

from app.tasks.store import POSTGRES, Store


class FileLocks:
    """One file for each process, beside the store. Every method blocks and may raise OSError."""

    # A living process cannot lose the lock of its file: if the lock is free, the process is dead.
    grace_s = 0.0

    def __init__(self, store: Path) -> None:
        self._folder = store.with_suffix(".alive")
        self._folder.mkdir(exist_ok=True)
        self._held: dict[str, IO[str]] = {}

    def acquire(self, name: str) -> bool:
        """Acquire the lock of a process. Returns false if another process holds it."""
        if name in self._held:
            return True
        file = (self._folder / name).open("a")
        try:
            # SQLite uses this kind of lock too. Forked children do not inherit it, unlike flock.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The former holder may have removed the file after we opened it. Only the holder of
            # the lock removes a file, so a file that still exists is now ours.
            removed = os.fstat(file.fileno()).st_nlink == 0
        except BlockingIOError:
            removed = True
        if removed:
            file.close()
            return False
        self._held[name] = file
        return True

    def release(self, name: str) -> None:
        """Release a lock and remove its file: no process needs it."""
        with self._held.pop(name):
            (self._folder / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove the files of killed processes, before this process acquires its own lock.

        This may also remove a file that another process has created but not locked. That process
        creates it again.
        """
        for file in list(self._folder.iterdir()):
            if self.acquire(file.name):
                self.release(file.name)

    def close(self) -> None:
        """Release every lock."""
        for name in list(self._held):
            self.release(name)


class ServerLocks:
    """Advisory locks of one session. Every method blocks and may raise psycopg.Error.

    They need a direct connection to the server, not a transaction pool.
    """

    # A restart of the server releases every lock. If a lock is free for this long, its process is
    # dead.
    grace_s = 2.0

    def __init__(self, url: sa.URL) -> None:
        self._url = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._session: psycopg.Connection | None = None
        self._of_parent: psycopg.Connection | None = None
        self._held: set[str] = set()
        self._forks = _Forks(self._close_in_child)

    def acquire(self, name: str) -> bool:
        """Acquire the lock of a process, again after a lost connection.

        Returns false if another process holds it.
        """
        if self._session is None or self._session.closed or self._session.broken:
            self._held.clear()
            self._session = self._connect()
            if self._session is None:
                return False
        if name in self._held:
            self._session.execute("select 1")
            return True
        reply = self._session.execute("select pg_try_advisory_lock(%s)", (_number(name),))
        acquired = bool((reply.fetchone() or (False,))[0])
        if acquired:
            self._held.add(name)
        return acquired

    def release(self, name: str) -> None:
        """Release a lock."""
        self._held.discard(name)
        if self._session is not None:
            self._session.execute("select pg_advisory_unlock(%s)", (_number(name),))

    def sweep(self) -> None:
        """Do nothing: the server releases the locks of a session that ends."""

    def close(self) -> None:
        """Release every lock."""
        if self._session is not None:
            self._session.close()

    def _connect(self) -> psycopg.Connection | None:
        """Open a session of this process alone. Returns None if a fork happened meanwhile."""
        before = self._forks.last
        session = psycopg.connect(
            self._url,
            autocommit=True,
            **POSTGRES,
            application_name="watchkeeper-alive",
        )
        self._session = session  # from now on a forked child closes it
        if self._forks.under_way or self._forks.last is not before:
            session.close()  # the server ends the session, also for a child with the socket
            return None
        return session

    def _close_in_child(self) -> None:
        """Close the socket: the server keeps a session as long as any process has its socket."""
        # Once only: in a child of the child the same number may be another file.
        session, self._session = self._session, None
        if session is not None and not session.closed:
            self._of_parent = session  # without a reference, Python would warn of a leak
            # Close the socket only: a message to the server would end the parent's session.
            os.close(session.fileno())


class _Forks:
    """Observes forks of this process, and calls `in_child` in each child."""

    def __init__(self, in_child: Callable[[], None]) -> None:
        # Every step is atomic. A lock could be held by a thread that the child does not have.
        self.last: object = None
        self._forking: set[int] = set()
        os.register_at_fork(before=self._begin, after_in_parent=self._end, after_in_child=in_child)

    @property
    def under_way(self) -> bool:
        """Whether a fork is in progress."""
        return bool(self._forking)

    def _begin(self) -> None:
        self._forking.add(threading.get_ident())
        self.last = object()

    def _end(self) -> None:
        self.last = object()
        self._forking.discard(threading.get_ident())


Locks: TypeAlias = FileLocks | ServerLocks


def locks_of(store: Store) -> Locks:
    """Return the locks of the store's kind."""
    return ServerLocks(store.url) if store.path is None else FileLocks(store.path)


def _number(name: str) -> int:
    digest = hashlib.sha256(f"watchkeeper:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
