"""Runs whose deadline is over, as the store has it, while a process is at work on them."""

import sqlite3
from pathlib import Path

from tests import fakes
from tests.service import served, until
from tests.tasks.background import calling, ended, submit, url_in


async def test_whoever_has_a_late_run_has_his_time(tmp_path: Path) -> None:
    """It is not taken from him at once, however long the deadline has been over."""
    tools = fakes.ToolDesk(3.0)
    async with served({"slow": calling("nap", tools)}, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk)
        await until(lambda: tools.started, 20)
        with sqlite3.connect(tmp_path / "store.sqlite", timeout=20) as file:
            file.execute(
                "update workflow_status set attributes = json_set(attributes, '$.deadline_at', 1.0)"
            )
        task = await ended(desk, task_id)
    assert (task["status"], task["attempts"]) == ("completed", 1)
