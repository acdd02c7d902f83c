"""What the store refuses for what is in it ends its run once; only outages are tried again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.runs.model import Outcome
from app.runs.tasks import Result
from app.tasks.store import refuses_content
from app.tasks.transitions import Claim
from tests import fakes
from tests.service import served
from tests.tasks.background import calling, ended, quick, submit, url_in

REFUSED = sa.exc.DataError("insert", {}, Exception("cannot be stored"))


def _not_utf_8() -> None:
    "\udcaf".encode()


def _holds_itself() -> None:
    value: list[Any] = []
    value.append(value)
    json.dumps(value)


@pytest.mark.parametrize("broken", [_not_utf_8, _holds_itself, lambda: json.dumps(object())])
def test_content_that_cannot_be_encoded_is_permanent(broken: Callable[[], object]) -> None:
    """Content that cannot be encoded now cannot be encoded later."""
    with pytest.raises((ValueError, TypeError)) as raised:
        broken()
    assert refuses_content(raised.value)


@pytest.mark.parametrize(
    ("error", "is_content"),
    [
        (REFUSED, True),
        (sa.exc.IntegrityError("insert", {}, Exception("constraint")), True),
        (sa.exc.StatementError("no form", "insert", {}, Exception()), True),
        (sa.exc.OperationalError("insert", {}, Exception("disk full")), False),
        (sa.exc.InterfaceError("insert", {}, Exception("closed")), False),
        (sa.exc.InternalError("insert", {}, Exception("read only")), False),
        (sa.exc.ProgrammingError("insert", {}, Exception("no such table")), False),
        (sa.exc.TimeoutError(), False),
        (OSError("gone"), False),
        (RuntimeError("closed"), False),
    ],
)
def test_outages_are_temporary(error: Exception, is_content: bool) -> None:
    """An error about the state of the database may pass."""
    assert refuses_content(error) is is_content


async def test_refused_row_fails_the_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose row is refused fails once, before its tool starts."""
    appending, tools = Claim.appending, fakes.ToolDesk()

    def refuse(self: Claim, offset: int, row: Any) -> Any:
        if not any(name == "tool_start" for name, _ in row["events"]):
            return appending(self, offset, row)
        return [self.tables.insert_once({"workflow_uuid": self.task_id, "key": None})]

    monkeypatch.setattr(Claim, "appending", refuse)
    async with served({"a": calling("look", tools)}, store_url=url_in(tmp_path)) as desk:
        task = await ended(desk, await submit(desk))
        assert (task["status"], task["attempts"]) == ("failed", 1)
        assert task["error"]["code"] == "agent_failed"
        assert task["error"]["detail"] == "The store refuses what the agent did or answered."
        assert desk.end_of(task["task_id"]).outcome == "failed"
        assert tools.started == []


async def test_refused_result_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose result is refused is stored as failed, and its tools are not called again."""
    end, tools = Claim.end, fakes.ToolDesk()

    def refuse(self: Claim, result: Result, *others: Any) -> None:
        if result.outcome is Outcome.COMPLETED:
            raise REFUSED
        end(self, result, *others)

    monkeypatch.setattr(Claim, "end", refuse)
    async with served({"a": calling("look", tools)}, store_url=url_in(tmp_path)) as desk:
        task_id = await submit(desk, include_steps=True)
        task = await ended(desk, task_id)
        assert (task["status"], task["attempts"], tools.started) == ("failed", 1, ["look"])
        problem = task["error"]
        assert (problem["code"], problem["outcome"]) == ("agent_failed", "failed")
        assert (problem["tool_calls"], problem["steps"]) == (1, [])
        [listed] = (await desk.client.get("/agent/async")).json()["tasks"]
        assert listed["status"] == "failed"


async def test_result_during_an_outage_is_stored_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result that could not be stored during an outage is stored after it."""
    end = Claim.end
    outages = [sa.exc.OperationalError("insert", {}, Exception("gone"))]

    def refuse(*asked: Any) -> None:
        if outages:
            raise outages.pop()
        end(*asked)

    monkeypatch.setattr(Claim, "end", refuse)
    async with served({"a": quick()}, store_url=url_in(tmp_path)) as desk:
        assert (await ended(desk, await submit(desk)))["status"] == "completed"
