"""No signal contains the content of callers, models, tools or exceptions."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from tests import fakes, faults, wire
from tests.telemetry.watched import OPENMETRICS, Watched, watched

pytestmark = pytest.mark.asyncio(loop_scope="module")
kinds = pytest.mark.parametrize("kind", fakes.KINDS)
HELD_S = 60.0
# One word for each source, so that a leak names its source.
PLACES = (
    "question", "argument", "result", "exception", "agent", "requestid", "authorization", "path",
    "query", "baggage", "cause", "background", "call", "status", "referer", "cookie", "host",
)  # fmt: skip
CANARY = {place: f"Canary9{place.capitalize()}" for place in PLACES}
HEADERS = {
    "user-agent": CANARY["agent"],
    "x-request-id": CANARY["requestid"],
    "authorization": f"Basic {CANARY['authorization']}",
    "baggage": f"tenant={CANARY['baggage']}",
    "referer": f"https://{CANARY['referer']}/",
    "cookie": f"session={CANARY['cookie']}",
}


@tool
async def tell(order: str = "") -> str:
    """Give a secret back."""
    return CANARY["result"]


@tool
async def raises(order: str = "") -> str:
    """Raise with a secret, and with a cause that holds one."""
    try:
        raise KeyError(CANARY["cause"])
    except KeyError as cause:
        raise ValueError(CANARY["exception"]) from cause


@tool
def raises_sync(order: str = "") -> str:
    """Raise with a secret, on a thread."""
    raise ValueError(CANARY["exception"])


@tool
async def hangs(order: str = "") -> str:
    """Never come back in time."""
    await asyncio.sleep(HELD_S)
    return CANARY["result"]


@tool
async def leaves_a_task(order: str = "") -> str:
    """Start a task that fails later, after its run."""

    async def fails() -> None:
        raise ValueError(CANARY["background"])

    task = asyncio.ensure_future(fails())
    await asyncio.sleep(0.01)
    del task
    return CANARY["result"]


class Loud(RuntimeError):
    """An exception of a provider, which holds a secret wherever it can."""

    status_code = 429
    body = CANARY["status"]


def _unknown_tool(messages: Sequence[Any]) -> AIMessage:
    if fakes.results_since_question(messages):
        return AIMessage("done")
    return fakes.asks("look", {"order": {"no": CANARY["argument"]}})


def _agents() -> dict[str, Any]:
    given = {"order": CANARY["argument"]}
    tools = [tell, raises, raises_sync, hangs, *fakes.ToolDesk().tools()]
    agents: dict[str, Any] = {}
    for kind in fakes.KINDS:
        for name in ("tell", "raises", "raises_sync", "hangs"):
            script = fakes.calls_then_answers(name, given)
            agents[f"{name}-{kind}"] = fakes.build(kind, fakes.ScriptedModel(script=script), tools)
        endless = fakes.ScriptedModel(script=fakes.never_stops("tell", given))
        agents[f"endless-{kind}"] = fakes.build(kind, endless, tools)
        slow = faults.model(delay_s=HELD_S)
        agents[f"slow-{kind}"] = fakes.build(kind, slow, tools)
        broken = faults.model(error=Loud(CANARY["exception"]))
        agents[f"model-{kind}"] = fakes.build(kind, broken, tools)
        wrong = fakes.ScriptedModel(script=_unknown_tool)
        agents[f"invalid-{kind}"] = fakes.build(kind, wrong, tools)
    error = RuntimeError(CANARY["exception"])
    agents["node"] = faults.graph_that_raises(error)
    agents["middleware"] = faults.agent_whose_middleware_raises(error)
    agents["parser"] = faults.executor_whose_parser_raises(error)
    agents["asks"] = faults.agent_whose_tool_asks()
    return agents


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def signals() -> AsyncIterator[Watched]:
    async with watched(_agents(), level="debug", tool_threads=64) as service:
        service.desk.client.headers.update(HEADERS)
        yield service


async def ask(signals: Watched, agent: str, **body: Any) -> str:
    """Ask with a canary in every header and in the query; gives the body of the answer."""
    response = await signals.desk.client.post(
        f"/agents/{agent}",
        params={"q": CANARY["query"]},
        json={"question": CANARY["question"], **body},
    )
    signals.log.stream.flush()
    if response.status_code == 200:
        return ""  # an answer is the caller's own
    return response.text


async def nothing_leaks(signals: Watched, *bodies: str) -> None:
    """No canary is in any signal so far, nor in these bodies."""
    await signals.flush()
    openmetrics = (await signals.scrape(OPENMETRICS)).text
    signal_texts = {
        "log": signals.log.text,
        "spans": b"".join(signals.collector.raw).decode("latin-1"),
        "metrics": (await signals.scrape()).text,
        "openmetrics": openmetrics,
        "error body": " ".join(bodies),
    }
    leaks = [
        (signal, canary)
        for signal, text in signal_texts.items()
        for canary in (*CANARY.values(), faults.SECRET)
        if canary.lower() in text.lower()
    ]
    assert not leaks


@kinds
@pytest.mark.parametrize("name", ["tell", "raises", "raises_sync", "invalid", "model"])
async def test_no_content_of_completed_and_failed_runs(
    signals: Watched, kind: str, name: str
) -> None:
    """No signal has content of a run that completes or fails."""
    await nothing_leaks(signals, await ask(signals, f"{name}-{kind}"))


@kinds
async def test_no_content_of_stopped_runs(signals: Watched, kind: str) -> None:
    """No signal has content of a run at its limit or at its deadline."""
    bodies = [
        await ask(signals, f"endless-{kind}", max_iterations=2),
        await ask(signals, f"hangs-{kind}", timeout=0.2),
        await ask(signals, f"slow-{kind}", timeout=0.2),
    ]
    await nothing_leaks(signals, *bodies)


@pytest.mark.parametrize("agent", ["node", "middleware", "parser", "asks"])
async def test_no_content_of_failing_agents(signals: Watched, agent: str) -> None:
    """No signal has content of an agent that raises or asks for a human."""
    await nothing_leaks(signals, await ask(signals, agent))


@kinds
async def test_no_content_of_cancelled_and_disconnected_runs(signals: Watched, kind: str) -> None:
    """No signal has content of a cancelled run or of one whose caller disconnected."""
    asking = asyncio.ensure_future(ask(signals, f"hangs-{kind}"))
    run_id = await signals.held(f"hangs-{kind}", "tool:hangs")
    await signals.desk.client.delete(f"/runs/{run_id}")
    body = await asking
    async with wire.connection(signals.desk.url) as (_, writer):
        writer.write(
            wire.ask(f"/agents/hangs-{kind}?q={CANARY['query']}", question=CANARY["question"])
        )
        await signals.held(f"hangs-{kind}", "tool:hangs")
    await signals.desk.idle()
    await nothing_leaks(signals, body)


async def test_no_content_of_refused_requests(signals: Watched) -> None:
    """No signal has content of refused paths, queries, hosts and bodies."""
    client, secret = signals.desk.client, CANARY["path"]
    responses = [
        await client.get(f"/{secret}/{secret}", params={"q": CANARY["query"]}),
        await client.get(f"/agents/{secret}"),
        await client.post(f"/agents/{secret}", json={"question": CANARY["question"]}),
        await client.get(f"/runs/{secret}"),
        await client.delete(f"/runs/{secret}"),
        await client.get("/runs", params={"state": CANARY["query"]}),
        await client.get("/health", headers={"host": CANARY["host"]}),
        await client.get("/agents", headers={"host": CANARY["host"]}),
        await client.post("/agent", json={"question": CANARY["question"], secret: secret}),
        await client.post("/agent", content=CANARY["question"]),
        await client.request("PATCH", f"/{secret}"),
    ]
    await nothing_leaks(signals, *(response.text for response in responses))


async def test_no_content_of_requests_that_are_not_http(signals: Watched) -> None:
    """No line of the server has bytes of a request that is not HTTP."""
    async with wire.connection(signals.desk.url) as (reader, writer):
        writer.write(f"{CANARY['path']} / HTTP/1.1 {CANARY['query']}\r\n\r\n".encode())
        await asyncio.wait_for(reader.read(), 20)
    await nothing_leaks(signals)


@pytest.mark.asyncio(loop_scope="function")
async def test_no_content_of_an_abandoned_task() -> None:
    """A task of a tool that fails after its run is logged without its content."""
    script = fakes.calls_then_answers("leaves_a_task")
    agents = {"a": fakes.build("langgraph", fakes.ScriptedModel(script=script), [leaves_a_task])}
    async with watched(agents) as signals:
        await signals.desk.ask()
        gc.collect()
        await signals.logged(error_type="ValueError")
        await nothing_leaks(signals)


async def test_no_text_of_exceptions_that_libraries_log(signals: Watched) -> None:
    """The log has the type and place of an exception that a library logs, not its text."""
    try:
        raise ValueError(CANARY["exception"])
    except ValueError:
        logging.getLogger("somebody.elses").exception("it_failed")
    line = await signals.log.one("it_failed")
    assert line["error_type"] == "ValueError"
    assert "test_canary.py" in line["error_at"][0]
    await nothing_leaks(signals)


async def test_secrets_are_removed_from_lines(signals: Watched) -> None:
    """Text that looks like a key is removed from lines, wherever it is."""
    key = "sk-proj-abcdefghijklmnop0123456789"
    logging.getLogger("somebody.elses").warning("sent with %s", key)
    await ask(signals, "tell-langgraph", metadata={"ticket": f"Bearer {key}"})
    assert await signals.logged(logger="somebody.elses", level="warning")
    logging.getLogger("somebody.elses").warning("the_last")
    await signals.logged("the_last")  # so all lines before it are written
    assert key not in signals.log.text


@pytest.mark.asyncio(loop_scope="function")
async def test_spans_have_content_by_opt_in_only() -> None:
    """With the opt-in, spans have the content, in its own attributes and cut to size."""
    script = fakes.calls_then_answers("tell", {"order": CANARY["argument"]})
    agents = {"a": fakes.build("create_agent", fakes.ScriptedModel(script=script), [tell])}
    variables = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
    async with watched(agents, variables=variables) as signals:
        response = await signals.desk.ask(CANARY["question"] + "x" * 50_000)
        spans = await signals.trace_of(response.json()["run_id"])
        attributes = {span.operation: span.attributes for span in spans}
        assert CANARY["argument"] in attributes["execute_tool"]["gen_ai.tool.call.arguments"]
        assert CANARY["result"] in attributes["execute_tool"]["gen_ai.tool.call.result"]
        assert CANARY["question"] in attributes["chat"]["gen_ai.input.messages"]
        longest = max(len(str(value)) for span in spans for value in span.attributes.values())
        assert longest <= 8_192
        assert CANARY["question"] not in signals.log.text
        assert CANARY["question"] not in (await signals.scrape(OPENMETRICS)).text
