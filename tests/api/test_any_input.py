"""Any bytes at all: random JSON, bodies above the limit, and requests that are not HTTP."""

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import fakes, faults, wire
from tests.service import Served, served
from tests.wire import CANARY, is_problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"content-type": "application/json"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk() -> AsyncIterator[Served]:
    tools = fakes.ToolDesk().tools()
    async with served({"orders": fakes.build("create_agent", faults.model(), tools)}) as service:
        yield service
        service.books_balance()


@pytest.mark.parametrize("path", ["/agent", "/agents/orders"])
async def test_body_above_the_limit_is_413(desk: Served, path: str) -> None:
    """A body above the limit is 413."""
    body = json.dumps({"question": CANARY, "metadata": {"a": "x" * 3_000_000}}).encode()
    is_problem(await desk.client.post(path, content=body, headers=JSON), 413, "too_large")


async def test_chunked_body_above_the_limit_is_413(desk: Served) -> None:
    """A chunked body is cut at the limit."""

    async def chunks() -> AsyncIterator[bytes]:
        yield f'{{"question": "{CANARY}'.encode()
        for _ in range(40):
            yield b"x" * 100_000

    response = await desk.client.post("/agent", content=chunks(), headers=JSON)
    is_problem(response, 413, "too_large")


async def test_announced_length_above_the_limit_is_refused_unread(desk: Served) -> None:
    """A body whose announced length is above the limit is refused without being read."""
    announced = wire.request(headers={"content-length": "900000000"})
    is_problem(await wire.exchange(desk.url, announced), 413, "too_large")


@pytest.mark.parametrize(
    "sent",
    [b"FOO /agent HTTP/1.1\r\nhost: a\r\n\r\n", b"canary-5f1c\r\n\r\n",
     wire.request(headers={"content-length": "-5"}), wire.request(headers={"canary 5f1c": "x"})],
    ids=["method", "line", "length", "header"],
)  # fmt: skip
async def test_request_that_is_not_http_gets_a_problem(desk: Served, sent: bytes) -> None:
    """A request that is not HTTP is answered with a problem too."""
    reply = await wire.exchange(desk.url, sent)
    assert reply.headers["content-type"] == "application/problem+json"
    is_problem(reply, 400, reply.json()["code"])


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
bodies = anything | st.fixed_dictionaries(
    {"question": st.text() | anything},
    optional={
        "timeout": st.floats(0.001, 400) | anything,
        "max_iterations": st.integers(-1, 12) | anything,
        "thread_id": anything,
        "include_steps": st.booleans() | anything,
        "metadata": st.dictionaries(st.text(), st.text()) | anything,
    },
)


@given(body=bodies)
@settings(
    max_examples=150,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_any_json(desk: Served, body: Any) -> None:
    """Any JSON is answered, refused, or runs out of the time that it asked for."""
    began = time.monotonic()
    response = await desk.client.post("/agent", content=json.dumps(body), headers=JSON)
    assert response.status_code in (200, 422, 504), response.text
    if response.status_code == 504:
        assert body["timeout"] <= time.monotonic() - began
    if response.status_code == 422:
        is_problem(response, 422, "invalid_request")


@given(body=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
@settings(
    max_examples=60,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_any_bytes(desk: Served, body: bytes) -> None:
    """Any bytes are refused, as no JSON or as no question."""
    response = await desk.client.post("/agent", content=body, headers=JSON)
    codes = {400: "invalid_json", 422: "invalid_request"}
    is_problem(response, response.status_code, codes[response.status_code])
