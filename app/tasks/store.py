"""The database behind everything that must survive: a SQLite file, or PostgreSQL by its URL."""

import asyncio
import fcntl
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote, quote_plus

import psycopg
import sqlalchemy as sa
from sqlalchemy import event

from app.runs.errors import StoreUnavailable

P = ParamSpec("P")
T = TypeVar("T")

# How long a caller may be held by the store before it is told that the store is not there.
ANSWER_S = 2.0
# How long a process waits for another one that opens the store, and the number of that lock.
_OPENING_S = 60.0
_OPENING = 7261952
_THREADS = 8
# SQLite waits for other writers this long; DBOS's own connections wait longer.
_CALLER_BUSY_MS, _WORKER_BUSY_MS = 1_500, 30_000
# A process that hangs in a transaction, or whose forked child still has its socket when it is dead,
# keeps rows from others for so long.
_HELD_MS = 10_000
_GONE = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)
# What is raised for a value, in Python, in the driver or in the database, and for no outage.
BAD_CONTENT = (sa.exc.DataError, ValueError, TypeError, OverflowError, RecursionError)
POSTGRES: dict[str, Any] = {
    "connect_timeout": 2,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


def refuses_content(refused: BaseException) -> bool:
    """Whether the store or its driver cannot take what it was given, and never will.

    All else is an outage, after which the same may be stored.
    """
    is_unbound = isinstance(refused, sa.exc.StatementError)  # the driver never got it
    return isinstance(refused, BAD_CONTENT) or (
        is_unbound and not isinstance(refused, sa.exc.DBAPIError)
    )


class Store:
    """One database. Its calls block, so `call` runs them on threads of its own."""

    def __init__(self, url: str, reserve_bytes: int = 0) -> None:
        """The URL is `sqlite:///PATH` or `postgresql://…`. Raises ValueError for another one.

        With less room than `reserve_bytes` on its disk there is none for new runs.
        """
        self.reserve_bytes = reserve_bytes
        try:
            self.url = sa.make_url(url)
        except (sa.exc.ArgumentError, ValueError):
            raise ValueError("it is no URL") from None  # what is wrong may be a password
        if self.url.get_backend_name() not in ("sqlite", "postgresql"):
            raise ValueError("it is neither sqlite:///PATH nor postgresql://…")
        if self.is_file and self.url.database in (None, "", ":memory:"):
            raise ValueError("it names no file")
        self.path = Path(self.url.database or "") if self.is_file else None
        # The process's own work waits where a caller would be refused. A server has few connections
        # to give, and a run has one for moments only; those to a file cost nobody anything.
        at_most = (4 if self.is_file else 2) * _THREADS
        self.calls = self._engine(_CALLER_BUSY_MS)
        # The same connections, for one look at one row: no transaction, which takes two more round
        # trips to a server.
        self.looks = (
            self.calls
            if self.is_file
            else self.calls.execution_options(isolation_level="AUTOCOMMIT")
        )
        self.worker = self._engine(_WORKER_BUSY_MS, pool_size=at_most, wait_s=30.0)
        self._pool = ThreadPoolExecutor(_THREADS, "watchkeeper-store")
        self._working = threading.local()
        self._closed = False
        self._patient = ThreadPoolExecutor(_THREADS, "watchkeeper-store-work")

    @property
    def is_file(self) -> bool:
        """Whether it is a SQLite file."""
        return self.url.get_backend_name() == "sqlite"

    def prepare(self) -> None:
        """Make the file ready, once for all processes: two that switch to WAL at once collide.

        Blocks. Raises StoreUnavailable when it cannot be reached.
        """
        try:
            if self.path is None:
                with self.calls.connect():
                    return
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.path.with_suffix(".lock")), sqlite3.connect(self.path) as file:
                file.execute("PRAGMA journal_mode=WAL")
        except (OSError, sqlite3.Error, sa.exc.SQLAlchemyError) as refused:
            raise StoreUnavailable from refused

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold off other processes that open the store. Blocks, for no longer than a minute."""
        if self.path is not None:
            with _alone(self.path.with_suffix(".opening")):
                yield
            return
        url = self.url.set(drivername="postgresql").render_as_string(hide_password=False)
        timeout_s = POSTGRES["connect_timeout"]
        with psycopg.connect(url, autocommit=True, connect_timeout=timeout_s) as session:
            # Asked again and again: a statement that waits would hold up indexes being made.
            asked = "select pg_try_advisory_lock(%s)"
            _until_acquired(lambda: (session.execute(asked, (_OPENING,)).fetchone() or (False,))[0])
            yield

    def in_thread(self, work: Callable[..., T], /, *args: Any) -> "Future[T]":
        """Do the process's own work with the store, for as long as it takes."""
        return self._patient.submit(work, *args)

    async def call(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do blocking work with the store. Raises StoreUnavailable, within seconds."""
        if self._closed:
            raise StoreUnavailable
        given_up = threading.Event()

        def called() -> T:
            self._working.given_up = given_up
            return work(*args, **kwargs)

        try:
            # Not `wait_for`, which on Python 3.11 loses a cancellation that meets the end.
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.wrap_future(self._pool.submit(called))
        except (*_GONE, TimeoutError) as refused:
            raise StoreUnavailable from refused
        finally:
            given_up.set()

    @contextmanager
    def change(self) -> Iterator[sa.Connection]:
        """A transaction of a `call`, undone when nobody waits for it any more. Blocks.

        Who was told that the store is away has gone on: what is done later, undoes what was done
        since.
        """
        with self.calls.begin() as connection:
            yield connection
            if self._working.given_up.is_set():
                raise StoreUnavailable

    def why(self, refused: BaseException) -> str:
        """Why the store was refused, as its driver says it: one line, and no statement in it."""
        cause: BaseException | None = refused
        while cause is not None:
            if isinstance(cause, OSError | sqlite3.Error | psycopg.Error):
                said = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
                first = said.strip().partition("\n")[0]
                for secret in self._secrets():
                    first = first.replace(secret, "***")
                return first or type(cause).__name__
            cause = cause.__cause__ or cause.__context__
        return type(refused).__name__

    def _secrets(self) -> Iterator[str]:
        """Every password in the URL, as it is and as it is written."""
        given = [(name, each) for name, each in self.url.normalized_query.items()]
        for name, values in (("password", (self.url.password,)), *given):
            for value in values if "password" in name.lower() else ():
                if value:
                    yield from (value, quote(value, safe=""), quote_plus(value))

    def free_bytes(self) -> int | None:
        """Room on the disk of the file; None where the store is elsewhere."""
        return shutil.disk_usage(self.path.parent).free if self.path else None

    def has_room(self) -> bool:
        """Whether new runs may be accepted."""
        free = self.free_bytes()
        return free is None or free >= self.reserve_bytes

    def close(self) -> None:
        """Let go of every connection."""
        self._closed = True
        for pool in (self._pool, self._patient):
            pool.shutdown(wait=False, cancel_futures=True)
        self.calls.dispose()
        self.worker.dispose()

    def _engine(
        self, busy_ms: int, pool_size: int = _THREADS, wait_s: float = ANSWER_S
    ) -> sa.Engine:
        if not self.is_file:
            url = self.url.set(drivername="postgresql+psycopg")
            server = sa.create_engine(
                url,
                pool_size=_THREADS,
                max_overflow=pool_size - _THREADS,
                pool_timeout=wait_s,
                pool_pre_ping=True,
                connect_args=POSTGRES,
            )

            @event.listens_for(server, "connect")
            def _bound(connection: Any, _: Any) -> None:
                connection.autocommit = True
                connection.execute(f"set idle_in_transaction_session_timeout = {_HELD_MS}")
                connection.autocommit = False

            return server
        engine = sa.create_engine(
            self.url, pool_size=_THREADS, max_overflow=pool_size - _THREADS + 4, pool_timeout=wait_s
        )

        @event.listens_for(engine, "connect")
        def _configure(connection: Any, _: Any) -> None:
            connection.isolation_level = "IMMEDIATE"  # writers queue up instead of colliding
            connection.execute(f"PRAGMA busy_timeout={busy_ms}")
            connection.execute("PRAGMA foreign_keys=ON")
            if sqlite3.sqlite_version_info < (3, 42):
                # DBOS asks for milliseconds, which older libraries (Debian 12) do not have.
                connection.create_function("unixepoch", -1, lambda *_: time.time())

        return engine


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock file; other processes wait."""
    with lock.open("a") as file:

        def taken() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        _until_acquired(taken)
        yield


def _until_acquired(taken: Callable[[], bool]) -> None:
    """Wait until a lock is taken. Raises StoreUnavailable when another process keeps it."""
    deadline = time.monotonic() + _OPENING_S
    while not taken():
        if time.monotonic() > deadline:
            raise StoreUnavailable
        time.sleep(0.02)
