"""Where graphs keep the steps of background runs, so that a finished tool is not run again."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from app.runs.deadline import remaining

T = TypeVar("T")

_BUSY_MS = 30_000
_CONNECTIONS = 8
_POOL_S = 5.0
_AGAIN_S = 0.5
# A server that does not answer is left after these: the kernel's own patience is many minutes.
_CONNECTION: dict[str, Any] = {
    "connect_timeout": 2,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


class Checkpoints:
    """The steps of runs that have not ended, by the id of the run."""

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self.saver = saver

    async def forget(self, run_ids: Iterable[str]) -> None:
        """Drop the steps of runs whose results are stored."""
        for run_id in run_ids:
            await self.saver.adelete_thread(run_id)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Checkpoints]:
    """Open them for a store: a file beside a SQLite store, tables of PostgreSQL's."""
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        async with _in_file(path.with_suffix(".steps")) as saver:
            yield Checkpoints(saver)
    else:
        async with _in_server(url) as saver:
            yield Checkpoints(saver)


class _Patient(BaseCheckpointSaver[Any]):
    """A store that is away or full does not take a run with it: it is tried until the deadline."""

    async def aput(self, *asked: Any, **named: Any) -> Any:
        return await _until_there(super().aput, *asked, **named)

    async def aput_writes(self, *asked: Any, **named: Any) -> None:
        await _until_there(super().aput_writes, *asked, **named)

    async def aget_tuple(self, *asked: Any, **named: Any) -> Any:
        return await _until_there(super().aget_tuple, *asked, **named)


async def _until_there(work: Callable[..., Awaitable[T]], *asked: Any, **named: Any) -> T:
    while True:
        try:
            return await work(*asked, **named)
        except (psycopg.OperationalError, psycopg.InterfaceError, sqlite3.OperationalError):
            if remaining() <= _AGAIN_S:
                raise
            await asyncio.sleep(_AGAIN_S)


@asynccontextmanager
async def _in_file(path: Path) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    import aiosqlite  # noqa: PLC0415 - one of two
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver  # noqa: PLC0415

    class Saver(_Patient, AsyncSqliteSaver):
        pass

    async with aiosqlite.connect(path) as connection:
        await connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        # What a loss of power takes from here is done again; what was accepted is elsewhere.
        await connection.execute("PRAGMA synchronous=NORMAL")
        saver = Saver(connection, serde=_serializer())
        await saver.setup()
        yield saver


@asynccontextmanager
async def _in_server(url: str) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver  # noqa: PLC0415 - one of two
    from psycopg.rows import dict_row  # noqa: PLC0415
    from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415

    class Saver(_Patient, AsyncPostgresSaver):
        pass

    # A connection is checked before it is lent: a server that restarts leaves dead ones behind.
    # Of new ones the pool asks less and less often while the server is away, so it is told to
    # stop soon: whoever wants one makes it begin anew.
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        url.replace("+psycopg", "", 1),
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
    """Reads back what the library itself writes: a store is no place to load classes from."""
    return JsonPlusSerializer(allowed_msgpack_modules=None)
