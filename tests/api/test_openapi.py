"""The OpenAPI document describes all that is served and nothing else; /docs needs no network."""

import mimetypes
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests import fakes, faults
from tests.service import Served, served

pytestmark = pytest.mark.asyncio(loop_scope="module")

RUN = {"200", "400", "404", "409", "413", "415", "422", "500", "503", "504"}
SUBMIT = {"202", "400", "404", "409", "413", "415", "422", "503"}
STATUSES: dict[tuple[str, str], set[str]] = {
    ("post", "/agent"): RUN,
    ("post", "/agents/{name}"): RUN,
    ("post", "/agent/stream"): RUN,
    ("post", "/agents/{name}/stream"): RUN,
    ("post", "/agent/async"): SUBMIT,
    ("post", "/agents/{name}/async"): SUBMIT,
    ("post", "/agent/async/{task_id}/retry"): {"202", "404", "409", "422", "503"},
    ("get", "/agent/async"): {"200", "422", "503"},
    ("get", "/agent/async/{task_id}"): {"200", "404", "422", "503"},
    ("get", "/agent/async/{task_id}/events"): {"200", "204", "404", "422", "503"},
    ("delete", "/agent/async/{task_id}"): {"200", "202", "404", "503"},
    ("get", "/threads/{thread_id}"): {"200", "404", "503"},
    ("delete", "/threads/{thread_id}"): {"204", "404", "409", "503"},
    ("get", "/agents"): {"200"},
    ("get", "/runs"): {"200", "422"},
    ("get", "/runs/{run_id}"): {"200", "404", "503"},
    ("get", "/runs/{run_id}/events"): {"200", "204", "404", "422", "503"},
    ("delete", "/runs/{run_id}"): {"200", "202", "404", "503"},
    ("get", "/metrics"): {"200"},
    ("get", "/health"): {"200"},
    ("get", "/health/live"): {"200"},
    ("get", "/health/ready"): {"200", "503"},
    ("get", "/health/startup"): {"200", "503"},
}


def _agents() -> dict[str, Any]:
    tools = fakes.ToolDesk().tools()
    return {"orders": fakes.build("create_agent", faults.model(), tools)}


calls = pytest.mark.parametrize(("method", "path"), STATUSES)
HEALTH = "/health/"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk() -> AsyncIterator[Served]:
    mimetypes.init()  # the first file that is served would read the system's table
    async with served(_agents()) as service:
        yield service


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def document(desk: Served) -> dict[str, Any]:
    response = await desk.client.get("/openapi.json")
    assert response.status_code == 200
    schema: dict[str, Any] = response.json()
    return schema


async def test_every_call_is_documented(document: dict[str, Any]) -> None:
    """The document has exactly the calls that are served."""
    calls_found = {(method, path) for path, calls in document["paths"].items() for method in calls}
    assert calls_found == set(STATUSES)


@calls
async def test_every_status_is_documented(document: dict[str, Any], method: str, path: str) -> None:
    """A call has every status that it may answer with, each described."""
    responses = document["paths"][path][method]["responses"]
    assert set(responses) == STATUSES[method, path]
    assert all(response["description"] for response in responses.values())


@calls
async def test_errors_are_documented_as_problems(
    document: dict[str, Any], method: str, path: str
) -> None:
    """An error is documented as a problem, of its own media type."""
    for status, response in document["paths"][path][method]["responses"].items():
        if int(status) < 400 or path.startswith(HEALTH):
            continue
        assert list(response["content"]) == ["application/problem+json"], status
        schema = response["content"]["application/problem+json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Problem"}


async def test_framework_errors_are_not_documented(document: dict[str, Any]) -> None:
    """The framework's own error shapes, which are never sent, are not documented."""
    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])


@calls
async def test_headers_are_documented(document: dict[str, Any], method: str, path: str) -> None:
    """The headers of every response are documented."""
    for status, response in document["paths"][path][method]["responses"].items():
        named = {name.lower() for name in response.get("headers", {})}
        assert "x-request-id" in named, status
        if status == "503" and "agent" in path:
            assert "retry-after" in named
        if status == "200" and method == "post":
            assert "x-run-id" in named
            # A stream's headers are sent before any time is known.
            assert ("server-timing" in named) is not path.endswith("/stream")


@calls
async def test_retry_after_is_documented_where_it_is_sent(
    document: dict[str, Any], method: str, path: str
) -> None:
    """`Retry-After` is documented where it is sent, and nowhere else."""
    looks, accepts = ("get", "/agent/async/{task_id}"), path.endswith(("/async", "/retry"))
    sent = {"409", "503"} | ({"202"} if accepts else set())
    sent |= {"200"} if (method, path) == looks else set()
    responses = document["paths"][path][method]["responses"]
    named = {status for status in responses if "Retry-After" in responses[status]["headers"]}
    assert named == (set() if path.startswith(HEALTH) else sent & responses.keys())


async def test_draining_is_documented(document: dict[str, Any]) -> None:
    """Every call that is refused during a drain documents it."""
    for path, calls in document["paths"].items():
        if "post" in calls:
            assert "`draining`" in calls["post"]["responses"]["503"]["description"], path


@pytest.mark.parametrize("path", [path for _, path in STATUSES if "stream" in path or "ev" in path])
async def test_streams_are_documented(document: dict[str, Any], path: str) -> None:
    """A stream is documented as one, with a model for each of its events."""
    calls = document["paths"][path]
    ((_, call),) = calls.items()
    assert list(call["responses"]["200"]["content"]) == ["text/event-stream"]
    schemas = document["components"]["schemas"]
    assert {
        "RunBegan", "TokenSaid", "ToolBegan", "ToolEnded", "IterationEnded", "Retract", "Gap",
        "Problem", "FinishedRun",
    } <= schemas.keys()  # fmt: skip
    queried = {field["name"] for field in call.get("parameters", [])}
    assert ("on_disconnect" in queried) is path.endswith("/stream")
    assert ("last-event-id" in queried) is path.endswith("/events")


async def test_request_body_is_documented(document: dict[str, Any]) -> None:
    """The body of a question is documented with its limits, and takes no other fields."""
    body = document["components"]["schemas"]["RunBody"]
    assert body["additionalProperties"] is False
    assert body["required"] == ["question"]
    assert body["properties"].keys() == {
        "question", "timeout", "max_iterations", "thread_id", "include_steps", "metadata",
    }  # fmt: skip
    assert body["properties"]["question"]["maxLength"] == 100_000
    assert all("description" in field for field in body["properties"].values())


@pytest.mark.parametrize(
    ("schema", "path"), [("FinishedRun", "/agent"), ("AgentList", "/agents"), ("RunList", "/runs")]
)
async def test_answers_match_their_documentation(
    desk: Served, document: dict[str, Any], schema: str, path: str
) -> None:
    """An answer has exactly the fields that are documented for it."""
    response = await desk.ask() if path == "/agent" else await desk.client.get(path)
    documented = document["components"]["schemas"][schema]["properties"]
    assert response.json().keys() == documented.keys()


async def test_docs_need_no_network(desk: Served) -> None:
    """The page of /docs loads nothing from elsewhere, and what it loads is there."""
    page = await desk.client.get("/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", page.text)
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) >= 3
    for address in loaded:
        part = await desk.client.get(address)
        assert part.status_code == 200
        assert len(part.content) > 100


async def test_docs_can_be_closed() -> None:
    """If /docs is turned off there is neither the page nor a trace of it."""
    async with served(_agents(), docs="off") as s:
        for path in ("/docs", "/redoc"):
            response = await s.client.get(path)
            assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(("host", "status"), [("0.0.0.0", 404), ("127.0.0.1", 200), ("::1", 200)])
async def test_docs_are_open_on_loopback_only(host: str, status: int) -> None:
    """Unless a setting opens it, /docs is open on loopback and closed on a public address."""
    async with served(_agents(), host=host) as service:
        assert (await service.client.get("/docs")).status_code == status
