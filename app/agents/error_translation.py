"""Translates exceptions of foreign code into the core's errors, or into a refusal."""

from collections.abc import Iterator
from contextlib import contextmanager

from langgraph.errors import GraphInterrupt

from app.agents import error_classification
from app.agents.errors import IncompleteAnswer
from app.agents.handler.callback import RunHandler
from app.runs.errors import (
    AgentFailed,
    AnswerFiltered,
    Interrupted,
    ModelFailed,
    OutputInvalid,
    RunError,
)
from app.runs.model import AgentAnswer

# The answer to the caller if the agent's own rule blocked the question.
BLOCKED = "A rule of the agent does not let it answer this."


@contextmanager
def translated_errors(handler: RunHandler) -> Iterator[None]:
    """Raise exceptions of foreign code as errors of the core, and release the handler."""
    try:
        yield
    except RunError:
        raise
    except Exception as raised:  # foreign code: an agent may raise anything
        raise as_run_error(handler, raised) from raised
    finally:
        handler.release()


def as_run_error(handler: RunHandler, raised: BaseException) -> RunError:
    """Return the core's error for an exception of foreign code, with that as its cause.

    A model's exception is recognised by identity, since the handler has seen it. Agents wrap
    exceptions, so causes count too.
    """
    failure = _failure(handler, raised)
    failure.__cause__ = raised
    return failure


def _failure(handler: RunHandler, raised: BaseException) -> RunError:
    if isinstance(raised, GraphInterrupt):
        return Interrupted()
    errors = handler.models.errors
    by_model = [cause for cause in _causes(raised) if any(cause is error for error in errors)]
    if error_classification.is_filtered(raised):
        return AnswerFiltered()
    if by_model or isinstance(raised, IncompleteAnswer):
        return ModelFailed()
    return OutputInvalid() if error_classification.is_model_error(raised) else AgentFailed()


def refusal_answer(raised: BaseException) -> AgentAnswer | None:
    """Return the answer if the exception is a refusal: by a model, or by the agent's rule."""
    if error_classification.is_guardrail_block(raised):
        return AgentAnswer(BLOCKED, refused=True)
    text = error_classification.refusal_in(raised)
    return AgentAnswer(text, refused=True) if text else None


def _causes(raised: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = raised
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
