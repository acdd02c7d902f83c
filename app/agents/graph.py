"""Serves any compiled LangGraph graph over `messages`, those of `create_agent` among them."""

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel
from langgraph.types import StateSnapshot

from app.agents import anatomy, next_nodes
from app.agents.builder import ATTEMPTS
from app.agents.callback import RunHandler
from app.agents.checkpoints import CLAIM
from app.agents.conversations import Conversations, InMemory
from app.agents.failure import blamed, stops_at_ceiling, whole_answer
from app.agents.final import last_answer
from app.agents.speaking import handler_for
from app.agents.tools import guarded
from app.runs.errors import Interrupted
from app.runs.events import IterationCounted, RunBeganAnew
from app.runs.model import AgentAnswer, AgentInfo
from app.runs.ports import AgentCall, ThreadStore

# The runs are bounded by iterations, model calls and the deadline, each of which has an outcome.
_RECURSION_LIMIT = 100_000
# Marks, in a checkpoint, the run that wrote it.
_RUN = "watchkeeper_run_id"
_LIBRARY_SENTENCE = "Model call limits exceeded"


class GraphAgent:
    """One graph, built once, run many times at once."""

    def __init__(self, graph: Pregel[Any, Any, Any, Any], info: AgentInfo) -> None:
        self.info = info
        self.verbose = graph.debug
        self._graph = graph
        self._keeps_threads = isinstance(graph.checkpointer, BaseCheckpointSaver)
        self._conversations = Conversations(info.name, InMemory())
        self._durable = graph
        self._attempts = ((graph.config or {}).get("metadata") or {}).get(ATTEMPTS, 1)
        self._model = anatomy.find(graph, BaseChatModel)  # type: ignore[type-abstract]
        self._output_tools = anatomy.output_tools(graph)
        self._keys = [k for k in ("messages", "structured_response") if k in graph.channels]
        self._tools = frozenset(info.tools)
        for node in anatomy.find_all(graph, ToolNode):
            for name, tool in node.tools_by_name.items():
                self.verbose = self.verbose or bool(tool.verbose)
                node.tools_by_name[name] = guarded(tool)

    def keep_in(self, threads: ThreadStore, steps: BaseCheckpointSaver[Any] | None) -> None:
        """Keep conversations and, of background runs, steps there; not if it has a place itself."""
        self._conversations = Conversations(self.info.name, threads)
        if not self._keeps_threads and steps is not None:
            self._durable = self._graph.copy({"checkpointer": steps})

    async def answer(self, call: AgentCall) -> AgentAnswer:
        """Run the graph to its end, to the iteration limit or to the ceiling of model calls."""
        handler = handler_for(call, self.info.name, self._tools, self._output_tools)
        with blamed(handler):
            state, stopped = await self._run(call, handler)
            messages: list[BaseMessage] = state.get("messages", [])
            if stopped:
                if _is_library_sentence(messages):
                    messages = messages[:-1]
                turn = _last_turn(messages) if _turn_is_complete(messages) else []
                answer = await last_answer(call, handler, self._model, turn, self._attempts)
                await self._conclude(call, messages, answer.text)
                return answer
            text = str(messages[-1].text) if messages else ""
            whole = whole_answer(handler, text, state.get("structured_response"))
            if not self._keeps_threads:
                await self._conversations.keep(call, messages)
            return whole

    async def _run(self, call: AgentCall, handler: RunHandler) -> tuple[dict[str, Any], bool]:
        """The last state of the graph, and whether a limit stopped it.

        Each state arrives before the next step starts, so closing the stream there means that
        no later call is made.
        """
        graph = self._durable if call.durable else self._graph
        config = _config(call, in_thread=self._keeps_threads)
        state, asked, config = await self._begin(call, handler, graph, config)
        stream = graph.astream(
            asked,
            {**config, "callbacks": [handler], "recursion_limit": _RECURSION_LIMIT},
            stream_mode="values",
            output_keys=self._keys,
            durability="sync" if call.durable else None,
        )
        async with stops_at_ceiling(handler), aclosing(stream):  # type: ignore[type-var]
            async for state in stream:
                if "__interrupt__" in state:
                    raise Interrupted
                limit_reached = handler.iterations >= call.iteration_limit
                if limit_reached and _turn_is_complete(state.get("messages", [])):
                    return state, True
        limited_itself = _is_library_sentence(state.get("messages", []))
        return state, handler.models.ceiling_reached or limited_itself

    async def _begin(
        self, call: AgentCall, handler: RunHandler, graph: Any, config: RunnableConfig
    ) -> tuple[dict[str, Any], dict[str, Any] | None, RunnableConfig]:
        """The state to start from, what to ask, and of what step.

        Nothing is asked where an earlier attempt had begun: the graph goes on from its last step,
        or from its input where another version of it made that step. Whether there is anything
        left to do is the graph's to say: what it would do next can be empty in the middle of a
        run.
        """
        asked: list[BaseMessage] = [HumanMessage(call.question)]
        may_be_kept = call.resumed or (self._keeps_threads and call.thread_id is not None)
        if may_be_kept and graph.checkpointer:
            kept = await graph.aget_state(config)
            if (kept.metadata or {}).get(_RUN) == call.run_id:
                nodes = await next_nodes.missing(graph, config)
                if nodes:
                    _begin_anew(handler, nodes)
                    return {}, None, await _from_input(graph, config, kept)
                _go_on(handler, kept.values.get("messages", []), self._output_tools)
                return dict(kept.values), None, config
            # A run that was cut in the middle may have left calls that nobody answered.
            asked = [*_unanswered(kept.values.get("messages", [])), *asked]
        if not self._keeps_threads:
            asked = [*await self._conversations.so_far(call.thread_id), *asked]
        if call.iterations:
            _begin_anew(handler, ())
        return {}, {"messages": asked}, config

    async def _conclude(self, call: AgentCall, messages: list[BaseMessage], text: str) -> None:
        """Leave a conversation in order: its open calls answered, the answer its last message."""
        said = [*_unanswered(messages), AIMessage(text)]
        if not self._keeps_threads:
            await self._conversations.keep(call, [*messages, *said])
            return
        config = _config(call, in_thread=True)
        await self._graph.aupdate_state(config, {"messages": said})
        # What the graph would have done next is not to be done when the conversation goes on.
        await self._graph.aupdate_state(config, None, as_node=END)


def _is_library_sentence(messages: Sequence[BaseMessage]) -> bool:
    """A ModelCallLimitMiddleware in the agent ends it with a sentence of the library."""
    return bool(messages) and str(messages[-1].text).startswith(_LIBRARY_SENTENCE)


def _config(call: AgentCall, *, in_thread: bool) -> RunnableConfig:
    """Where a graph without threads of its own keeps its steps, no two runs meet."""
    metadata = {_RUN: call.run_id}
    if in_thread and call.thread_id:
        return {"configurable": {"thread_id": call.thread_id}, "metadata": metadata}
    claim = {CLAIM: call.fence.claim} if call.fence is not None else {}
    return {"configurable": {"thread_id": call.run_id, **claim}, "metadata": metadata}


async def _from_input(graph: Any, config: RunnableConfig, kept: StateSnapshot) -> RunnableConfig:
    """The step in which the run was asked; what followed stays behind it."""
    while (kept.metadata or {}).get("source") != "input" and kept.parent_config:
        kept = await graph.aget_state(kept.parent_config)
    at = kept.config["configurable"]
    return {**config, "configurable": {**config["configurable"], **at}}


def _begin_anew(handler: RunHandler, nodes: tuple[str, ...]) -> None:
    handler.iterations = 0
    handler.call.emit(RunBeganAnew(**handler.about, at=handler.clock(), nodes=nodes))


def _go_on(
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
    # A turn that was told and not kept is made again, and counts once; where more are missing,
    # the agent itself has shortened what was said.
    if handler.iterations <= len(turns) + 1:
        handler.iterations = len(turns)
    for number, turn in enumerate(turns[handler.call.iterations :], handler.call.iterations + 1):
        handler.call.emit(  # kept, and not told before its process died
            IterationCounted(
                **handler.about,
                at=handler.clock(),
                iteration=number,
                tool_calls=len(turn.tool_calls),
            )
        )
    for request in _open_calls(messages):  # an earlier version may have had other tools
        if request["name"] not in output_tools:
            handler.reject_if_unknown(request["name"])
    handler.models.basis = messages[: len(messages) - len(_last_turn(messages))]


def _unanswered(messages: Sequence[BaseMessage]) -> list[ToolMessage]:
    """A result for each tool call that never got one: providers refuse a call without."""
    return [
        ToolMessage("This call was not made.", tool_call_id=str(request["id"]), status="error")
        for request in _open_calls(messages)
    ]


def _open_calls(messages: Sequence[BaseMessage]) -> list[ToolCall]:
    turn = _last_turn(messages)
    asked = turn[0].tool_calls if turn and isinstance(turn[0], AIMessage) else []
    answered = {m.tool_call_id for m in turn if isinstance(m, ToolMessage)}
    return [request for request in asked if request["id"] not in answered]


def _last_turn(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """The last message of the model and the tool results that followed it."""
    for position in range(len(messages) - 1, -1, -1):
        if isinstance(messages[position], AIMessage):
            return list(messages[position:])
    return []


def _turn_is_complete(messages: Sequence[BaseMessage]) -> bool:
    turn = _last_turn(messages)
    asked = isinstance(turn[0], AIMessage) and turn[0].tool_calls if turn else ()
    return bool(asked) and not _unanswered(messages)
