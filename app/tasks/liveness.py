"""Which processes are alive: each holds a lock that dies with it.

A lock file where the store is a file, a session's advisory lock on PostgreSQL. A process that
hangs keeps its lock; its runs have deadlines of their own.
"""

import fcntl
import hashlib
from pathlib import Path
from typing import IO, Protocol

import psycopg
import sqlalchemy as sa

from app.tasks.store import POSTGRES, Store


class Locks(Protocol):
    """Locks by the name of a process. Every method blocks, and raises OSError or psycopg.Error."""

    def take(self, name: str) -> bool:
        """Take a process's lock, if nobody has it."""
        ...

    def give_back(self, name: str) -> None:
        """Let go of a lock that was taken."""
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

    def take(self, name: str) -> bool:
        """Take a process's lock, if nobody has it."""
        if name in self._held:
            return True
        file = (self._folder / name).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._held[name] = file
        return True

    def give_back(self, name: str) -> None:
        """Let go of a lock; its process is gone, so its file goes too."""
        with self._held.pop(name):
            (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of all."""
        for name in list(self._held):
            self.give_back(name)


class ServerLocks:
    """Advisory locks of one session; they need a direct connection, not a transaction pool."""

    # A restart of the server takes everybody's lock at once: one that is free for this long is
    # that of a process which is gone.
    grace_s = 2.0

    def __init__(self, url: sa.URL) -> None:
        self._url = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._session: psycopg.Connection | None = None
        self._held: set[str] = set()

    def take(self, name: str) -> bool:
        """Take a process's lock, if nobody has it; again after a lost connection."""
        if self._session is None or self._session.closed or self._session.broken:
            self._held.clear()
            self._session = psycopg.connect(
                self._url,
                autocommit=True,
                **POSTGRES,
                application_name="watchkeeper-alive",
            )
        if name in self._held:
            self._session.execute("select 1")
            return True
        asked = self._session.execute("select pg_try_advisory_lock(%s)", (_number(name),))
        taken = bool((asked.fetchone() or (False,))[0])
        if taken:
            self._held.add(name)
        return taken

    def give_back(self, name: str) -> None:
        """Let go of a lock."""
        self._held.discard(name)
        if self._session is not None:
            self._session.execute("select pg_advisory_unlock(%s)", (_number(name),))

    def close(self) -> None:
        """Let go of all."""
        if self._session is not None:
            self._session.close()


def locks_of(store: Store) -> FileLocks | ServerLocks:
    """The kind that fits a store."""
    return ServerLocks(store.url) if store.path is None else FileLocks(store.path)


def _number(name: str) -> int:
    digest = hashlib.sha256(f"watchkeeper:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
