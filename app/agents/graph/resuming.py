"""How a graph run starts: where its checkpoints are, and how an attempt resumes from one."""

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.types import StateSnapshot

from app.agents.checkpoints import CLAIM
from app.agents.final_answer import unanswered_calls
from app.agents.handler.callback import RunHandler
from app.runs.events import IterationCounted, RunBeganAnew
from app.runs.ports import AgentCall

# Checkpoint metadata key: the run that wrote it.
RUN = "watchkeeper_run_id"


def checkpoint_config(call: AgentCall, *, in_thread: bool) -> RunnableConfig:
    """Return the configuration that selects the checkpoints of a run.

    Without threads of the graph's own, each run has its own thread id. The metadata holds the run
    id, so that a later attempt recognises its checkpoint. Only stored runs have it, since
    LangChain merges metadata in every call.
    """
    stored = call.durable or in_thread
    metadata: RunnableConfig = {"metadata": {RUN: call.run_id}} if stored else {}
    if in_thread and call.thread_id:
        return {"configurable": {"thread_id": call.thread_id}, **metadata}
    claim_token = {CLAIM: call.fence.claim_token} if call.fence is not None else {}
    return {"configurable": {"thread_id": call.run_id, **claim_token}, **metadata}


async def config_of_input(
    graph: Any, config: RunnableConfig, saved: StateSnapshot
) -> RunnableConfig:
    """Return the configuration of the checkpoint that holds the run's input."""
    while (saved.metadata or {}).get("source") != "input" and saved.parent_config:
        saved = await graph.aget_state(saved.parent_config)
    checkpoint = saved.config["configurable"]
    return {**config, "configurable": {**config["configurable"], **checkpoint}}


def restart(handler: RunHandler, nodes: tuple[str, ...]) -> None:
    """Restart the run from its input. `nodes` are the missing nodes that prevent a resume."""
    handler.turns.resume_at(0)
    handler.call.emit(RunBeganAnew(**handler.run_fields, at=handler.clock(), nodes=nodes))


def resume(
    handler: RunHandler, messages: Sequence[BaseMessage], output_tools: frozenset[str]
) -> None:
    """Continue the counts of an earlier attempt from its stored messages."""
    question_at = max((n for n, m in enumerate(messages) if isinstance(m, HumanMessage)), default=0)
    turns = [
        message
        for message in messages[question_at:]
        if isinstance(message, AIMessage)
        and any(call["name"] not in output_tools for call in message.tool_calls)
    ]
    # A turn that was emitted but not stored is made again, and counts once. If more are missing,
    # the agent itself has trimmed its messages.
    iterations = handler.turns.iterations
    if iterations <= len(turns) + 1:
        iterations = len(turns)
    handler.turns.resume_at(iterations)
    handler.turns.mark_known(messages)
    for number, turn in enumerate(turns[handler.call.iterations :], handler.call.iterations + 1):
        handler.call.emit(  # stored, but not emitted before its process died
            IterationCounted(
                **handler.run_fields,
                at=handler.clock(),
                iteration=number,
                tool_calls=len(turn.tool_calls),
            )
        )
    # An earlier version of the agent may have had other tools.
    handler.turns.reject_unknown(
        [call["name"] for call in unanswered_calls(last_exchange(messages))]
    )


def last_exchange(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return the last message of the model and the tool results that followed it."""
    for position in range(len(messages) - 1, -1, -1):
        if isinstance(messages[position], AIMessage):
            return list(messages[position:])
    return []
