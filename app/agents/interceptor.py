"""What stands around the calls of one run: it decides on models, and catches what tools raise."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolNode

from app.agents import last_turn
from app.agents.call_tree import AgentRun, Branch, Place, enclosing_agent
from app.agents.errors import CeilingReached
from app.agents.limits import Limits, Verdict
from app.agents.model_calls import ModelCalls
from app.agents.node_retries import Policies, tries_again
from app.agents.pending_model_call import (
    PendingModelCall,
    bound_tools,
    is_final_call,
    without_tools,
)
from app.agents.tool_guards import ToolGuards, failure_text
from app.agents.turns import TurnCounter
from app.runs.errors import RunError


@dataclass(slots=True)
class RunControls:
    """The parts of one run that its calls concern.

    `guards` hold the guarded tools, and are None for a handler that only watches. `policies` are
    the retries of the agent's nodes, `direct_tools` the names of tools whose results are answers,
    and `waiting` the agents that stopped to ask a human.
    """

    turns: TurnCounter
    limits: Limits
    models: ModelCalls
    guards: ToolGuards | None
    policies: Policies
    direct_tools: set[str] = field(default_factory=set)
    waiting: set[str | None] = field(default_factory=set)

    def ask(self, call: PendingModelCall) -> Verdict:
        """Find out whose call this is, and whether it may be made. Raises CeilingReached."""
        assert call.place is not None
        if not is_final_call.get():
            call.helper = self.turns.is_helper(call, call.place)
            self.turns.asked(call.place, helper=call.helper)
        return self.limits.admit(call)


@dataclass(slots=True)
class CallInterceptor:
    """Stands around a call that is made at this place."""

    calls: RunControls
    place: Place

    @property
    def guards(self) -> bool:
        """Whether tools are guarded: a handler that only watches leaves them alone."""
        return self.calls.guards is not None

    def model_asked(
        self, model: BaseChatModel, options: dict[str, Any]
    ) -> tuple[PendingModelCall, dict[str, Any], AIMessage | None]:
        """Decide on a call: its options, or the answer in its place. Raises CeilingReached."""
        call = PendingModelCall(model, bound_tools(options), options, self.place)
        verdict = self.calls.ask(call)
        if verdict is Verdict.ANSWER:
            return call, options, self._answer_in_place()
        if verdict is Verdict.MAKE_LAST:
            call.kept = self.calls.limits.kept_tools(call)
            options = without_tools(options, call.kept)
        return call, options, None

    def model_answered(self, call: PendingModelCall, reply: Any) -> Any:
        """Pass a reply on; the last turn's asks for no more tools, and says something."""
        if not call.last or not isinstance(reply, AIMessage):
            return reply
        limits = self.calls.limits
        said = last_turn.cut(reply, call.kept)
        if last_turn.is_empty(said):
            said = last_turn.with_text(said, limits.fixed_sentence)
        limits.concluded(self.place, said)
        return said

    def model_cancelled(self, call: PendingModelCall) -> None:
        """The agent itself gave the call up, or the run is being stopped."""
        for call_id in call.call_ids:
            self.calls.models.cancelled(call_id)

    def chunks(self, call: PendingModelCall) -> "StreamFilter":
        """Passes on the chunks of a streamed call."""
        return StreamFilter(self, call)

    def as_chunk(self, answer: AIMessage) -> AIMessageChunk:
        """The whole answer as one chunk."""
        return AIMessageChunk(content=answer.content, chunk_position="last")

    def _answer_in_place(self) -> AIMessage:
        limits = self.calls.limits
        said = self.place.last_words if isinstance(self.place, Branch) else None
        if isinstance(said, AIMessage):
            return said
        said = AIMessage(limits.fixed_sentence)
        limits.concluded(self.place, said)
        return said

    def guarded(self, tool: BaseTool) -> BaseTool:
        """The tool that is called in the place of the user's own."""
        if tool.return_direct:
            self.calls.direct_tools.add(tool.name)
        if self.calls.guards is None:
            return tool
        # An executor has nothing of its own for a tool that raises.
        return self.calls.guards.of(
            tool, words=isinstance(self.place, AgentRun) and self.place.acts
        )

    def tool_node(self, node: ToolNode) -> None:
        """A ToolNode runs a call: its agent has these tools."""
        agent = enclosing_agent(self.place)
        if agent is not None:
            agent.tools.update(node.tools_by_name)

    def waits_for_human(self, agent: str) -> None:
        """An agent inside, called on its own, stopped at a breakpoint."""
        self.calls.waiting.add(agent)

    def tool_failed(self, call: Mapping[str, Any], raised: Exception) -> ToolMessage:
        """What the model reads of a tool that raised. Raises again what is not the tool's alone."""
        if isinstance(raised, CeilingReached | RunError) or self._node_tries_again(raised):
            raise raised
        return ToolMessage(
            failure_text(str(call["name"]), raised),
            name=call["name"],
            tool_call_id=call["id"],
            status="error",
        )

    def _node_tries_again(self, raised: Exception) -> bool:
        if not isinstance(self.place, Branch):
            return False
        policies = self.calls.policies.get(self.place.node, ())
        return tries_again(policies, raised, self.place.execution)


@dataclass(slots=True)
class StreamFilter:
    """The chunks of one streamed call; those of the last turn without calls of tools."""

    around: CallInterceptor
    call: PendingModelCall
    _said: AIMessageChunk | None = None

    def passed(self, chunk: Any) -> Any:
        """The chunk as the agent reads it."""
        if not self.call.last or not isinstance(chunk, AIMessageChunk):
            return chunk
        chunk = last_turn.cut(chunk, self.call.kept)
        self._said = chunk if self._said is None else self._said + chunk
        return chunk

    def rest(self) -> AIMessageChunk | None:
        """What is still to be said once the stream has ended."""
        if not self.call.last or self._said is None:
            return None
        limits = self.around.calls.limits
        empty = last_turn.is_empty(self._said)
        said = last_turn.with_text(self._said, limits.fixed_sentence) if empty else self._said
        limits.concluded(self.around.place, said)
        return AIMessageChunk(content=limits.fixed_sentence) if empty else None
