"""How a run of a graph begins: where it keeps its steps, and how an attempt goes on from one."""

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.types import StateSnapshot

from app.agents.callback import RunHandler
from app.agents.checkpoints import CLAIM
from app.agents.final_answer import unanswered_calls
from app.runs.events import IterationCounted, RunBeganAnew
from app.runs.ports import AgentCall

# Marks, in a checkpoint, the run that wrote it.
RUN = "watchkeeper_run_id"


def config_of(call: AgentCall, *, in_thread: bool) -> RunnableConfig:
    """Where a graph without threads of its own keeps its steps, no two runs meet.

    Whose step it is stands in its metadata, where it is kept for a later attempt to read: LangChain
    merges metadata anew for every call.
    """
    kept = call.durable or in_thread
    about: RunnableConfig = {"metadata": {RUN: call.run_id}} if kept else {}
    if in_thread and call.thread_id:
        return {"configurable": {"thread_id": call.thread_id}, **about}
    claim_token = {CLAIM: call.fence.claim_token} if call.fence is not None else {}
    return {"configurable": {"thread_id": call.run_id, **claim_token}, **about}


async def from_input(graph: Any, config: RunnableConfig, kept: StateSnapshot) -> RunnableConfig:
    """The step in which the run was asked; what followed stays behind it."""
    while (kept.metadata or {}).get("source") != "input" and kept.parent_config:
        kept = await graph.aget_state(kept.parent_config)
    at = kept.config["configurable"]
    return {**config, "configurable": {**config["configurable"], **at}}


def begin_anew(handler: RunHandler, nodes: tuple[str, ...]) -> None:
    """The run begins again from its input; `nodes` are those that it would have gone on with."""
    handler.turns.go_on_from(0)
    handler.call.emit(RunBeganAnew(**handler.about, at=handler.clock(), nodes=nodes))


def go_on(
    handler: RunHandler, messages: Sequence[BaseMessage], output_tools: frozenset[str]
) -> None:
    """Count the turns of an earlier attempt; what its last model was asked was said before it."""
    asked_at = max((n for n, m in enumerate(messages) if isinstance(m, HumanMessage)), default=0)
    turns = [
        message
        for message in messages[asked_at:]
        if isinstance(message, AIMessage)
        and any(call["name"] not in output_tools for call in message.tool_calls)
    ]
    # A turn that was reported and not kept is made again, and counts once; where more are missing,
    # the agent itself has shortened what was said.
    iterations = handler.turns.iterations
    if iterations <= len(turns) + 1:
        iterations = len(turns)
    handler.turns.go_on_from(iterations)
    handler.turns.know(messages)
    for number, turn in enumerate(turns[handler.call.iterations :], handler.call.iterations + 1):
        handler.call.emit(  # kept, and not reported before its process died
            IterationCounted(
                **handler.about,
                at=handler.clock(),
                iteration=number,
                tool_calls=len(turn.tool_calls),
            )
        )
    # An earlier version may have had other tools.
    handler.turns.reject_unknown([call["name"] for call in unanswered_calls(last_turn(messages))])


def last_turn(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """The last message of the model and the tool results that followed it."""
    for position in range(len(messages) - 1, -1, -1):
        if isinstance(messages[position], AIMessage):
            return list(messages[position:])
    return []
