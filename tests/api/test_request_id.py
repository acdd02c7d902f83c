"""Every response carries the id of its request, the caller's own where it can be used."""

import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests import fakes, faults
from tests.service import Served, served

pytestmark = pytest.mark.asyncio(loop_scope="module")

GENERATED_ID = re.compile(r"[0-9a-f]{32}")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk() -> AsyncIterator[Served]:
    tools = fakes.ToolDesk().tools()
    async with served({"orders": fakes.build("create_agent", faults.model(), tools)}) as service:
        yield service


@pytest.mark.parametrize("offered", ["abc", "0-9._A", "x" * 128])
async def test_request_id_echoed(desk: Served, offered: str) -> None:
    """A caller's own request id comes back."""
    response = await desk.client.get("/health", headers={"x-request-id": offered})
    assert response.headers.get_list("x-request-id") == [offered]


@pytest.mark.parametrize("offered", ["", "a b", "x" * 129, "<script>", "a,b", "\u00e9"])
async def test_request_id_made(desk: Served, offered: str) -> None:
    """A request id that cannot be used is replaced by a new one."""
    headers = {b"x-request-id": offered.encode("latin-1")}
    response = await desk.client.get("/health", headers=headers)
    assert GENERATED_ID.fullmatch(response.headers["x-request-id"])


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/agent"), ("POST", "/agents/nobody"), ("GET", "/agents"), ("GET", "/runs"),
     ("GET", "/runs/none"), ("DELETE", "/runs/none"), ("GET", "/nowhere"), ("PUT", "/agent"),
     ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/health/ready")],
)  # fmt: skip
async def test_every_response_has_a_request_id(desk: Served, method: str, path: str) -> None:
    """Every response, of whatever kind, carries one request id."""
    response = await desk.client.request(method, path)
    assert len(response.headers.get_list("x-request-id")) == 1
