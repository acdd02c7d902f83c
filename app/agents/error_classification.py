"""Classifies an exception of foreign code by its class, or by the class of its cause.

Only `__cause__` counts, not `__context__`: the agent has handled the exception in the context.
"""

import traceback
from collections.abc import Iterator

from langchain.agents.middleware import PIIDetectionError
from langchain.agents.middleware.model_call_limit import ModelCallLimitExceededError
from langchain.agents.middleware.tool_call_limit import ToolCallLimitExceededError
from langchain.agents.structured_output import StructuredOutputError
from langchain_core.exceptions import ModelError, OutputParserException
from langchain_core.messages import AIMessage
from langgraph.errors import GraphRecursionError

from app.agents.errors import FilteredAnswer
from app.agents.models import finish_reasons
from app.agents.models.finish_reasons import FinishKind
from app.agents.models.message_content import refusal_of

_MODELS = (ModelError, OutputParserException, StructuredOutputError)
_LIMITS = (ModelCallLimitExceededError, ToolCallLimitExceededError, GraphRecursionError)
# Modules in which LangChain parses model answers. Errors of Pydantic and JSON come from there too.
_PARSERS = (
    "langchain_core.output_parsers", "langchain_classic.output_parsers",
    "langchain_classic.agents", "langchain_openai.chat_models",
)  # fmt: skip
# Provider error codes: a filter stopped a prompt or an answer.
_FILTER_CODES = ("content_filter", "content_policy_violation", "moderation_blocked")
# Names of classes in packages that are loaded only if an agent uses them.
_FILTER_CLASS = "ContentFilterFinishReasonError"
_REFUSAL_CLASS = "OpenAIRefusalError"
_BLOCK_CLASS = "OpenAIModerationError"
# Anthropic has no error code for filters.
_FILTER_SENTENCE = "content filtering policy"


def is_model_error(error: BaseException) -> bool:
    """Whether a model failed, or its answer could not be parsed."""
    return any(isinstance(e, _MODELS) or _in_parser(e) for e in causes(error))


def is_filtered(error: BaseException) -> bool:
    """Whether a provider's filter stopped an answer or a prompt. A retry does not help."""
    return any(map(_is_filter_error, causes(error)))


def is_library_limit(error: BaseException) -> bool:
    """Whether LangChain's or LangGraph's own limit stopped the agent."""
    return any(isinstance(e, _LIMITS) for e in causes(error))


def is_guardrail_block(error: BaseException) -> bool:
    """Whether a middleware blocked the question or the answer."""
    return any(
        isinstance(e, PIIDetectionError) or _has_class_name(e, _BLOCK_CLASS) for e in causes(error)
    )


def refusal_in(error: BaseException) -> str | None:
    """Return the refusal of a model that was asked for structured output."""
    for cause in causes(error):
        if _has_class_name(cause, _REFUSAL_CLASS):
            return str(cause)
        message = _message(cause)
        if message is not None and (refusal := refusal_of(message)):
            return refusal
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the exception, its `__cause__` chain, and the members of groups."""
    waiting, seen = [error], set[int]()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if current.__cause__ is not None:
            waiting.append(current.__cause__)
        if isinstance(current, BaseExceptionGroup):
            waiting.extend(current.exceptions)


def _is_filter_error(error: BaseException) -> bool:
    if isinstance(error, FilteredAnswer) or _has_class_name(error, _FILTER_CLASS):
        return True
    message = _message(error)
    if message is not None:
        return finish_reasons.of_message(message).kind is FinishKind.FILTERED
    if getattr(error, "status_code", None) != 400:
        return False
    return getattr(error, "code", None) in _FILTER_CODES or _FILTER_SENTENCE in str(error)


def _message(error: BaseException) -> AIMessage | None:
    """Return the unparsable answer, if the exception holds it."""
    message = getattr(error, "raw_message", None) or getattr(error, "ai_message", None)
    return message if isinstance(message, AIMessage) else None


def _has_class_name(error: BaseException, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(error).__mro__)


def _in_parser(error: BaseException) -> bool:
    """Whether a LangChain parser raised it."""
    return isinstance(error, ValueError) and any(
        "parse" in frame.f_code.co_name
        and str(frame.f_globals.get("__name__")).startswith(_PARSERS)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )
