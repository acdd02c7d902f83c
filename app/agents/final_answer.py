"""The answer of a run that was stopped from outside: asked of its model once more, or fixed.

Most runs at their limit conclude by themselves, by a last turn without tools. This is for those
that cannot: stopped by a ceiling, by a library's limit or by a recursion limit, or executors.
"""

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig

from app.agents.callback import RunHandler
from app.agents.last_turn import cut, fixed_sentence
from app.agents.pending_model_call import is_final_call, without_tools
from app.agents.retry import retrying
from app.runs.model import EarlyStopping, Limit

__all__ = ["ask_for_final_answer", "final_prompt", "fixed_sentence", "placeholder_results"]


async def ask_for_final_answer(
    handler: RunHandler,
    model: BaseLanguageModel[Any] | None,
    messages: Sequence[BaseMessage],
    attempts: int = 1,
    limit: Limit = Limit.ITERATIONS,
) -> AIMessage | str:
    """What the agent's model answers with what was found so far; empty where it is not asked.

    The model that was asked last is asked, with its own options, and without tools. What it
    raises goes on to the caller as any other failure of the model.
    """
    handler.limits.reached(limit)
    handler.limits.cut = True  # what is still at work asks no more
    latest = handler.models.latest
    asked = latest.asking.model if latest is not None and latest.asking.model else model
    if asked is None or handler.call.early_stopping is not EarlyStopping.GENERATE:
        return ""
    options = without_tools(latest.asking.options, frozenset()) if latest is not None else {}
    config: RunnableConfig = {"callbacks": [handler]}
    token = is_final_call.set(True)
    try:
        again = retrying(attempts)
        reply: Any = await again(asked.ainvoke, list(messages), config=config, **options)
    finally:
        is_final_call.reset(token)
    return cut(reply) if isinstance(reply, AIMessage) else str(getattr(reply, "text", reply))


def final_prompt(handler: RunHandler, state: Sequence[BaseMessage]) -> list[BaseMessage]:
    """What the last turn was asked, and what came of it; else what stands in the state."""
    latest = handler.models.latest
    if latest is None:
        asked: list[BaseMessage] = list(state) or [HumanMessage(handler.call.question)]
        return [*asked, *placeholder_results(asked)]
    asked = list(latest.messages)
    if latest.reply is None:
        return asked
    results = {m.tool_call_id: m for m in state if isinstance(m, ToolMessage)} | latest.results
    calls = [str(call["id"]) for call in latest.reply.tool_calls]
    found = [results[call] for call in calls if call in results]
    if not found:
        return asked
    turn = [latest.reply, *found]
    return [*asked, *turn, *placeholder_results(turn)]


def unanswered_calls(messages: Sequence[BaseMessage]) -> list[ToolCall]:
    """The tool calls that the messages ask for and hold no result of."""
    results = {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
    return [
        call
        for message in messages
        if isinstance(message, AIMessage)
        for call in message.tool_calls
        if call["id"] not in results
    ]


def placeholder_results(messages: Sequence[BaseMessage]) -> list[ToolMessage]:
    """A result for each tool call that never got one: providers refuse a call without."""
    return [
        ToolMessage("This call was not made.", tool_call_id=str(call["id"]), status="error")
        for call in unanswered_calls(messages)
    ]
