"""Our spans beside those of OpenTelemetry's own instrumentation of LangChain, for one scenario."""

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage
from opentelemetry.instrumentation.genai.langchain import LangChainInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes

from app.telemetry import conventions
from tests import fakes
from tests.telemetry.watched import Watched, parent_of, watched

pytestmark = pytest.mark.asyncio(loop_scope="module")
OPERATIONS = ("invoke_agent", "chat", "execute_tool")
# What the conventions require, or require where it is known.
REQUIRED = (
    gen_ai_attributes.GEN_AI_OPERATION_NAME,
    gen_ai_attributes.GEN_AI_PROVIDER_NAME,
    gen_ai_attributes.GEN_AI_REQUEST_MODEL,
    gen_ai_attributes.GEN_AI_AGENT_NAME,
    gen_ai_attributes.GEN_AI_TOOL_NAME,
    gen_ai_attributes.GEN_AI_TOOL_TYPE,
    gen_ai_attributes.GEN_AI_TOOL_CALL_ID,
    gen_ai_attributes.GEN_AI_RESPONSE_FINISH_REASONS,
    gen_ai_attributes.GEN_AI_USAGE_INPUT_TOKENS,
    gen_ai_attributes.GEN_AI_USAGE_OUTPUT_TOKENS,
    error_attributes.ERROR_TYPE,
)
# What LangChain calls providers for which the conventions have a name.
PROVIDERS = (
    "openai", "anthropic", "azure", "amazon_bedrock", "google_genai", "google_vertexai",
    "mistralai", "groq", "xai",
)  # fmt: skip


class NamedModel(fakes.ScriptedModel):
    """A model that reports its name and its finish reason."""

    provider: str = "openai"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(
            ls_provider=self.provider, ls_model_type="chat", ls_model_name="gpt-4o-mini"
        )


def _script(messages: Sequence[Any]) -> AIMessage:
    message = fakes.calls_then_answers("look", parallel=2)(messages)
    reason = "tool_calls" if message.tool_calls else "stop"
    message.response_metadata = {"finish_reason": reason, "model_name": "gpt-4o-mini-2024"}
    return message


def agent(provider: str = "openai", error: Exception | None = None) -> Any:
    """The scenario: a turn with two tool calls, then an answer."""
    model = NamedModel(script=_script, provider=provider, error=error)
    return fakes.build("create_agent", model, fakes.ToolDesk().tools(), name="orders")


@dataclass(frozen=True)
class ComparableSpan:
    """The parts of a span that must be equal in ours and theirs."""

    name: str
    kind: str
    parent: str
    is_error: bool
    attributes: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, name: str, kind: str, parent: str, is_error: bool, fields: Any) -> "ComparableSpan":
        """Lists and tuples are alike on the wire."""
        required = [(key, fields[key]) for key in REQUIRED if key in fields]
        pairs = tuple((k, str(list(v) if isinstance(v, tuple) else v)) for k, v in required)
        return cls(name, kind, parent, is_error, pairs)


@contextmanager
def theirs() -> Iterator[InMemorySpanExporter]:
    """Run OpenTelemetry's own instrumentation."""
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    instrumentor = LangChainInstrumentor()  # type: ignore[no-untyped-call]
    before = dict(os.environ)
    instrumentor.instrument(tracer_provider=provider)
    try:
        yield memory
    finally:
        instrumentor.uninstrument()
        provider.shutdown()
        for name in set(os.environ) - set(before):
            del os.environ[name]


def comparable(spans: Sequence[ReadableSpan]) -> list[ComparableSpan]:
    """Theirs, by the names of their parents."""
    names = {span.context.span_id: span.name for span in spans if span.context is not None}
    return [
        ComparableSpan.of(
            span.name,
            span.kind.name,
            names[span.parent.span_id] if span.parent else "",
            not span.status.is_ok and not span.status.is_unset,
            span.attributes,
        )
        for span in spans
    ]


async def ours(signals: Watched, name: str) -> list[ComparableSpan]:
    """Our own, of one run through the service; the server span is not theirs to have."""
    response = await signals.desk.ask(agent=name)
    spans = await signals.trace_of(response.json()["run_id"])
    found = []
    for span in spans:
        if span.operation in OPERATIONS:
            parent = parent_of(span, spans)
            above = parent.name if parent and parent.kind != "SERVER" else ""
            found.append(
                ComparableSpan.of(span.name, span.kind, above, span.is_error, span.attributes)
            )
    return found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def signals() -> AsyncIterator[Watched]:
    agents = {f"from-{provider}": agent(provider) for provider in PROVIDERS}
    agents |= {"orders": agent(), "broken": agent(error=RuntimeError("secret-in-exception"))}
    async with watched(agents) as service:
        yield service


def sorted_by_name(spans: Sequence[ComparableSpan]) -> list[ComparableSpan]:
    """In an order that does not depend on when spans ended."""
    return sorted(spans, key=lambda t: (t.name, t.attributes))


async def test_spans_match_the_official_instrumentation(signals: Watched) -> None:
    """Our spans have the names, kinds, parents and required attributes of theirs."""
    with theirs() as memory:
        await agent().ainvoke({"messages": [("user", "q")]})
        expected = comparable(memory.get_finished_spans())
    found = await ours(signals, "orders")
    assert [span.name for span in sorted_by_name(expected)] == [
        "chat gpt-4o-mini",
        "chat gpt-4o-mini",
        "execute_tool look",
        "execute_tool look",
        "invoke_agent orders",
    ]
    for mine, other in zip(sorted_by_name(found), sorted_by_name(expected), strict=True):
        attributes = dict(mine.attributes)
        assert (mine.name, mine.kind, mine.parent) == (other.name, other.kind, other.parent)
        assert mine.is_error is other.is_error
        missing = {key: value for key, value in other.attributes if attributes.get(key) != value}
        assert not missing, mine


async def test_span_of_a_failed_model_matches(signals: Watched) -> None:
    """The span of a failed model matches theirs, except for the text of the exception."""
    with theirs() as memory:
        with pytest.raises(RuntimeError):
            await agent(error=RuntimeError("x")).ainvoke({"messages": [("user", "q")]})
        expected = comparable(memory.get_finished_spans())
    found = await ours(signals, "broken")
    (other,) = [span for span in expected if span.name.startswith("chat")]
    (mine,) = [span for span in found if span.name.startswith("chat")]
    assert (mine.kind, mine.is_error) == (other.kind, other.is_error)
    error_type = error_attributes.ERROR_TYPE
    assert dict(mine.attributes)[error_type] == dict(other.attributes)[error_type]
    assert not any(b"secret-in-exception" in body for body in signals.collector.raw)


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_providers_have_well_known_names(signals: Watched, provider: str) -> None:
    """A provider has one of the names that the conventions know, not LangChain's own."""
    found = await ours(signals, f"from-{provider}")
    key = gen_ai_attributes.GEN_AI_PROVIDER_NAME
    names = {dict(span.attributes)[key] for span in found if span.name.startswith("chat")}
    assert names <= {each.value for each in gen_ai_attributes.GenAiProviderNameValues}


async def test_our_strings_are_those_of_the_conventions() -> None:
    """Every string that claims to be of the conventions is one of theirs."""
    known = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    ours_too = [v for v in vars(conventions).values() if isinstance(v, str)]
    claimed = [value for value in ours_too if value.startswith("gen_ai.")]
    assert len(claimed) > 10
    assert set(claimed) <= known
    assert conventions.ERROR_TYPE == error_attributes.ERROR_TYPE
    operations = {each.value for each in gen_ai_attributes.GenAiOperationNameValues}
    mine = {conventions.INVOKE_AGENT, conventions.CHAT, conventions.EXECUTE_TOOL}
    assert mine <= operations


async def test_every_span_attribute_is_documented(signals: Watched) -> None:
    """Every attribute of our spans is in the list from which the reference page is made."""
    await ours(signals, "orders")
    await ours(signals, "broken")
    written = {kind.name.split()[0]: set[str]() for kind in conventions.SPANS}
    for kind in conventions.SPANS:
        written[kind.name.split()[0]] |= set(kind.attributes)
    for span in signals.collector.spans:
        if span.operation in OPERATIONS:
            assert set(span.attributes) <= written[span.operation], span.name
