"""How a run of foreign code ends: by whose failure, at a limit, or with a rule of the agent's."""

from collections.abc import Iterator
from contextlib import contextmanager

from langgraph.errors import GraphInterrupt

from app.agents import error_classification
from app.agents.callback import RunHandler
from app.agents.errors import IncompleteAnswer
from app.runs.errors import (
    AgentFailed,
    AnswerFiltered,
    Interrupted,
    ModelFailed,
    OutputInvalid,
    RunError,
)
from app.runs.model import AgentAnswer

# What a caller reads where a rule of the agent's own stopped it.
BLOCKED = "A rule of the agent does not let it answer this."


@contextmanager
def translated_errors(handler: RunHandler) -> Iterator[None]:
    """Turn whatever foreign code raises into ModelFailed, AgentFailed or Interrupted."""
    try:
        yield
    except RunError:
        raise
    except Exception as raised:  # foreign code: an agent may raise anything
        raise as_run_error(handler, raised) from raised
    finally:
        handler.release()


def as_run_error(handler: RunHandler, raised: BaseException) -> RunError:
    """What foreign code raised, as the core's own error with that as its cause.

    A model's exception is known by identity: the handler saw it before it went up. Agents wrap
    exceptions, so its causes count too.
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


def refusal_of(raised: BaseException) -> AgentAnswer | None:
    """The answer where what was raised is a refusal: a model's own words, or a rule's block."""
    if error_classification.is_guardrail_block(raised):
        return AgentAnswer(BLOCKED, refused=True)
    words = error_classification.refusal_in(raised)
    return AgentAnswer(words, refused=True) if words else None


def _causes(raised: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = raised
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
