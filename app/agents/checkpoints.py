"""Where graphs keep the steps of background runs, so that a finished tool is not run again."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

_BUSY_MS = 30_000
_CONNECTIONS = 8


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


@asynccontextmanager
async def _in_file(path: Path) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    import aiosqlite  # noqa: PLC0415 - one of two
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver  # noqa: PLC0415

    async with aiosqlite.connect(path) as connection:
        await connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        # What a loss of power takes from here is done again; what was accepted is elsewhere.
        await connection.execute("PRAGMA synchronous=NORMAL")
        saver = AsyncSqliteSaver(connection, serde=_serializer())
        await saver.setup()
        yield saver


@asynccontextmanager
async def _in_server(url: str) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver  # noqa: PLC0415 - one of two
    from psycopg.rows import dict_row  # noqa: PLC0415
    from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415

    # A connection is checked before it is lent: a server that restarts leaves dead ones behind.
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
        url,
        min_size=1,
        max_size=_CONNECTIONS,
        open=False,
        kwargs={"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row},
        check=AsyncConnectionPool.check_connection,
    )
    async with pool:
        saver = AsyncPostgresSaver(pool, serde=_serializer())
        await saver.setup()
        yield saver


def _serializer() -> JsonPlusSerializer:
    """Reads back what the library itself writes: a store is no place to load classes from."""
    return JsonPlusSerializer(allowed_msgpack_modules=None)
