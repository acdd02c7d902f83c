"""How a run of foreign code ends: with a whole answer, at the ceiling, or by whose failure."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from langgraph.errors import GraphBubbleUp

from app.agents.callback import RunHandler
from app.runs.errors import AgentFailed, Interrupted, ModelFailed, RunError
from app.runs.model import AgentAnswer


@contextmanager
def blamed(handler: RunHandler) -> Iterator[None]:
    """Turn whatever foreign code raises into ModelFailed, AgentFailed or Interrupted.

    A model's exception is known by identity: the handler saw it before it went up. Agents wrap
    exceptions, so its causes count too.
    """
    try:
        yield
    except RunError:
        raise
    except Exception as raised:  # foreign code: an agent may raise anything
        raise as_run_error(handler, raised) from raised


def as_run_error(handler: RunHandler, raised: BaseException) -> RunError:
    """What foreign code raised, as the core's own error with that as its cause."""
    if isinstance(raised, GraphBubbleUp):
        failure: RunError = Interrupted()
    else:
        errors = handler.models.errors
        by_model = any(cause is error for cause in _causes(raised) for error in errors)
        failure = ModelFailed() if by_model else AgentFailed()
    failure.__cause__ = raised
    return failure


@asynccontextmanager
async def stops_at_ceiling(handler: RunHandler) -> AsyncIterator[None]:
    """End the block quietly when the ceiling of model calls ended it, however it was wrapped."""
    try:
        yield
    except Exception:  # foreign code wraps what passes through it
        if not handler.models.ceiling_reached:
            raise


def whole_answer(handler: RunHandler, text: str, output: Any = None) -> AgentAnswer:
    """The agent's answer. Raises ModelFailed when it is none.

    An empty text is no answer; nor is what an agent says in the place of a model that failed.
    """
    if handler.models.turn.failure or not (text.strip() or output is not None):
        raise ModelFailed
    return AgentAnswer(text, output=output)


def _causes(raised: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = raised
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
