"""The database of everything that must survive a restart: a SQLite file, or PostgreSQL."""

import asyncio
import fcntl
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar
from urllib.parse import quote, quote_plus

import psycopg
import sqlalchemy as sa
import tenacity
from sqlalchemy import event

from app.runs.errors import StoreUnavailable

P = ParamSpec("P")
T = TypeVar("T")

# A caller waits this long for the store before the call raises StoreUnavailable.
ANSWER_S = 2.0
# A process waits this long for another process that opens the store.
_OPENING_S = 60.0
_OPENING_LOCK_NUMBER = 7261952
# Shortest and longest time between two attempts to acquire a lock.
_LOCK_WAIT_S = (0.01, 0.03)
_THREADS = 8
# SQLite waits this long for other writers; the connections of the engine wait longer.
_CALLER_BUSY_MS, _WORKER_BUSY_MS = 1_500, 30_000
# PostgreSQL ends a transaction that is idle for this long. Its process hangs, or is dead and has
# left its socket to a forked child; until then its rows are locked.
_HELD_MS = 10_000
_GONE = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError)
# The time of day in the store, in seconds since the epoch. On PostgreSQL it goes on within a
# transaction, which `now()` does not.
_FILE_NOW = "(julianday('now') - 2440587.5) * 86400.0"
_SERVER_NOW = "extract(epoch from clock_timestamp())::float8"
# Errors that a value causes in Python, in the driver or in the database. No outage causes them.
BAD_CONTENT = (
    sa.exc.DataError,
    sa.exc.IntegrityError,
    ValueError,
    TypeError,
    OverflowError,
    RecursionError,
)
POSTGRES: dict[str, Any] = {
    "connect_timeout": 2,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


def refuses_content(refused: BaseException) -> bool:
    """Whether the store or its driver can never take the value.

    Every other error is about the state of the store: the same value may be stored later.
    """
    is_unbound = isinstance(refused, sa.exc.StatementError)  # it did not reach the driver
    return isinstance(refused, BAD_CONTENT) or (
        is_unbound and not isinstance(refused, sa.exc.DBAPIError)
    )


class Store:
    """One database. Database calls block, so `call` runs them on the store's own threads."""

    def __init__(self, url: str, reserve_bytes: int = 0) -> None:
        """The URL is `sqlite:///PATH` or `postgresql://…`. Raises ValueError for any other URL.

        The store has no room for new runs once its disk has less than `reserve_bytes` left.
        """
        self.reserve_bytes = reserve_bytes
        try:
            self.url = sa.make_url(url)
        except (sa.exc.ArgumentError, ValueError):
            raise ValueError("it is no URL") from None  # the cause may quote a password
        if self.url.get_backend_name() not in ("sqlite", "postgresql"):
            raise ValueError("it is neither sqlite:///PATH nor postgresql://…")
        if self.is_file and self.url.database in (None, "", ":memory:"):
            raise ValueError("it names no file")
        self.path = Path(self.url.database or "") if self.is_file else None
        # `calls` serves callers and fails early; `worker` serves runs, and waits.
        # A server has few connections to give; connections to a file are cheap.
        worker_connections = (4 if self.is_file else 2) * _THREADS
        self.calls = self._engine(_CALLER_BUSY_MS)
        # The connections of `calls` without a transaction, which would cost two round trips more.
        self.looks = (
            self.calls
            if self.is_file
            else self.calls.execution_options(isolation_level="AUTOCOMMIT")
        )
        self.worker = self._engine(_WORKER_BUSY_MS, pool_size=worker_connections, wait_s=30.0)
        self._call_threads = ThreadPoolExecutor(_THREADS, "watchkeeper-store")
        self._worker_threads = ThreadPoolExecutor(_THREADS, "watchkeeper-store-work")
        self._current_call = threading.local()
        self._closed = False

    @property
    def is_file(self) -> bool:
        """Whether it is a SQLite file."""
        return self.url.get_backend_name() == "sqlite"

    @property
    def now(self) -> sa.ColumnElement[float]:
        """The moment at which the database executes a statement, in seconds since the epoch."""
        return now(is_file=self.is_file)

    def prepare(self) -> None:
        """Create the file and switch it to WAL, under a lock: two processes at once would collide.

        Blocks. Raises StoreUnavailable if the store cannot be reached.
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
        """Keep other processes from opening the store. Blocks, for a minute at most."""
        if self.path is not None:
            with _alone(self.path.with_suffix(".opening")):
                yield
            return
        url = self.url.set(drivername="postgresql").render_as_string(hide_password=False)
        timeout_s = POSTGRES["connect_timeout"]
        with psycopg.connect(url, autocommit=True, connect_timeout=timeout_s) as session:
            # It tries again and again: a statement that waits would block the creation of indexes.
            attempt = "select pg_try_advisory_lock(%s)"
            number = (_OPENING_LOCK_NUMBER,)
            wait_for_lock(
                lambda: bool((session.execute(attempt, number).fetchone() or (False,))[0]),
                _OPENING_S,
            )
            yield

    def in_thread(self, work: Callable[..., T], /, *args: Any) -> "Future[T]":
        """Run work of the process itself on a thread, without a time limit."""
        return self._worker_threads.submit(work, *args)

    async def call(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work for a caller. Raises StoreUnavailable, within seconds."""
        if self._closed:
            raise StoreUnavailable
        given_up = threading.Event()

        def run() -> T:
            self._current_call.given_up = given_up
            return work(*args, **kwargs)

        try:
            # Not `wait_for`, which on Python 3.11 loses a cancellation that meets the end.
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.wrap_future(self._call_threads.submit(run))
        except (*_GONE, TimeoutError) as refused:
            raise StoreUnavailable from refused
        finally:
            given_up.set()

    async def acquire(self, work: Callable[[], T], undo: Callable[[T], object]) -> T:
        """Run blocking work that acquires something for a caller, as `call` does.

        A caller that gives up during the commit has acquired it nevertheless. So `undo` gets the
        late result, on a thread of the process itself. If that fails, the lease has an end.
        """
        late: Future[T] = Future()

        def run() -> T:
            result = work()
            late.set_result(result)
            return result

        def submit_undo(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the store was closed
                self.in_thread(undo, late.result())

        try:
            return await self.call(run)
        except (StoreUnavailable, asyncio.CancelledError):
            late.add_done_callback(submit_undo)
            raise

    @contextmanager
    def change(self) -> Iterator[sa.Connection]:
        """A transaction of a `call`. It is rolled back if the caller has given up. Blocks.

        That caller has received StoreUnavailable and may have changed the row since: a late commit
        would undo that change. A caller that gives up during the commit needs `acquire`.
        """
        with self.calls.begin() as connection:
            yield connection
            if self._current_call.given_up.is_set():
                raise StoreUnavailable

    def why(self, refused: BaseException) -> str:
        """Return the driver's reason for an error: one line, without statement and passwords."""
        cause: BaseException | None = refused
        while cause is not None:
            if isinstance(cause, OSError | sqlite3.Error | psycopg.Error):
                reason = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
                first = reason.strip().partition("\n")[0]
                for secret in self._secrets():
                    first = first.replace(secret, "***")
                return first or type(cause).__name__
            cause = cause.__cause__ or cause.__context__
        return type(refused).__name__

    def _secrets(self) -> Iterator[str]:
        """Every password in the URL, plain and percent-encoded."""
        parameters = [(name, each) for name, each in self.url.normalized_query.items()]
        for name, values in (("password", (self.url.password,)), *parameters):
            for value in values if "password" in name.lower() else ():
                if value:
                    yield from (value, quote(value, safe=""), quote_plus(value))

    def free_bytes(self) -> int | None:
        """Free bytes on the disk of the file; None for a server."""
        return shutil.disk_usage(self.path.parent).free if self.path else None

    def has_room(self) -> bool:
        """Whether new runs may be accepted."""
        free = self.free_bytes()
        return free is None or free >= self.reserve_bytes

    def close(self) -> None:
        """Close every connection."""
        self._closed = True
        for pool in (self._call_threads, self._worker_threads):
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
                # Another session may hold a row for as long as its process hangs.
                connection.execute(f"set lock_timeout = {busy_ms}")
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
                # The engine reads milliseconds, which older libraries (Debian 12) do not return.
                connection.create_function("unixepoch", -1, lambda *_: time.time())

        return engine


def now(*, is_file: bool) -> sa.ColumnElement[float]:
    """Return the time of day in a store, in seconds since the epoch.

    Processes compare moments with it, because their own clocks may differ.
    """
    return sa.literal_column(_FILE_NOW if is_file else _SERVER_NOW, sa.Float)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock on a file; other processes wait for it."""
    with lock.open("a") as file:

        def acquire() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        wait_for_lock(acquire, _OPENING_S)
        yield


def wait_for_lock(acquire: Callable[[], bool], timeout_s: float) -> None:
    """Call `acquire` until it returns true. Blocks. Raises StoreUnavailable after the timeout."""

    def give_up(_: tenacity.RetryCallState) -> NoReturn:
        raise StoreUnavailable

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_not_result(bool),
        wait=tenacity.wait_random(*_LOCK_WAIT_S),
        stop=tenacity.stop_after_delay(timeout_s),
        retry_error_callback=give_up,
    )
    retrying(acquire)
