"""Whose failure ended a run: the model's, or the agent's own."""

from collections.abc import Iterator
from contextlib import contextmanager

from langgraph.errors import GraphBubbleUp

from app.agents.callback import RunHandler
from app.runs.errors import AgentFailed, Interrupted, ModelFailed, RunError


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
    except GraphBubbleUp as raised:
        raise Interrupted from raised
    except Exception as raised:  # foreign code: an agent may raise anything
        by_model = any(cause is error for cause in _causes(raised) for error in handler.errors)
        raise (ModelFailed if by_model else AgentFailed) from raised


def _causes(raised: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = raised
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
