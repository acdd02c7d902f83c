"""Serves any compiled LangGraph graph over `messages`, those of `create_agent` among them."""

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.constants import START
from langgraph.graph import END
from langgraph.pregel import Pregel

from app.agents import error_classification, next_nodes, upstream
from app.agents.answers import STRUCTURED, AnswerTools, answer_in, as_messages, new_messages
from app.agents.callback import RunHandler
from app.agents.conversations import Conversations, InMemoryThreads
from app.agents.error_translation import refusal_of, translated_errors
from app.agents.final_answer import ask_for_final_answer, final_prompt, placeholder_results
from app.agents.graph_parts import parts_of
from app.agents.graph_requirements import default_context
from app.agents.last_turn import final_text
from app.agents.library_patches import install_patches
from app.agents.resuming import RUN, begin_anew, config_of, from_input, go_on, last_turn
from app.agents.streaming import handler_for
from app.agents.tool_guards import ToolGuards
from app.runs.errors import (
    Interrupted,
    ModelFailed,
    NoAnswer,
    OutputInvalid,
    OutputMissing,
    RunError,
)
from app.runs.model import AgentAnswer, AgentInfo, Limit
from app.runs.ports import AgentCall, ThreadStore

# What create_react_agent says near a recursion limit; it gives its words no other mark.
_NEEDS_MORE_STEPS = "Sorry, need more steps to process this request."


@dataclass(slots=True)
class GraphRun:
    """What is known of a graph while it runs: its state, and what was there before."""

    state: dict[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)

    @property
    def messages(self) -> list[BaseMessage]:
        """The messages of its state."""
        return as_messages(self.state.get("messages"))

    def known(self) -> frozenset[str]:
        """The ids of messages that were there before."""
        return frozenset(m.id for m in as_messages(self.before.get("messages")) if m.id)

    def changed(self, keys: Sequence[str]) -> dict[str, Any]:
        """What stands in these keys, and did not before."""
        values = {key: self.state.get(key) for key in keys}
        return {
            key: value
            for key, value in values.items()
            if not _is_empty(value) and not _equal(value, self.before.get(key))
        }


class GraphAgent:
    """One graph, built once, run many times at once."""

    def __init__(self, graph: Pregel[Any, Any, Any, Any], info: AgentInfo) -> None:
        install_patches()
        self._parts = parts_of(graph)
        self.info = replace(info, verbose=self._parts.verbose)
        self._graph = graph
        self._has_own_threads = isinstance(graph.checkpointer, BaseCheckpointSaver)
        self._conversations = Conversations(info.name, InMemoryThreads())
        self._durable = graph
        self._guards = ToolGuards()
        self._upstream = upstream.current()

    def use_store(self, threads: ThreadStore, steps: BaseCheckpointSaver[Any] | None) -> None:
        """Store conversations there, and steps of background runs, unless it has a saver itself."""
        self._conversations = Conversations(self.info.name, threads)
        if not self._has_own_threads and steps is not None:
            self._durable = self._graph.copy({"checkpointer": steps})

    async def answer(self, call: AgentCall) -> AgentAnswer:
        """Run the graph to its end, to the iteration limit or to the ceiling of model calls."""
        upstream.use(self._upstream)
        handler = self._handler(call)
        ran = GraphRun()
        with translated_errors(handler):
            try:
                await self._run(call, handler, ran)
            except RunError:
                raise
            except Exception as raised:  # foreign code: an agent may raise anything
                if (refusal := refusal_of(raised)) is not None:
                    return refusal
                if not _at_limit(handler, raised):
                    raise
                return await self._stopped(call, handler, ran)
            if _ended_by_library(handler, ran):
                return await self._stopped(call, handler, ran)
            answer = self._answer(handler, ran, call)
            if not self._has_own_threads and call.thread_id is not None:
                await self._conversations.store(call, ran.messages)
            return answer

    def _handler(self, call: AgentCall) -> RunHandler:
        parts = self._parts
        return handler_for(
            call,
            self.info.name,
            frozenset(self.info.tools),
            parts.output_tools,
            guards=self._guards,
            policies=parts.policies,
            limit_nodes=parts.limit_nodes,
        )

    def _answer(self, handler: RunHandler, ran: GraphRun, call: AgentCall) -> AgentAnswer:
        """The answer of a graph that came to its end, perhaps by a last turn at the limit."""
        limit = handler.limits.stopped
        said = new_messages(ran.messages, ran.known(), call.run_id)
        changed = ran.changed(self._parts.answer_keys)
        direct = self._parts.direct_tools | handler.calls.direct_tools
        try:
            answer = answer_in(said, changed, AnswerTools(self._parts.output_tools, direct))
        except (ModelFailed, NoAnswer):
            if limit is None:
                self._demand_output(said, changed)
                raise
            answer = AgentAnswer("")
        if limit is not None:
            text = final_text(answer.text) or (
                "" if answer.output else handler.limits.fixed_sentence
            )
            return AgentAnswer(text, answer.output, limit, answer.refused)
        if not answer.refused:
            self._demand_output(said, changed)
        return answer

    def _demand_output(self, said: Sequence[BaseMessage], changed: Mapping[str, Any]) -> None:
        """Raises OutputMissing or OutputInvalid where the agent asks for output and has none."""
        if not self._parts.wants_output or changed.get(STRUCTURED) is not None:
            return
        tried = any(isinstance(m, ToolMessage) and m.name in self._parts.output_tools for m in said)
        raise OutputInvalid if tried else OutputMissing

    async def _stopped(self, call: AgentCall, handler: RunHandler, ran: GraphRun) -> AgentAnswer:
        """The answer of a run that a limit cut, or that a limit of a library's ended."""
        ours = [m for m in ran.messages if m not in handler.library_limit]
        limit = handler.limits.stopped or Limit.ITERATIONS
        words: AIMessage | str | None = handler.limits.last_words
        if words is None:
            asked = final_prompt(handler, ours)
            words = await ask_for_final_answer(
                handler, self._parts.model, asked, self._parts.attempts, limit
            )
        text = final_text(str(words.text if isinstance(words, AIMessage) else words))
        text = text or handler.limits.fixed_sentence
        await self._conclude(call, handler, ours, text)
        return AgentAnswer(text, limit=limit)

    async def _run(self, call: AgentCall, handler: RunHandler, ran: GraphRun) -> None:
        """Run the graph until it ends, keeping its last state. Raises Interrupted."""
        graph = self._durable if call.durable else self._graph
        if self._parts.breaks and not isinstance(graph.checkpointer, BaseCheckpointSaver):
            # Whether it stopped at a breakpoint is known only of a graph that keeps its steps.
            graph = graph.copy({"checkpointer": InMemorySaver()})
        config = config_of(call, in_thread=self._has_own_threads)
        asked, config = await self._begin(call, handler, graph, config, ran)
        stream = graph.astream(
            asked,
            {**config, "callbacks": [handler], "recursion_limit": self._parts.recursion_limit},
            context=default_context(self._graph),
            stream_mode="values",
            output_keys=["messages", *self._parts.answer_keys],
            durability="sync" if call.durable else None,
        )
        async with aclosing(stream):  # type: ignore[type-var]
            async for state in stream:
                if "__interrupt__" in state:
                    raise Interrupted
                ran.state = state
        if handler.waiting or handler.tree.root.waits:
            raise Interrupted
        if self._parts.breaks and (await graph.aget_state(config)).next:
            raise Interrupted

    async def _begin(
        self,
        call: AgentCall,
        handler: RunHandler,
        graph: Any,
        config: RunnableConfig,
        ran: GraphRun,
    ) -> tuple[dict[str, Any] | None, RunnableConfig]:
        """What to ask, and of what step.

        Nothing is asked where an earlier attempt had begun: the graph goes on from its last step,
        or from its input where another version of it made that step. Whether there is anything
        left to do is the graph's to say: what it would do next can be empty in the middle of a
        run.
        """
        asked: list[BaseMessage] = [HumanMessage(call.question, id=call.run_id)]
        may_be_kept = call.resumed or (self._has_own_threads and call.thread_id is not None)
        if may_be_kept and graph.checkpointer:
            kept = await graph.aget_state(config)
            messages = as_messages(kept.values.get("messages"))
            if (kept.metadata or {}).get(RUN) == call.run_id:
                nodes = await next_nodes.missing(graph, config)
                if nodes:
                    begin_anew(handler, nodes)
                    return None, await from_input(graph, config, kept)
                go_on(handler, messages, self._parts.output_tools)
                ran.state = dict(kept.values)
                return None, config
            ran.before = kept.values
            # A run that was cut in the middle may have left calls that nobody answered.
            asked = [*placeholder_results(last_turn(messages)), *asked]
        elif not self._has_own_threads:
            history = await self._conversations.history(call.thread_id)
            ran.before = {"messages": history}
            asked = [*history, *asked]
        handler.turns.know(as_messages(ran.before.get("messages")))
        if call.iterations:
            begin_anew(handler, ())
        return {"messages": asked}, config

    async def _conclude(
        self, call: AgentCall, handler: RunHandler, messages: list[BaseMessage], text: str
    ) -> None:
        """Leave a conversation in order: its open calls answered, the answer its last message."""
        said = [*placeholder_results(last_turn(messages)), AIMessage(text)]
        if not self._has_own_threads:
            await self._conversations.store(call, [*messages, *said])
            return
        config = config_of(call, in_thread=True)
        gone = [RemoveMessage(id=m.id) for m in handler.library_limit if m.id]
        # As the input does: every graph takes messages there, whatever nodes its last step had.
        await self._graph.aupdate_state(config, {"messages": [*gone, *said]}, as_node=START)
        # What the graph would have done next is not to be done when the conversation goes on.
        await self._graph.aupdate_state(config, None, as_node=END)


def _at_limit(handler: RunHandler, raised: Exception) -> bool:
    """Whether a limit ended the run, however what it raised was wrapped."""
    if handler.limits.cut or error_classification.is_library_limit(raised):
        return True
    return handler.limits.last_words is not None  # what failed came after the last turn


def _ended_by_library(handler: RunHandler, ran: GraphRun) -> bool:
    """Whether the last message is the sentence of a library's own limit."""
    last = ran.messages[-1:]
    if last and isinstance(last[0], AIMessage) and last[0].text == _NEEDS_MORE_STEPS:
        handler.library_limit += last
    return any(last == [message] for message in handler.library_limit)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict | set) and not value)


def _equal(value: Any, other: Any) -> bool:
    """Whether two values of a state are the same; what cannot be compared is not."""
    if value is other:
        return True
    try:
        return bool(value == other)
    except (ValueError, TypeError, AttributeError):
        return False
