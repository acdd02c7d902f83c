"""Reads model responses and model exceptions of any provider."""

from langchain_core.messages import AIMessage
from langchain_core.outputs import LLMResult
from langgraph.errors import GraphInterrupt

from app.agents.errors import IncompleteAnswer
from app.agents.models import finish_reasons
from app.runs import plain
from app.runs.errors import HandedOver
from app.runs.model import NO_USAGE, CallOutcome, Usage

# No call uses more tokens: a larger number is a fault of the provider.
_MOST = 1_000_000_000_000


def message(response: LLMResult) -> AIMessage | None:
    """Return the message of a model call; None for a text completion model."""
    for generation in response.generations[0] if response.generations else ():
        found = getattr(generation, "message", None)
        if isinstance(found, AIMessage):
            return found
    return None


def usage(message: AIMessage | None) -> Usage:
    """Return the reported tokens. Raises TypeError if they are not whole numbers."""
    spent = message.usage_metadata if message is not None else None
    if not spent:
        return NO_USAGE
    read = spent.get("input_token_details") or {}
    written = spent.get("output_token_details") or {}
    _whole(spent.get("total_tokens"))  # a wrong sum makes its parts doubtful
    return Usage(
        input_tokens=_whole(spent.get("input_tokens")),
        output_tokens=_whole(spent.get("output_tokens")),
        cache_read=_whole(read.get("cache_read")),
        cache_creation=_whole(read.get("cache_creation")),
        reasoning=_whole(written.get("reasoning")),
    )


def _whole(tokens: object) -> int:
    if tokens is None:
        return 0
    if not isinstance(tokens, int) or not 0 <= tokens <= _MOST:
        raise TypeError("a provider reported its usage in other than whole numbers")
    return tokens


def call_outcome(error: BaseException, otherwise: CallOutcome) -> CallOutcome:
    """Return the outcome of a call that raised."""
    if isinstance(error, GraphInterrupt):
        return CallOutcome.INTERRUPTED
    if isinstance(error, IncompleteAnswer):
        return CallOutcome.INCOMPLETE
    if isinstance(error, HandedOver):
        return CallOutcome.CANCELLED  # the fence stopped it: another process owns the run
    return CallOutcome.RATE_LIMITED if getattr(error, "status_code", 0) == 429 else otherwise


def finish_reason(message: AIMessage | None) -> str | None:
    """Return the provider's finish reason."""
    reason = finish_reasons.of_message(message).reason if message is not None else None
    return plain.name(reason) if reason else None
