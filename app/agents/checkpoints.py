"""Where graphs keep the steps of background runs, so that a finished tool is not run again.

Only the process that has a run may write its steps: the newest step is where the next attempt
goes on, so one that another process wrote late would take the run back.
"""

import asyncio
import sqlite3
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


# The configuration of a run names its claim, in whose name steps are written.
CLAIM = "watchkeeper_claim"
# The run and the claim of the step that is being written.
_claimed: ContextVar[tuple[str, str] | None] = ContextVar("claimed", default=None)


class Checkpoints:
    """The steps of runs that have not ended, by the id of the run."""

    def __init__(self, saver: BaseCheckpointSaver[Any]) -> None:
        self.saver = saver

    async def delete_steps(self, run_ids: Iterable[str]) -> None:
        """Drop the steps of runs whose results are stored."""
        for run_id in run_ids:
            await self.saver.adelete_thread(run_id)


@asynccontextmanager
async def opened(url: str, held: str) -> AsyncIterator[Checkpoints]:
    """Open them for a store: a file beside a SQLite store, tables of PostgreSQL's.

    `held` is the statement that finds a run of PostgreSQL's by its id and its claim, and keeps it
    so until the step is written. A file needs none: there nobody loses a run and lives.
    """
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        async with _in_file(path.with_suffix(".steps")) as saver:
            yield Checkpoints(saver)
    else:
        async with _in_server(url, held) as saver:
            yield Checkpoints(saver)


_GONE = (psycopg.OperationalError, psycopg.InterfaceError, sqlite3.OperationalError)


class _Patient(BaseCheckpointSaver[Any]):
    """A store that is away or full does not take a run with it: it is tried until the deadline."""

    async def aput(self, config: RunnableConfig, *asked: Any, **named: Any) -> Any:
        with _in_the_name_of(config):
            return await _until_there(super().aput, config, *asked, **named)

    async def aput_writes(self, config: RunnableConfig, *asked: Any, **named: Any) -> None:
        with _in_the_name_of(config):
            await _until_there(super().aput_writes, config, *asked, **named)

    async def aget_tuple(self, *asked: Any, **named: Any) -> Any:
        return await _until_there(super().aget_tuple, *asked, **named)


@contextmanager
def _in_the_name_of(config: RunnableConfig) -> Iterator[None]:
    run = config["configurable"]
    claim_token = run.get(CLAIM)
    before = _claimed.set(None if claim_token is None else (run["thread_id"], claim_token))
    try:
        yield
    finally:
        _claimed.reset(before)


async def _until_there(work: Callable[..., Awaitable[T]], *asked: Any, **named: Any) -> T:
    while True:
        try:
            return await work(*asked, **named)
        except _GONE as refused:
            if remaining() <= _AGAIN_S:
                raise StoreUnavailable from refused  # and not a fault of the agent's
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
async def _in_server(url: str, held: str) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver  # noqa: PLC0415 - one of two
    from psycopg.rows import dict_row  # noqa: PLC0415
    from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415

    class Saver(_Patient, AsyncPostgresSaver):
        @asynccontextmanager
        async def _cursor(self, *, pipeline: bool = False) -> AsyncIterator[Any]:
            """What the library reads and writes with; a step is one transaction with its claim."""
            claim_token = _claimed.get()
            # What is sent through one pipeline is one transaction.
            async with super()._cursor(pipeline=pipeline or claim_token is not None) as cursor:
                if claim_token is not None:
                    await cursor.execute(held, claim_token)
                    if await cursor.fetchone() is None:
                        raise HandedOver
                yield cursor

    # A connection is checked before it is lent: a server that restarts leaves dead ones behind.
    # Of new ones the pool asks less and less often while the server is away, so it is told to
    # stop soon: whoever wants one makes it begin anew.
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
    """Reads back what the library itself writes: a store is no place to load classes from."""
    return JsonPlusSerializer(allowed_msgpack_modules=None)
