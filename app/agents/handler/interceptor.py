"""Intercepts the model and tool calls of one run: applies limits, and catches tool exceptions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolNode

from app.agents.errors import CeilingReached
from app.agents.handler import last_turn
from app.agents.handler.call_tree import AgentRun, Branch, Place, enclosing_agent
from app.agents.handler.limits import Limits, Verdict
from app.agents.handler.model_calls import ModelCalls
from app.agents.handler.node_retries import Policies, is_retried
from app.agents.handler.pending_model_call import (
    PendingModelCall,
    bound_tools,
    is_final_call,
    without_tools,
)
from app.agents.handler.tool_guards import ToolGuards, failure_text
from app.agents.handler.turns import TurnCounter
from app.runs.errors import RunError


@dataclass(slots=True)
class RunControls:
    """The parts of one run that decide about its calls.

    `guards` is None for a handler that only watches. `policies` are the retry policies of the
    agent's nodes. `direct_tools` are the tools whose results are answers (`return_direct`).
    `interrupted` are the nested agents that stopped to ask a human.
    """

    turns: TurnCounter
    limits: Limits
    models: ModelCalls
    guards: ToolGuards | None
    policies: Policies
    direct_tools: set[str] = field(default_factory=set)
    interrupted: set[str | None] = field(default_factory=set)

    def admit(self, call: PendingModelCall) -> Verdict:
        """Decide whether the call is a helper's, and whether to make it. Raises CeilingReached."""
        assert call.place is not None
        if not is_final_call.get():
            call.helper = self.turns.is_helper(call, call.place)
            self.turns.model_call_started(call.place, helper=call.helper)
        return self.limits.admit(call)


@dataclass(slots=True)
class CallInterceptor:
    """Intercepts the calls that are made at this place in the call tree."""

    controls: RunControls
    place: Place

    @property
    def guards(self) -> bool:
        """Whether tools are guarded. A handler that only watches does not guard them."""
        return self.controls.guards is not None

    def before_model_call(
        self, model: BaseChatModel, options: dict[str, Any]
    ) -> tuple[PendingModelCall, dict[str, Any], AIMessage | None]:
        """Return the call, its options, and the reply to use instead of making it, if any.

        Raises CeilingReached.
        """
        call = PendingModelCall(model, bound_tools(options), options, self.place)
        verdict = self.controls.admit(call)
        if verdict is Verdict.ANSWER:
            return call, options, self._substitute_reply()
        if verdict is Verdict.MAKE_LAST:
            call.kept_tools = self.controls.limits.last_turn_tools(call)
            options = without_tools(options, call.kept_tools)
        return call, options, None

    def after_model_call(self, call: PendingModelCall, reply: Any) -> Any:
        """Return the reply. In the last turn, remove its tool calls and replace an empty text."""
        if not call.last or not isinstance(reply, AIMessage):
            return reply
        limits = self.controls.limits
        reply = last_turn.cut(reply, call.kept_tools)
        if last_turn.is_empty(reply):
            reply = last_turn.with_text(reply, limits.fixed_sentence)
        limits.concluded(self.place, reply)
        return reply

    def model_call_cancelled(self, call: PendingModelCall) -> None:
        """The agent cancelled the call, or the run is being stopped."""
        for call_id in call.call_ids:
            self.controls.models.cancelled(call_id)

    def stream_filter(self, call: PendingModelCall) -> "StreamFilter":
        """Return the filter for the chunks of a streamed call."""
        return StreamFilter(self, call)

    def as_chunk(self, answer: AIMessage) -> AIMessageChunk:
        """Return the whole answer as one chunk."""
        return AIMessageChunk(content=answer.content, chunk_position="last")

    def _substitute_reply(self) -> AIMessage:
        limits = self.controls.limits
        reply = self.place.final_message if isinstance(self.place, Branch) else None
        if isinstance(reply, AIMessage):
            return reply
        reply = AIMessage(limits.fixed_sentence)
        limits.concluded(self.place, reply)
        return reply

    def guarded(self, tool: BaseTool) -> BaseTool:
        """Return the guarded copy that is called instead of the user's tool."""
        if tool.return_direct:
            self.controls.direct_tools.add(tool.name)
        if self.controls.guards is None:
            return tool
        # An AgentExecutor would end on a tool's exception, so its model reads text instead.
        return self.controls.guards.of(
            tool, as_text=isinstance(self.place, AgentRun) and self.place.is_executor
        )

    def tool_node(self, node: ToolNode) -> None:
        """A ToolNode executes a call: record its tools as the agent's."""
        agent = enclosing_agent(self.place)
        if agent is not None:
            agent.tools.update(node.tools_by_name)

    def stopped_at_breakpoint(self, agent: str) -> None:
        """A nested graph, invoked directly, stopped at a breakpoint."""
        self.controls.interrupted.add(agent)

    def failure_message(self, call: Mapping[str, Any], raised: Exception) -> ToolMessage:
        """Return the message for the model. Re-raises errors that end the run or retry the node."""
        if isinstance(raised, CeilingReached | RunError) or self._node_is_retried(raised):
            raise raised
        return ToolMessage(
            failure_text(str(call["name"]), raised),
            name=call["name"],
            tool_call_id=call["id"],
            status="error",
        )

    def _node_is_retried(self, raised: Exception) -> bool:
        if not isinstance(self.place, Branch):
            return False
        policies = self.controls.policies.get(self.place.node, ())
        return is_retried(policies, raised, self.place.execution)


@dataclass(slots=True)
class StreamFilter:
    """Filters the chunks of one streamed call: removes tool calls in the last turn."""

    interceptor: CallInterceptor
    call: PendingModelCall
    _merged: AIMessageChunk | None = None

    def filter(self, chunk: Any) -> Any:
        """Return the chunk for the agent: in the last turn, without tool calls."""
        if not self.call.last or not isinstance(chunk, AIMessageChunk):
            return chunk
        chunk = last_turn.cut(chunk, self.call.kept_tools)
        self._merged = chunk if self._merged is None else self._merged + chunk
        return chunk

    def closing_chunk(self) -> AIMessageChunk | None:
        """Conclude the last turn. Return a chunk to append if its text was empty."""
        if not self.call.last or self._merged is None:
            return None
        limits = self.interceptor.controls.limits
        empty = last_turn.is_empty(self._merged)
        reply = last_turn.with_text(self._merged, limits.fixed_sentence) if empty else self._merged
        limits.concluded(self.interceptor.place, reply)
        return AIMessageChunk(content=limits.fixed_sentence) if empty else None
