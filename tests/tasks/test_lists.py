"""Lists of background runs: newest first, by status and agent, page by page."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests import fakes, faults
from tests.service import Served, served
from tests.tasks.background import ON_FILE, calling, ended, quick, submit, url_in

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    broken = fakes.build("create_agent", faults.model(error=ConnectionError()), [])
    agents = {"quick": quick(), "broken": broken, "slow": calling("nap", fakes.ToolDesk(60))}
    store = url_in(tmp_path_factory.mktemp("lists"))
    async with served(agents, store_url=store, max_background_runs=1) as service:
        yield service


async def listed(desk: Served, **query: Any) -> dict[str, Any]:
    response = await desk.client.get("/agent/async", params=query)
    assert response.status_code == 200, response.text
    page: dict[str, Any] = response.json()
    return page


def ids(page: dict[str, Any]) -> list[str]:
    return [task["task_id"] for task in page["tasks"]]


async def test_pages_list_every_run_once(desk: Served) -> None:
    """Pages list every run once, newest first, whatever is submitted meanwhile."""
    known = [await submit(desk, f"q{n}") for n in range(12)]
    seen, path, pages = list[str](), "/agent/async?limit=5&agent=quick", 0
    while path:
        response = await desk.client.get(path)
        page, pages = response.json(), pages + 1
        seen += ids(page)
        following = response.links.get("next", {}).get("url", "")
        assert bool(following) == bool(page["next"])
        assert not following or "agent=quick" in following
        path = following
        await submit(desk, "late", agent="quick")
    assert pages == 3
    assert seen == known[::-1]


async def test_list_by_status_and_agent(desk: Served) -> None:
    """Each status and each agent name selects its own runs and no others."""
    done = await submit(desk)
    limited = await submit(desk, max_iterations=1)
    failed = await submit(desk, agent="broken")
    late = await submit(desk, agent="slow", timeout=0.3)
    stopped = await submit(desk, agent="slow")
    await desk.client.delete(f"/agent/async/{stopped}")
    running = await submit(desk, agent="slow")
    for task_id in (done, limited, failed, late, stopped):
        await ended(desk, task_id)
    while ids(await listed(desk, status="running")) != [running]:  # noqa: ASYNC110 - over HTTP
        await asyncio.sleep(0.05)
    pending = await submit(desk, agent="slow")
    for status, task_id in (
        ("completed", done),
        ("iteration_limit", limited),
        ("failed", failed),
        ("timeout", late),
        ("cancelled", stopped),
        ("running", running),
        ("pending", pending),
    ):
        page = await listed(desk, status=status, limit=500)
        assert task_id in ids(page), status
        assert {task["status"] for task in page["tasks"]} == {status}
        assert {(task["result"], task["error"]) for task in page["tasks"]} == {(None, None)}
    assert set(ids(await listed(desk, agent="slow"))) == {late, stopped, running, pending}
    assert ids(await listed(desk, agent="slow", status="timeout")) == [late]
    for nobody in ("nobody", "no\0body"):
        assert ids(await listed(desk, agent=nobody)) == []
    for task_id in (pending, running):
        await desk.client.delete(f"/agent/async/{task_id}")


def _cursor(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "",
        "%%%",
        "\N{STEAM LOCOMOTIVE}",
        _cursor([1]),
        _cursor({"a": 1}),
        _cursor([None, 1]),
        _cursor([1, None]),
        _cursor([1, {}]),
        _cursor([1, [1]]),
        _cursor([10**400, 1]),
        _cursor([1, 10**30]),
        _cursor([float("inf"), 1]),
        _cursor(["a", "b"]),
        _cursor([True, True]),
        _cursor([True, "b"]),
        _cursor([1, "b"] if ON_FILE else [1, 2]),  # of the other kind of store
    ],
)
async def test_unknown_cursor_is_refused(desk: Served, cursor: str) -> None:
    """A cursor that no list returned is refused as an invalid query."""
    response = await desk.client.get("/agent/async", params={"cursor": cursor})
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize(
    "query", [{"status": "gone"}, {"limit": 0}, {"limit": 501}, {"limit": "many"}]
)
async def test_invalid_query_is_refused(desk: Served, query: dict[str, Any]) -> None:
    """An unknown status or a page of an impossible length is refused."""
    response = await desk.client.get("/agent/async", params=query)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
