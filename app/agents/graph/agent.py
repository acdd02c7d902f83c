"""Serves compiled LangGraph graphs over `messages`, including those of `create_agent`."""

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

from app.agents import error_classification
from app.agents.answers import STRUCTURED, AnswerTools, answer_in, as_messages, new_messages
from app.agents.conversations import Conversations, InMemoryThreads
from app.agents.error_translation import refusal_answer, translated_errors
from app.agents.final_answer import ask_for_final_answer, final_prompt, placeholder_results
from app.agents.graph import next_nodes
from app.agents.graph.parts import parts_of
from app.agents.graph.resuming import (
    RUN,
    checkpoint_config,
    config_of_input,
    last_exchange,
    restart,
    resume,
)
from app.agents.handler.callback import RunHandler
from app.agents.handler.last_turn import final_text
from app.agents.handler.library_patches import install_patches
from app.agents.handler.streaming import handler_for
from app.agents.handler.tool_guards import ToolGuards
from app.agents.inspection.graph_requirements import default_context
from app.agents.models import upstream
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

# create_react_agent's answer near a recursion limit, without any other mark.
_NEEDS_MORE_STEPS = "Sorry, need more steps to process this request."


@dataclass(slots=True)
class GraphRun:
    """A running graph: its latest state, and the state before the run."""

    state: dict[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)

    @property
    def messages(self) -> list[BaseMessage]:
        """The messages of the latest state."""
        return as_messages(self.state.get("messages"))

    def known(self) -> frozenset[str]:
        """Return the ids of messages from before the run."""
        return frozenset(m.id for m in as_messages(self.before.get("messages")) if m.id)

    def changed(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return the values of these keys that the run changed."""
        values = {key: self.state.get(key) for key in keys}
        return {
            key: value
            for key, value in values.items()
            if not _is_empty(value) and not _equal(value, self.before.get(key))
        }


class GraphAgent:
    """One graph: built once, run many times concurrently."""

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
        """Store conversations and checkpoints there, unless the graph has its own checkpointer."""
        self._conversations = Conversations(self.info.name, threads)
        if not self._has_own_threads and steps is not None:
            self._durable = self._graph.copy({"checkpointer": steps})

    async def answer(self, call: AgentCall) -> AgentAnswer:
        """Run the graph until it ends, or until a limit stops it."""
        upstream.use(self._upstream)
        handler = self._handler(call)
        run = GraphRun()
        with translated_errors(handler):
            try:
                await self._run(call, handler, run)
            except RunError:
                raise
            except Exception as raised:  # foreign code: an agent may raise anything
                if (refusal := refusal_answer(raised)) is not None:
                    return refusal
                if not _at_limit(handler, raised):
                    raise
                return await self._answer_at_limit(call, handler, run)
            if _ended_by_library(handler, run):
                return await self._answer_at_limit(call, handler, run)
            answer = self._answer(handler, run, call)
            if not self._has_own_threads and call.thread_id is not None:
                await self._conversations.store(call, answer, run.messages)
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

    def _answer(self, handler: RunHandler, run: GraphRun, call: AgentCall) -> AgentAnswer:
        """Return the answer of a graph that ended, perhaps with a last turn at the limit."""
        limit = handler.limits.reached_limit
        messages = new_messages(run.messages, run.known(), call.run_id)
        changed = run.changed(self._parts.answer_keys)
        direct = self._parts.direct_tools | handler.controls.direct_tools
        try:
            answer = answer_in(messages, changed, AnswerTools(self._parts.output_tools, direct))
        except (ModelFailed, NoAnswer):
            if limit is None:
                self._require_output(messages, changed)
                raise
            answer = AgentAnswer("")
        if limit is not None:
            text = final_text(answer.text) or (
                "" if answer.output else handler.limits.fixed_sentence
            )
            return AgentAnswer(text, answer.output, limit, answer.refused)
        if not answer.refused:
            self._require_output(messages, changed)
        return answer

    def _require_output(self, messages: Sequence[BaseMessage], changed: Mapping[str, Any]) -> None:
        """Raises OutputMissing or OutputInvalid if required structured output is missing."""
        if not self._parts.wants_output or changed.get(STRUCTURED) is not None:
            return
        tried = any(
            isinstance(m, ToolMessage) and m.name in self._parts.output_tools for m in messages
        )
        raise OutputInvalid if tried else OutputMissing

    async def _answer_at_limit(
        self, call: AgentCall, handler: RunHandler, run: GraphRun
    ) -> AgentAnswer:
        """Return the answer of a run that our limit or a library's limit stopped."""
        ours = [m for m in run.messages if m not in handler.limit_messages]
        limit = handler.limits.reached_limit or Limit.ITERATIONS
        reply: AIMessage | str | None = handler.limits.final_message
        if reply is None:
            prompt = final_prompt(handler, ours)
            reply = await ask_for_final_answer(
                handler, self._parts.model, prompt, self._parts.attempts, limit
            )
        text = final_text(str(reply.text if isinstance(reply, AIMessage) else reply))
        text = text or handler.limits.fixed_sentence
        answer = AgentAnswer(text, limit=limit)
        await self._store_conclusion(call, handler, ours, answer)
        return answer

    async def _run(self, call: AgentCall, handler: RunHandler, run: GraphRun) -> None:
        """Run the graph until it ends, and record its last state. Raises Interrupted."""
        graph = self._durable if call.durable else self._graph
        if self._parts.breaks and not isinstance(graph.checkpointer, BaseCheckpointSaver):
            # Only a graph with a checkpointer shows whether it stopped at a breakpoint.
            graph = graph.copy({"checkpointer": InMemorySaver()})
        config = checkpoint_config(call, in_thread=self._has_own_threads)
        question, config = await self._start_point(call, handler, graph, config, run)
        stream = graph.astream(
            question,
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
                run.state = state
        if handler.interrupted or handler.tree.root.interrupted:
            raise Interrupted
        if self._parts.breaks and (await graph.aget_state(config)).next:
            raise Interrupted

    async def _start_point(
        self,
        call: AgentCall,
        handler: RunHandler,
        graph: Any,
        config: RunnableConfig,
        run: GraphRun,
    ) -> tuple[dict[str, Any] | None, RunnableConfig]:
        """Return the input and the configuration to start from.

        The input is None if an earlier attempt left a checkpoint. The graph then continues from
        its last step, or from its input if this version of the graph lacks the next nodes. An
        empty list of next nodes does not mean that the run has ended.
        """
        question: list[BaseMessage] = [HumanMessage(call.question, id=call.run_id)]
        may_have_checkpoint = call.resumed or (self._has_own_threads and call.thread_id is not None)
        if may_have_checkpoint and graph.checkpointer:
            saved = await graph.aget_state(config)
            messages = as_messages(saved.values.get("messages"))
            if (saved.metadata or {}).get(RUN) == call.run_id:
                nodes = await next_nodes.missing(graph, config)
                if nodes:
                    restart(handler, nodes)
                    return None, await config_of_input(graph, config, saved)
                resume(handler, messages, self._parts.output_tools)
                run.state = dict(saved.values)
                return None, config
            run.before = saved.values
            # An aborted run may have left unanswered tool calls.
            question = [*placeholder_results(last_exchange(messages)), *question]
        elif not self._has_own_threads:
            history = await self._conversations.history(call.thread_id)
            run.before = {"messages": history}
            question = [*history, *question]
        handler.turns.mark_known(as_messages(run.before.get("messages")))
        if call.iterations:
            restart(handler, ())
        return {"messages": question}, config

    async def _store_conclusion(
        self,
        call: AgentCall,
        handler: RunHandler,
        messages: list[BaseMessage],
        answer: AgentAnswer,
    ) -> None:
        """Store a valid conversation: open calls have results, and the answer is last."""
        closing = [*placeholder_results(last_exchange(messages)), AIMessage(answer.text)]
        if not self._has_own_threads:
            await self._conversations.store(call, answer, [*messages, *closing])
            return
        config = checkpoint_config(call, in_thread=True)
        removed = [RemoveMessage(id=m.id) for m in handler.limit_messages if m.id]
        # Update as the input does: every graph accepts messages at START.
        await self._graph.aupdate_state(config, {"messages": [*removed, *closing]}, as_node=START)
        # Clear the next nodes, so that the next question does not continue this run.
        await self._graph.aupdate_state(config, None, as_node=END)


def _at_limit(handler: RunHandler, raised: Exception) -> bool:
    """Whether a limit ended the run, even if its exception was wrapped."""
    if handler.limits.cut or error_classification.is_library_limit(raised):
        return True
    return handler.limits.final_message is not None  # the failure came after the last turn


def _ended_by_library(handler: RunHandler, run: GraphRun) -> bool:
    """Whether the last message comes from a library's own limit."""
    last = run.messages[-1:]
    if last and isinstance(last[0], AIMessage) and last[0].text == _NEEDS_MORE_STEPS:
        handler.limit_messages += last
    return any(last == [message] for message in handler.limit_messages)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict | set) and not value)


def _equal(value: Any, other: Any) -> bool:
    """Whether two state values are equal. Values that cannot be compared are not."""
    if value is other:
        return True
    try:
        return bool(value == other)
    except (ValueError, TypeError, AttributeError):
        return False
