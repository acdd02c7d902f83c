"""Checkpoints of background runs, so that a finished tool is not executed again.

Only the process that owns a run may write its checkpoints. The next attempt continues from the
newest one, so a late write by another process would set the run back.
"""

import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from app.runs.deadline import remaining
from app.runs.errors import HandedOver, StoreUnavailable
from app.runs.retries import retry_until_available

T = TypeVar("T")

_BUSY_MS = 30_000
_CONNECTIONS = 8
_POOL_S = 5.0
# Give up on a server that does not respond: the kernel's own timeouts are many minutes.
_CONNECTION: dict[str, Any] = {
    "connect_timeout": 2,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


# Key of the run configuration that holds the claim token for checkpoint writes.
CLAIM = "watchkeeper_claim"
# Run id and claim token of the checkpoint that is being written.
_write_claim: ContextVar[tuple[str, str] | None] = ContextVar("claimed", default=None)


class Checkpoints:
    """The checkpoints of unfinished runs, by run id."""

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self.saver = saver

    async def delete_steps(self, run_ids: Iterable[str]) -> None:
        """Delete the checkpoints of runs whose results are stored."""
        for run_id in run_ids:
            await self.saver.adelete_thread(run_id)


@asynccontextmanager
async def opened(url: str, held: str) -> AsyncIterator[Checkpoints]:
    """Open the checkpoints of a store: a file beside SQLite, tables in PostgreSQL.

    `held` is the SQL statement that locks a run's row by run id and claim token until the
    checkpoint is written. SQLite needs none: a process cannot lose a run and survive.
    """
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        async with _open_file(path.with_suffix(".steps")) as saver:
            yield Checkpoints(saver)
    else:
        async with _open_server(url, held) as saver:
            yield Checkpoints(saver)


_UNAVAILABLE = (psycopg.OperationalError, psycopg.InterfaceError, sqlite3.OperationalError)


class _RetryingSaver(BaseCheckpointSaver[Any]):
    """Retries an unavailable or full store until the run's deadline."""

    async def aput(self, config: RunnableConfig, *args: Any, **kwargs: Any) -> Any:
        with _claim_of(config):
            return await _until_available(super().aput, config, *args, **kwargs)

    async def aput_writes(self, config: RunnableConfig, *args: Any, **kwargs: Any) -> None:
        with _claim_of(config):
            await _until_available(super().aput_writes, config, *args, **kwargs)

    async def aget_tuple(self, *args: Any, **kwargs: Any) -> Any:
        return await _until_available(super().aget_tuple, *args, **kwargs)


@contextmanager
def _claim_of(config: RunnableConfig) -> Iterator[None]:
    run = config["configurable"]
    claim_token = run.get(CLAIM)
    before = _write_claim.set(None if claim_token is None else (run["thread_id"], claim_token))
    try:
        yield
    finally:
        _write_claim.reset(before)


async def _until_available(operation: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
    deadline = time.monotonic() + remaining()
    try:
        return await retry_until_available(
            lambda: operation(*args, **kwargs), deadline=deadline, unavailable=_UNAVAILABLE
        )
    except _UNAVAILABLE as refused:
        raise StoreUnavailable from refused  # not a failure of the agent


@asynccontextmanager
async def _open_file(path: Path) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    import aiosqlite  # noqa: PLC0415 - one of two
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver  # noqa: PLC0415

    class Saver(_RetryingSaver, AsyncSqliteSaver):
        pass

    async with aiosqlite.connect(path) as connection:
        await connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        # Steps lost in a power failure are executed again. Accepted runs are stored elsewhere.
        await connection.execute("PRAGMA synchronous=NORMAL")
        saver = Saver(connection, serde=_serializer())
        await saver.setup()
        yield saver


@asynccontextmanager
async def _open_server(url: str, held: str) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver  # noqa: PLC0415 - one of two
    from psycopg.rows import dict_row  # noqa: PLC0415
    from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415

    class Saver(_RetryingSaver, AsyncPostgresSaver):
        @asynccontextmanager
        async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[Any]:
            """Check the claim token and write the checkpoint in one transaction."""
            claim_token = _write_claim.get()
            # One pipeline is one transaction.
            async with super()._cursor(pipeline=pipeline or claim_token is not None) as cursor:
                if claim_token is not None:
                    await cursor.execute(held, claim_token)
                    if await cursor.fetchone() is None:
                        raise HandedOver
                yield cursor

    # The pool checks a connection before use: a server restart leaves dead connections.
    # While the server is down, the pool backs off ever longer. A short reconnect timeout makes
    # the next request start the attempts again.
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        url,
        min_size=1,
        max_size=_CONNECTIONS,
        timeout=_POOL_S,
        reconnect_timeout=_POOL_S,
        open=False,
        kwargs={
            **_CONNECTION,
            "autocommit": True,
            "prepare_threshold": 0,
            "row_factory": dict_row,
        },
        check=AsyncConnectionPool.check_connection,
    )
    async with pool:
        saver = Saver(pool, serde=_serializer())
        await saver.setup()
        yield saver


def _serializer() -> JsonPlusSerializer:
    """Return a serializer that loads no classes other than LangGraph's own types."""
    return JsonPlusSerializer(allowed_msgpack_modules=None)
