"""Classifies an exception of foreign code by its class, or by the class of its cause.

An exception that was raised while another was handled, and not from it, has no cause here: the
agent has handled that other one.
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

from app.agents import finish_reasons
from app.agents.errors import FilteredAnswer
from app.agents.finish_reasons import FinishKind
from app.agents.message_content import refusal_of

_MODELS = (ModelError, OutputParserException, StructuredOutputError)
_LIMITS = (ModelCallLimitExceededError, ToolCallLimitExceededError, GraphRecursionError)
# Modules in which LangChain reads a model's answer. Pydantic and JSON raise errors of no class of
# LangChain's there.
_PARSERS = (
    "langchain_core.output_parsers", "langchain_classic.output_parsers",
    "langchain_classic.agents", "langchain_openai.chat_models",
)  # fmt: skip
# Codes with which a provider reports that a filter stopped a prompt or an answer.
_FILTER_CODES = ("content_filter", "content_policy_violation", "moderation_blocked")
# Classes of a package that is loaded only if an agent uses it: known by name.
_FILTER_CLASS = "ContentFilterFinishReasonError"
_REFUSAL_CLASS = "OpenAIRefusalError"
_BLOCK_CLASS = "OpenAIModerationError"
# Anthropic has no code for it.
_FILTER_SENTENCE = "content filtering policy"


def is_model_error(error: BaseException) -> bool:
    """Whether a model failed, or gave an answer that its agent's parser could not read."""
    return any(isinstance(e, _MODELS) or _in_parser(e) for e in causes(error))


def is_filtered(error: BaseException) -> bool:
    """Whether a provider's filter stopped an answer or a prompt. Asking again does not help."""
    return any(map(_filtered, causes(error)))


def is_library_limit(error: BaseException) -> bool:
    """Whether a limit of LangChain's or LangGraph's own stopped the agent."""
    return any(isinstance(e, _LIMITS) for e in causes(error))


def is_guardrail_block(error: BaseException) -> bool:
    """Whether a middleware blocked the question or the answer."""
    return any(isinstance(e, PIIDetectionError) or _named(e, _BLOCK_CLASS) for e in causes(error))


def refusal_in(error: BaseException) -> str | None:
    """The text of a refusal that a model gave when it was asked for structured output."""
    for cause in causes(error):
        if _named(cause, _REFUSAL_CLASS):
            return str(cause)
        message = _message(cause)
        if message is not None and (refusal := refusal_of(message)):
            return refusal
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, those that it was raised from, and the members of groups."""
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


def _filtered(error: BaseException) -> bool:
    if isinstance(error, FilteredAnswer) or _named(error, _FILTER_CLASS):
        return True
    message = _message(error)
    if message is not None:
        return finish_reasons.of_message(message).kind is FinishKind.FILTERED
    if getattr(error, "status_code", None) != 400:
        return False
    return getattr(error, "code", None) in _FILTER_CODES or _FILTER_SENTENCE in str(error)


def _message(error: BaseException) -> AIMessage | None:
    """The answer that could not be read, if the exception has it."""
    held = getattr(error, "raw_message", None) or getattr(error, "ai_message", None)
    return held if isinstance(held, AIMessage) else None


def _named(error: BaseException, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(error).__mro__)


def _in_parser(error: BaseException) -> bool:
    """Whether it was raised while a parser of LangChain's read an answer."""
    return isinstance(error, ValueError) and any(
        "parse" in frame.f_code.co_name
        and str(frame.f_globals.get("__name__")).startswith(_PARSERS)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )
