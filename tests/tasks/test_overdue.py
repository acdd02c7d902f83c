"""Runs whose stored deadline has passed while a process still executes them."""

import sqlite3
from pathlib import Path

from tests import fakes
from tests.service import served
from tests.tasks.background import calling, ended, submit, url_in


async def test_owner_of_an_overdue_run_gets_a_grace_period(tmp_path: Path) -> None:
    """An overdue run is not taken from its owner at once, however late it is."""
    tools = fakes.ToolDesk(3.0)
    async with served({"slow": calling("nap", tools)}, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk)
        await tools.started_calls()
        with sqlite3.connect(tmp_path / "store.sqlite", timeout=20) as file:
            file.execute(
                "update workflow_status set attributes = json_set(attributes, '$.deadline_at', 1.0)"
            )
        task = await ended(desk, task_id)
    assert (task["status"], task["attempts"]) == ("completed", 1)
