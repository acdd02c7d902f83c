"""A run whose result the store refuses is taken over by the process that executed it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.runs.events import RunFinished, RunRecovered
from app.tasks.store import Store
from tests import fakes
from tests.parts.postgres import cluster
from tests.service import served, until
from tests.tasks.background import LONG_S, calling, ended, submit, view

# Each refuses every end of a run, as a constraint would; and the way back.
REFUSING = {
    "sqlite": (
        """create trigger refuses before update on workflow_status
        when new.status = 'SUCCESS' begin select raise(abort, 'refused'); end""",
        "drop trigger refuses",
    ),
    "postgresql": (
        """create function refuses() returns trigger language plpgsql as $$ begin
        if new.status = 'SUCCESS' then raise exception 'refused' using errcode = 'check_violation';
        end if; return new; end $$;
        create trigger refuses before update on dbos.workflow_status
        for each row execute function refuses()""",
        "drop trigger refuses on dbos.workflow_status",
    ),
}


@pytest.fixture(params=REFUSING)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.sqlite'}"
        return
    with cluster() as server:
        yield server.url


async def test_orphaned_run_is_requeued(url: str) -> None:
    """After some ten seconds the run is requeued, and ends without another call of its tool."""
    store = await asyncio.to_thread(Store, url)
    refuse, allow = REFUSING[store.url.get_backend_name()]

    def do(statement: str) -> None:
        with store.calls.begin() as connection:
            connection.execute(sa.text(statement))

    tools = fakes.ToolDesk()
    async with served({"a": calling("look", tools)}, store_url=url) as desk:
        await asyncio.to_thread(do, refuse)
        task_id = await submit(desk)
        await until(lambda: desk.facts_of(RunFinished), LONG_S)
        await asyncio.sleep(2)
        assert (await view(desk, task_id))["status"] == "running"
        await asyncio.to_thread(do, allow)
        await until(lambda: desk.facts_of(RunRecovered), LONG_S)
        [fell], [up] = desk.facts_of(RunFinished), desk.facts_of(RunRecovered)
        print(f"taken up after {up.at - fell.at:.1f} s")
        assert up.at - fell.at > 8
        task = await ended(desk, task_id)
        assert (task["status"], task["attempts"]) == ("completed", 2)
        assert task["result"]["tool_calls"] == 1
        assert tools.started == ["look"]
    await asyncio.to_thread(store.close)
