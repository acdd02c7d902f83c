"""The answer at the iteration limit: asked of the model once more, or a fixed sentence."""

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig

from app.agents.callback import RunHandler
from app.agents.retry import retrying
from app.runs.events import IterationLimitReached
from app.runs.model import AgentAnswer, EarlyStopping, Limit
from app.runs.ports import AgentCall

_REACT_ANSWER, _REACT_ACTION = "Final Answer:", "\nAction:"


def fixed_sentence(limit: int) -> str:
    """What stands for an answer that no model wrote."""
    turns = "1 iteration" if limit == 1 else f"{limit} iterations"
    return f"No answer was found within the limit of {turns}."


async def last_answer(
    call: AgentCall,
    handler: RunHandler,
    model: BaseLanguageModel[Any] | None,
    new_turn: Sequence[BaseMessage],
    attempts: int = 1,
) -> AgentAnswer:
    """The answer of a run that was stopped at its limit.

    With `generate` the model is asked once more, without tools, with the messages of its last
    call (the agent's own system prompt among them) and the turn that followed. What a model
    raises here goes on to the caller as any other failure of the model.
    """
    call.emit(
        IterationLimitReached(
            **handler.about,
            at=handler.clock(),
            iteration_limit=call.iteration_limit,
            limit=Limit.ITERATIONS,
        )
    )
    handler.finishing = True
    text = ""
    if model is not None and call.early_stopping is EarlyStopping.GENERATE:
        asked = [*handler.models.basis, *new_turn]
        config: RunnableConfig = {"callbacks": [handler]}
        text = _said(await retrying(attempts)(model.ainvoke, asked, config=config))
    return AgentAnswer(text or fixed_sentence(call.iteration_limit), limit=Limit.ITERATIONS)


def _said(reply: object) -> str:
    text = str(reply.text if isinstance(reply, BaseMessage) else reply)
    if _REACT_ANSWER in text:
        return text.rpartition(_REACT_ANSWER)[2].strip()
    # A ReAct model that still asks for a tool has not answered.
    return "" if _REACT_ACTION in f"\n{text}" else text.strip()
