"""Bad input: a 4xx problem with a stable code that never repeats the input."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests import fakes, faults, wire
from tests.service import Served, served
from tests.wire import CANARY, is_problem

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT = 300
JSON = {"content-type": "application/json"}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def desk() -> AsyncIterator[Served]:
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("look"))
    agent = fakes.build("create_agent", model, fakes.ToolDesk().tools())
    async with served({"orders": agent}) as service:
        yield service
        service.books_balance()


def payload(**fields: Any) -> bytes:
    return json.dumps({"question": CANARY, **fields}).encode()


def _raw(name: str, value: str) -> bytes:
    return f'{{"question": "{CANARY}", "{name}": {value}}}'.encode()


def payload_with(literal: str) -> bytes:
    return f'{{"question": {literal}}}'.encode()


INVALID = {
    "question missing": (b"{}", "question"),
    "question blank": (payload_with('"  \\t\\n \\u3000"'), "question"),
    "question empty": (payload_with('""'), "question"),
    "question null": (payload_with("null"), "question"),
    "question number": (payload_with("5117"), "question"),
    "question bool": (payload_with("true"), "question"),
    "question list": (payload_with(f'["{CANARY}"]'), "question"),
    "question object": (payload_with(f'{{"{CANARY}": 1}}'), "question"),
    "question too long": (payload_with('"' + "x" * 100_001 + '"'), "question"),
    "question too long in emoji": (payload_with('"' + "🦊" * 100_001 + '"'), "question"),
    "question high surrogate": (payload_with(f'"{CANARY}\\ud800"'), "question"),
    "question low surrogate": (payload_with(f'"\\udc00{CANARY}"'), "question"),
    "question surrogates reversed": (payload_with(f'"\\udc00\\ud800{CANARY}"'), "question"),
    "question surrogate bytes": (b'{"question": "' + b"\xed\xa0\x80" + b'"}', "question"),
    "question NUL": (payload_with(f'"{CANARY}\\u0000"'), "question"),
    "timeout zero": (_raw("timeout", "0"), "timeout"),
    "timeout minus zero": (_raw("timeout", "-0.0"), "timeout"),
    "timeout negative": (_raw("timeout", "-1"), "timeout"),
    "timeout NaN": (_raw("timeout", "NaN"), "timeout"),
    "timeout Infinity": (_raw("timeout", "Infinity"), "timeout"),
    "timeout 1e999": (_raw("timeout", "1e999"), "timeout"),
    "timeout -1e999": (_raw("timeout", "-1e999"), "timeout"),
    "timeout underflow": (_raw("timeout", "1e-999"), "timeout"),
    "timeout above": (_raw("timeout", "300.001"), "timeout"),
    "timeout 400 digits": (_raw("timeout", "1" + "0" * 400), "timeout"),
    "timeout string": (_raw("timeout", f'"{CANARY}"'), "timeout"),
    "timeout numeric string": (_raw("timeout", '"5"'), "timeout"),
    "timeout bool": (_raw("timeout", "true"), "timeout"),
    "timeout list": (_raw("timeout", "[5]"), "timeout"),
    "max_iterations zero": (_raw("max_iterations", "0"), "max_iterations"),
    "max_iterations negative": (_raw("max_iterations", "-3"), "max_iterations"),
    "max_iterations above": (_raw("max_iterations", "11"), "max_iterations"),
    "max_iterations 400 digits": (_raw("max_iterations", "1" + "0" * 400), "max_iterations"),
    "max_iterations float": (_raw("max_iterations", "1.5"), "max_iterations"),
    "max_iterations NaN": (_raw("max_iterations", "NaN"), "max_iterations"),
    "max_iterations bool": (_raw("max_iterations", "true"), "max_iterations"),
    "include_steps string": (_raw("include_steps", f'"{CANARY}"'), "include_steps"),
    "include_steps number": (_raw("include_steps", "1"), "include_steps"),
    "thread_id empty": (_raw("thread_id", '""'), "thread_id"),
    "thread_id number": (_raw("thread_id", "5"), "thread_id"),
    "thread_id long": (payload(thread_id=CANARY * 100), "thread_id"),
    "thread_id surrogate": (_raw("thread_id", '"\\ud800"'), "thread_id"),
    "metadata list": (_raw("metadata", f'["{CANARY}"]'), "metadata"),
    "metadata of 17": (payload(metadata={f"{CANARY}{n}": "x" for n in range(17)}), "metadata"),
    "metadata long": (payload(metadata={"a": CANARY * 100}), "metadata"),
    "metadata long name": (payload(metadata={CANARY * 100: "a"}), "metadata"),
    "metadata nested": (payload(metadata={CANARY: {"b": CANARY}}), "metadata"),
    "metadata number": (payload(metadata={CANARY: 5}), "metadata"),
    "metadata NUL": (payload(metadata={CANARY: "\0"}), "metadata"),
    "metadata surrogate": (_raw("metadata", '{"\\ud800": "x"}'), "metadata"),
    "unknown field": (payload(canary=1, **{CANARY: CANARY}), "body"),
    "unknown field like ours": (payload(Timeout=5), "body"),
    "unknown surrogate field": (_raw("\\ud800", "1"), "body"),
    "unknown field of a later issue": (payload(stream=True), "body"),
    "list": (f'["{CANARY}"]'.encode(), "body"),
    "string": (f'"{CANARY}"'.encode(), "body"),
    "number": (b"5117", "body"),
    "null": (b"null", "body"),
    "NaN": (b"NaN", "body"),
    "empty": (b"", "body"),
}

NOT_JSON = {
    "cut": f'{{"question": "{CANARY}'.encode(),
    "words": CANARY.encode(),
    "single quotes": f"{{'question': '{CANARY}'}}".encode(),
    "trailing comma": f'{{"question": "{CANARY}",}}'.encode(),
    "two documents": payload() + payload(),
    "not UTF-8": b'{"question": "' + CANARY.encode() + b'\xff\xfe"}',
    "raw NUL": b'{"question": "' + CANARY.encode() + b'\x00"}',
    "only NUL": b"\0\0\0\0",
    "nested arrays": b"[" * 100_000 + b"]" * 100_000,
    "nested arrays that do not close": b"[" * 200_000,
    "nested arrays in the question": payload_with("[" * 100_000 + "]" * 100_000),
    "nested objects": b'{"a":' * 40_000,
    "5000 digits": _raw("timeout", "9" * 5_000),
    "form": b"question=" + CANARY.encode(),
}


@pytest.mark.parametrize(("body", "field"), INVALID.values(), ids=INVALID.keys())
@pytest.mark.parametrize("path", ["/agent", "/agents/orders"])
async def test_invalid_question_is_422(desk: Served, path: str, body: bytes, field: str) -> None:
    """JSON that is no valid question is 422, naming the field."""
    response = await desk.client.post(path, content=body, headers=JSON)
    problem = is_problem(response, 422, "invalid_request")
    assert field in {error["field"] for error in problem["errors"]}
    assert "5117" not in response.text


@pytest.mark.parametrize("body", NOT_JSON.values(), ids=NOT_JSON.keys())
async def test_body_that_is_not_json_is_400(desk: Served, body: bytes) -> None:
    """A body that is not JSON is 400."""
    is_problem(await desk.client.post("/agent", content=body, headers=JSON), 400, "invalid_json")


async def test_maximum_timeout_is_named(desk: Served) -> None:
    """A caller who asks for too long a timeout reads the maximum."""
    problem = is_problem(await desk.ask(CANARY, timeout=1e9), 422, "invalid_request")
    assert str(LIMIT) in problem["errors"][0]["message"]
    assert (await desk.ask(timeout=LIMIT)).status_code == 200
    assert (await desk.ask(max_iterations=10)).status_code == 200


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "application/x-www-form-urlencoded", f"text/{CANARY}", "multipart/form-data",
     "application/jsonp", "json", "application/xml", "text/json+json"],
)  # fmt: skip
@pytest.mark.parametrize("body", [payload(), CANARY.encode()], ids=["json", "words"])
async def test_wrong_content_type_is_415(desk: Served, content_type: str, body: bytes) -> None:
    """A body that is not declared as JSON is 415."""
    headers = {"content-type": content_type}
    response = await desk.client.post("/agent", content=body, headers=headers)
    is_problem(response, 415, "unsupported_media_type")


async def test_missing_content_type_is_415(desk: Served) -> None:
    """A body without a content type is refused."""
    reply = await wire.exchange(
        desk.url, wire.request(body=payload(), headers={"content-type": ""})
    )
    assert reply.status in (415, 422)
    is_problem(reply, reply.status, reply.json()["code"])


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.shop+json"],
)
async def test_json_content_types_are_accepted(desk: Served, content_type: str) -> None:
    """Every content type that means JSON is accepted."""
    headers = {"content-type": content_type}
    response = await desk.client.post("/agent", content=payload(), headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", CANARY])
@pytest.mark.parametrize("body", [payload(), b"\x1f\x8b\x08\x00"], ids=["json", "gzip"])
async def test_encoded_body_is_415(desk: Served, encoding: str, body: bytes) -> None:
    """An encoded body is 415, whatever is in it."""
    headers = {**JSON, "content-encoding": encoding}
    response = await desk.client.post("/agent", content=body, headers=headers)
    is_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "name", ["nobody", CANARY, "ORDERS", "orders%20", "orders%00", "%ff", "..%2fagent", "é", "-a"]
)
async def test_unknown_agent_is_404(desk: Served, name: str) -> None:
    """An agent that is not served is 404."""
    response = await desk.client.post(f"/agents/{name}", content=payload(), headers=JSON)
    is_problem(response, 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/agent", "POST"), ("PUT", "/agent", "POST"), ("DELETE", "/agent", "POST"),
     ("PATCH", "/agents/orders", "POST"), ("POST", "/agents", "GET"), ("POST", "/runs", "GET"),
     ("POST", "/health", "GET"), ("OPTIONS", "/agent", "POST"), ("PROPFIND", "/agent", "POST"),
     ("PUT", "/agent/async", "GET, POST"), ("PUT", "/agent/async/x", "DELETE, GET"),
     ("GET", "/agent/async/x/retry", "POST"), ("POST", "/agent/async/x/events", "GET"),
     ("POST", "/threads/x", "DELETE, GET"), ("POST", "/runs/x", "DELETE, GET"),
     ("POST", "/openapi.json", "GET, HEAD"),
     ("POST", "/static-offline-docs/swagger-ui.css", "GET, HEAD")],
)  # fmt: skip
async def test_wrong_method_is_405(desk: Served, method: str, path: str, allowed: str) -> None:
    """A wrong method is 405, naming the methods of that address."""
    response = await desk.client.request(method, path, content=payload(), headers=JSON)
    is_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize(
    "path",
    [f"/{CANARY}", "/", "/agent/", "/agents/orders/", "/runs/", "/agent/async/",
     "/agents/orders/async/", "/%00", "/%ff%fe", "/redoc"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_unknown_path_is_404(desk: Served, method: str, path: str) -> None:
    """An address that does not exist is 404."""
    response = await desk.client.request(method, path, content=payload(), headers=JSON)
    is_problem(response, 404, "not_found")


@pytest.mark.parametrize("path", ["nothing", "%2e%2e/x", "%2e%2e/%2e%2e/%2e%2e/etc/passwd", "%00"])
async def test_unknown_file_is_404(desk: Served, path: str) -> None:
    """A file that /docs does not need is 404."""
    response = await desk.client.get(f"/static-offline-docs/{path}")
    is_problem(response, 404, "not_found")


@pytest.mark.parametrize(
    ("query", "named"),
    [("state=canary-5f1c", ["state"]), ("limit=0", ["limit"]), ("limit=501", ["limit"]),
     ("limit=x", ["limit"]), ("limit=0&state=canary-5f1c", ["limit", "state"])],
)  # fmt: skip
async def test_invalid_query_is_422(desk: Served, query: str, named: list[str]) -> None:
    """An invalid query is 422, naming the fault."""
    problem = is_problem(await desk.client.get(f"/runs?{query}"), 422, "invalid_request")
    assert sorted(error["field"] for error in problem["errors"]) == named


async def test_agent_without_conversations_refuses_a_thread() -> None:
    """An agent that cannot continue a conversation refuses a thread."""
    agent = fakes.build("agent_executor", faults.model(), fakes.ToolDesk().tools())
    async with served({"a": agent}) as desk:
        problem = is_problem(await desk.ask(thread_id=CANARY), 422, "invalid_request")
    assert problem["errors"][0]["field"] == "thread_id"


async def test_refused_request_starts_no_run() -> None:
    """A refused request starts no run."""
    async with served({"orders": fakes.build("create_agent", faults.model(), [])}) as desk:
        for body in (payload(timeout=0), payload(timeout=1e9), payload(x=1), b"{"):
            await desk.client.post("/agent", content=body, headers=JSON)
        assert desk.facts == []
