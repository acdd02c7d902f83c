"""The attributes that spans get at their ends, and the ends that are errors."""

from opentelemetry.trace import SpanContext, TraceFlags
from opentelemetry.util.types import AttributeValue

from app.runs import plain
from app.runs.events import (
    ModelCallFinished,
    RunFinished,
    SubAgentFinished,
    ToolCallFinished,
)
from app.runs.model import CallOutcome, Outcome
from app.telemetry import conventions as name

ERRORS = (Outcome.TIMEOUT, Outcome.ITERATION_LIMIT, Outcome.FAILED)
CALL_ERRORS = (
    CallOutcome.FAILED,
    CallOutcome.TOOL_ERROR,
    CallOutcome.TIMEOUT,
    CallOutcome.RATE_LIMITED,
    CallOutcome.INCOMPLETE,
)


def context_of(traceparent: str) -> SpanContext:
    """Return the span that a W3C `traceparent` header names."""
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
    )


def error_type(fact: ModelCallFinished | ToolCallFinished | SubAgentFinished) -> str:
    """Return the type of the exception if it says more than the outcome, else the outcome."""
    error = getattr(fact, "error", None)
    if error is None or fact.outcome is CallOutcome.TOOL_ERROR:
        return fact.outcome.value
    return plain.name(type(error).__name__)


def sub_agent_attributes(fact: SubAgentFinished) -> dict[str, AttributeValue]:
    """Return the attributes that a sub-agent's span gets at its end."""
    return {
        name.RUN_ITERATIONS: fact.tally.iterations,
        name.RUN_TOOL_CALLS: fact.tally.tool_calls,
        name.INPUT_TOKENS: fact.tally.usage.input_tokens,
        name.OUTPUT_TOKENS: fact.tally.usage.output_tokens,
    }


def run_attributes(fact: RunFinished) -> dict[str, AttributeValue]:
    """Return the attributes that a run's span gets at its end."""
    attributes: dict[str, AttributeValue] = {
        name.RUN_OUTCOME: fact.outcome,
        name.RUN_DEADLINE: fact.timeout_s,
        name.RUN_ITERATIONS: fact.iterations,
        name.RUN_ITERATION_LIMIT: fact.iteration_limit,
        name.RUN_TOOL_CALLS: fact.tool_calls,
        name.INPUT_TOKENS: fact.usage.input_tokens,
        name.OUTPUT_TOKENS: fact.usage.output_tokens,
    }
    if fact.limit is not None:
        attributes[name.RUN_LIMIT] = fact.limit
    if fact.refused:
        attributes[name.RUN_REFUSED] = True
    if fact.cost_usd is not None:
        attributes[name.RUN_COST] = fact.cost_usd
    if fact.outcome is Outcome.TIMEOUT and fact.phase is not None:
        attributes[name.RUN_TIMEOUT_PHASE] = fact.phase.kind
    if fact.outcome in ERRORS:
        attributes[name.ERROR_TYPE] = fact.code or fact.outcome.value
    return attributes
