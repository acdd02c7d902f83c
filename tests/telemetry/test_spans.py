"""The tree of a run: the right parents under load, nothing left open, the right names and kinds."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio
from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool, tool
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from tests import fakes
from tests.otlp import Received
from tests.telemetry.watched import Watched, parent_of, root_of, watched

pytestmark = pytest.mark.asyncio(loop_scope="module")
kinds = pytest.mark.parametrize("kind", fakes.KINDS)
HELD_S = 60.0
SPAN_KINDS = {
    "": "SERVER",
    "invoke_agent": "INTERNAL",
    "chat": "CLIENT",
    "execute_tool": "INTERNAL",
}


# Releases what a sub-agent's tool holds.
OVER = threading.Event()


class Tracing:
    """The tracer of whatever client a tool uses; set when the service is up."""

    tracer: trace.Tracer = trace.NoOpTracer()


@tool
async def calls_out() -> str:
    """Call something that has instrumentation of its own."""
    with Tracing.tracer.start_as_current_span("GET /stock", kind=SpanKind.CLIENT):
        await asyncio.sleep(0)
    return "async"


@tool
def calls_out_sync() -> str:
    """Call something that has instrumentation of its own, on a thread."""
    with Tracing.tracer.start_as_current_span("GET /stock", kind=SpanKind.CLIENT):
        return "sync"


def _sub_agent(name: str, held_s: float = 0.0) -> Any:
    @tool
    def count(order: str = "1") -> str:
        """Count what is in stock."""
        OVER.wait(held_s)
        return "3"

    model = fakes.ScriptedModel(script=fakes.calls_then_answers("count", parallel=2))
    return create_agent(model, [count], name=name)


def _asking_tools(held_s: float = 0.0) -> list[BaseTool]:
    stock, other = _sub_agent("stock", held_s), _sub_agent("billing", held_s)

    @tool
    async def ask() -> str:
        """Ask a sub-agent."""
        result = await stock.ainvoke({"messages": [("user", "q")]})
        return str(result["messages"][-1].text)

    @tool
    def ask_sync() -> str:
        """Ask a sub-agent from a thread."""
        result = stock.invoke({"messages": [("user", "q")]})
        return str(result["messages"][-1].text)

    @tool
    async def ask_both() -> str:
        """Ask two sub-agents, one after the other."""
        await stock.ainvoke({"messages": [("user", "q")]})
        result = await other.ainvoke({"messages": [("user", "q")]})
        return str(result["messages"][-1].text)

    return [ask, ask_sync, ask_both]


def _everything(messages: Sequence[Any]) -> AIMessage:
    """Five calls at once: two plain, two that ask a sub-agent, one with a client of its own."""
    if fakes.results_since_question(messages):
        return AIMessage("done", usage_metadata=fakes.USAGE)
    names = ("look", "nap", "ask", "ask_sync", "calls_out")
    calls = [fakes.asks(name, {}, number=n).tool_calls[0] for n, name in enumerate(names)]
    return AIMessage("", tool_calls=calls, usage_metadata=fakes.USAGE)


def _agents() -> dict[str, Any]:
    agents: dict[str, Any] = {}
    tools = [*fakes.ToolDesk(0.02).tools(), calls_out, calls_out_sync, *_asking_tools()]
    slow = _asking_tools(HELD_S)
    for kind in fakes.KINDS:
        agents[f"all-{kind}"] = fakes.build(kind, fakes.ScriptedModel(script=_everything), tools)
        for name in ("calls_out", "calls_out_sync", "ask", "ask_sync", "ask_both"):
            model = fakes.ScriptedModel(script=fakes.calls_then_answers(name))
            agents[f"{name}-{kind}"] = fakes.build(kind, model, tools)
        for name in ("ask", "ask_sync"):
            model = fakes.ScriptedModel(script=fakes.calls_then_answers(name))
            agents[f"slow-{name}-{kind}"] = fakes.build(kind, model, slow)
    return agents


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def signals() -> AsyncIterator[Watched]:
    variables = {"OTEL_BSP_MAX_QUEUE_SIZE": "20000"}
    async with watched(_agents(), tool_threads=100, variables=variables, level="info") as service:
        export = service.desk.pipeline.export
        assert export is not None
        Tracing.tracer = export.provider.get_tracer("somebody's client")
        yield service
        OVER.set()


def is_a_tree(spans: Sequence[Received], run_id: str) -> None:
    """One root, which is the server's; every other span's parent is among them and of its run."""
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    (server,) = [span for span in spans if not span.parent_id]
    assert server.kind == "SERVER"
    assert server.attributes["agent.run.id"] == run_id
    for span in spans:
        assert span.status_text == ""
        assert span.start_s <= span.end_s
        if span is server:
            continue
        assert span.parent_id in by_id, f"{span.name} has no parent that ended"
        parent = by_id[span.parent_id]
        assert parent.start_s <= span.start_s + 0.001
        if span.scope == "watchkeeper":
            assert span.kind == SPAN_KINDS[span.operation]
            # LangChain reports an end a moment later; a child never outlives its parent much.
            assert span.end_s <= parent.end_s + 0.001


def tree(spans: Sequence[Received]) -> Counter[tuple[str, str]]:
    """How often each name is a child of each other name."""
    pairs: Counter[tuple[str, str]] = Counter()
    for span in spans:
        parent = parent_of(span, spans)
        pairs[parent.name if parent else "", span.name] += 1
    return pairs


async def test_fifty_runs_at_once_have_the_right_parents(signals: Watched) -> None:
    """Fifty runs at once have no wrong parent, leave nothing open, and every gauge is 0 again."""
    agents = [f"all-{fakes.KINDS[number % 3]}" for number in range(50)]
    answers = await asyncio.gather(*(signals.desk.ask(agent=agent) for agent in agents))
    for agent, answer in zip(agents, answers, strict=True):
        run = answer.json()
        assert (run["outcome"], run["iterations"], run["tool_calls"]) == ("completed", 1, 5), run
        spans = await signals.trace_of(run["run_id"])
        is_a_tree(spans, run["run_id"])
        root = f"invoke_agent {agent}"
        assert tree(spans) == {
            ("", "POST /agents/{name}"): 1,
            ("POST /agents/{name}", root): 1,
            (root, "chat unknown"): 2,
            **{(root, f"execute_tool {name}"): 1 for name in ("look", "nap", "calls_out")},
            **{(root, f"execute_tool {name}"): 1 for name in ("ask", "ask_sync")},
            ("execute_tool calls_out", "GET /stock"): 1,
            **{(f"execute_tool {n}", "invoke_agent stock"): 1 for n in ("ask", "ask_sync")},
            ("invoke_agent stock", "chat unknown"): 4,
            ("invoke_agent stock", "execute_tool count"): 4,
        }
    samples = await signals.scrape()
    for gauge in ("agent_runs_in_flight", "agent_run_oldest_age_seconds"):
        assert samples.total(gauge) == 0
    for gauge in ("threads_busy", "threads_abandoned", "tasks_abandoned"):
        assert samples.total(f"agent_tool_{gauge}") == 0
    signals.desk.books_balance()


@kinds
@pytest.mark.parametrize("name", ["calls_out", "calls_out_sync"])
async def test_span_of_a_client_is_a_child_of_its_tool(
    signals: Watched, kind: str, name: str
) -> None:
    """The span of a client that a tool uses is a child of that tool's span."""
    run = (await signals.desk.ask(agent=f"{name}-{kind}")).json()
    spans = await signals.trace_of(run["run_id"])
    is_a_tree(spans, run["run_id"])
    (client,) = [span for span in spans if span.name == "GET /stock"]
    parent = parent_of(client, spans)
    assert parent is not None
    assert parent.name == f"execute_tool {name}"


@kinds
@pytest.mark.parametrize("name", ["ask", "ask_sync"])
async def test_sub_agent_has_its_own_counts(signals: Watched, kind: str, name: str) -> None:
    """The span of a sub-agent has its own counts; the run's counts stay the run's."""
    run = (await signals.desk.ask(agent=f"{name}-{kind}")).json()
    assert (run["iterations"], run["tool_calls"]) == (1, 1)
    spans = await signals.trace_of(run["run_id"])
    (sub,) = [span for span in spans if span.name == "invoke_agent stock"]
    assert sub.attributes["gen_ai.agent.name"] == "stock"
    counts = {key: sub.attributes.get(f"agent.run.{key}") for key in ("iterations", "tool_calls")}
    assert counts == {"iterations": 1, "tool_calls": 2}
    assert sub.attributes.get("gen_ai.usage.input_tokens") == 20


@kinds
async def test_two_sub_agents_in_one_tool(signals: Watched, kind: str) -> None:
    """A tool that asks two agents has a span for each, with its own calls under it."""
    run = (await signals.desk.ask(agent=f"ask_both-{kind}")).json()
    spans = await signals.trace_of(run["run_id"])
    subs = [s.name for s in spans if s.operation == "invoke_agent" and "both" not in s.name]
    assert subs == ["invoke_agent stock", "invoke_agent billing"]


@kinds
@pytest.mark.parametrize("name", ["ask", "ask_sync"])
async def test_deadline_inside_a_sub_agent_leaves_no_open_span(
    signals: Watched, kind: str, name: str
) -> None:
    """A run that ends while a sub-agent works leaves no open span, and no span without a parent."""
    asking = asyncio.ensure_future(signals.desk.ask(agent=f"slow-{name}-{kind}"))
    await signals.desk.times_out(f"slow-{name}-{kind}", f"tool:{name}", 3)  # its own, two inside
    response = await asking
    assert response.status_code == 504
    run_id = response.json()["run_id"]
    spans = await signals.trace_of(run_id)
    is_a_tree(spans, run_id)
    (sub,) = [span for span in spans if span.name == "invoke_agent stock"]
    assert sub.attributes["error.type"] == "timeout"
    counts = {key: sub.attributes.get(f"agent.run.{key}") for key in ("iterations", "tool_calls")}
    assert counts == {"iterations": 1, "tool_calls": 2}


@kinds
async def test_span_of_a_run_has_the_contract_attributes(signals: Watched, kind: str) -> None:
    """The spans of a run and of its calls have the attributes of the contract."""
    agent = f"ask-{kind}"
    response = await signals.desk.ask(agent=agent, timeout=20, max_iterations=7)
    run_id = response.json()["run_id"]
    spans = await signals.trace_of(run_id)
    root = root_of(spans, run_id)
    assert root.attributes["gen_ai.usage.input_tokens"] == 40
    assert root.attributes["agent.run.deadline_s"] == 20.0
    assert root.attributes["agent.run.iteration_limit"] == 7
    for span in spans:
        own = span.attributes
        if span.operation == "chat":
            assert (own["agent.llm.attempt"], own["gen_ai.provider.name"]) == (1, "scriptedmodel")
            assert own["agent.iteration"] >= 1
        if span.operation == "execute_tool":
            assert (own["gen_ai.tool.type"], own["agent.tool.outcome"]) == ("function", "completed")
            assert own["gen_ai.tool.call.id"]


async def test_span_has_its_resource(signals: Watched) -> None:
    """Every span names its service, version and instance."""
    await signals.desk.ask(agent="calls_out-langgraph")
    for span in await signals.delivered():
        assert span.resource["service.name"] == "watchkeeper"
        assert span.resource["service.version"]
        assert span.resource["service.instance.id"]
