"""The final answer of a run that was stopped from outside: one more model call, or a fixed one.

Most runs at their limit conclude with a last turn without tools. This is for the others: runs
stopped by a ceiling, a library's limit or a recursion limit, and executors.
"""

from collections.abc import Sequence
from typing import Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig

from app.agents.handler.callback import RunHandler
from app.agents.handler.last_turn import cut, fixed_sentence
from app.agents.handler.pending_model_call import is_final_call, without_tools
from app.agents.models.retry import retrying
from app.runs.model import EarlyStopping, Limit

__all__ = ["ask_for_final_answer", "final_prompt", "fixed_sentence", "placeholder_results"]


async def ask_for_final_answer(
    handler: RunHandler,
    model: BaseLanguageModel[Any] | None,
    messages: Sequence[BaseMessage],
    attempts: int = 1,
    limit: Limit = Limit.ITERATIONS,
) -> AIMessage | str:
    """Ask the agent's model for an answer from the messages so far.

    The call goes to the model of the latest turn, with its options but without tools. Its
    exceptions propagate like any other failure of the model. The answer is empty without a model,
    and if early stopping is `force`.
    """
    handler.limits.reached(limit)
    handler.limits.cut = True  # branches that still run make no more calls
    latest = handler.models.latest
    chosen = latest.pending.model if latest is not None and latest.pending.model else model
    if chosen is None or handler.call.early_stopping is not EarlyStopping.GENERATE:
        return ""
    options = without_tools(latest.pending.options, frozenset()) if latest is not None else {}
    config: RunnableConfig = {"callbacks": [handler]}
    token = is_final_call.set(True)
    try:
        retry = retrying(attempts)
        reply: Any = await retry(chosen.ainvoke, list(messages), config=config, **options)
    finally:
        is_final_call.reset(token)
    return cut(reply) if isinstance(reply, AIMessage) else str(getattr(reply, "text", reply))


def final_prompt(handler: RunHandler, state: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return the messages of the latest turn with its results; else those of the state."""
    latest = handler.models.latest
    if latest is None:
        prompt: list[BaseMessage] = list(state) or [HumanMessage(handler.call.question)]
        return [*prompt, *placeholder_results(prompt)]
    prompt = list(latest.messages)
    if latest.reply is None:
        return prompt
    results = {m.tool_call_id: m for m in state if isinstance(m, ToolMessage)} | latest.results
    calls = [str(call["id"]) for call in latest.reply.tool_calls]
    found = [results[call] for call in calls if call in results]
    if not found:
        return prompt
    turn = [latest.reply, *found]
    return [*prompt, *turn, *placeholder_results(turn)]


def unanswered_calls(messages: Sequence[BaseMessage]) -> list[ToolCall]:
    """Return the tool calls in the messages that have no result."""
    results = {m.tool_call_id for m in messages if isinstance(m, ToolMessage)}
    return [
        call
        for message in messages
        if isinstance(message, AIMessage)
        for call in message.tool_calls
        if call["id"] not in results
    ]


def placeholder_results(messages: Sequence[BaseMessage]) -> list[ToolMessage]:
    """Return a result for each unanswered tool call: providers reject calls without one."""
    return [
        ToolMessage("This call was not made.", tool_call_id=str(call["id"]), status="error")
        for call in unanswered_calls(messages)
    ]
