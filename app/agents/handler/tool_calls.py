"""The tool calls of one run: emits a fact when each starts, and one when it ends."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.messages import BaseMessage, ToolMessage

from app.agents.handler.call_tree import AgentRun, CallTree, Place, asked_by_tool, enclosing_tool
from app.agents.handler.tool_context import OpenToolCall, SubAgent, current_tool, set_current_tool
from app.agents.handler.tool_guards import failure_text, is_being_cancelled
from app.agents.models import model_responses
from app.runs import plain
from app.runs.events import (
    SubAgentFinished,
    SubAgentStarted,
    ToolCallFinished,
    ToolCallRejected,
    ToolCallStarted,
)
from app.runs.model import CallOutcome, Rejection
from app.runs.ports import AgentCall


@dataclass(slots=True)
class ToolCalls:
    """The open tool calls of one run. Inside a tool, `current_tool` holds its call.

    `latest_failure` is what the model reads about the latest call, if it failed.
    """

    call: AgentCall
    run_fields: Mapping[str, str]
    clock: Callable[[], float]
    tree: CallTree
    latest_failure: str | None = None
    _turn: int = 0
    _position: int = 0
    _open: dict[UUID, OpenToolCall] = field(default_factory=dict)

    def start(
        self,
        run_id: UUID,
        name: str,
        arguments: Any,
        place: Place,
        iteration: int,
        tool_call_id: str | None,
    ) -> None:
        """A tool starts, perhaps on another thread."""
        outer = enclosing_tool(place)
        parent_id = self.parent_of_calls(place)
        opened = OpenToolCall(
            str(run_id),
            name,
            current_tool.get(),
            place,
            parent_id,
            self.clock(),
            key=self._key(name, arguments, iteration, tool_call_id),
            fence=self.call.fence,
        )
        self._open[run_id] = opened
        self.tree.tool_begins(run_id, opened)
        agent = asked_by_tool(place)
        if agent is not None and agent.sub_agent is not None:
            agent.sub_agent.tally.tool_calls += 1
        set_current_tool(opened)
        self.call.emit(
            ToolCallStarted(
                **self.run_fields,
                at=opened.started_at,
                call_id=opened.call_id,
                parent_id=parent_id,
                tool=name,
                iteration=iteration,
                arguments=arguments,
                own=outer is None,
                tool_call_id=tool_call_id,
            )
        )

    def _key(self, name: str, arguments: Any, iteration: int, tool_call_id: str | None) -> str:
        """Return the idempotency key: of the turn, the model's call id, and the arguments.

        Without a call id, the position in the turn replaces it. So it does if messages are not
        stored and the run may be repeated with its key: the model then sends other ids.
        """
        self._position = self._position + 1 if iteration == self._turn else 1
        self._turn = iteration
        own_id = (
            None if self.call.operation is not None and self.call.fence is None else tool_call_id
        )
        place = f"{iteration}.{own_id or self._position}"
        digest = hashlib.sha256(
            f"{name}\0{plain.text(arguments)}".encode("utf-8", "replace")
        ).hexdigest()
        return f"{self.call.operation or self.run_fields['run_id']}:{place}:{digest[:8]}"

    def parent_of_calls(self, place: Place) -> str | None:
        """Return the parent id of calls at a place: a tool call, or the sub-agent of a tool.

        The first call of a sub-agent emits its start.
        """
        tool = enclosing_tool(place)
        if tool is None:
            return None
        agent = asked_by_tool(place)
        if agent is None:
            return tool.call_id
        if agent.sub_agent is None:
            agent.sub_agent = self._sub_agent_started(tool, agent)
        return agent.sub_agent.call_id

    def _sub_agent_started(self, tool: OpenToolCall, agent: AgentRun) -> SubAgent:
        tool.agents_asked += 1
        started = SubAgent(f"{tool.call_id}/{tool.agents_asked}", agent.name or tool.name)
        self.call.emit(
            SubAgentStarted(
                **self.run_fields,
                at=self.clock(),
                call_id=started.call_id,
                parent_id=tool.call_id,
                name=started.name,
                tally=started.tally,
            )
        )
        tool.open_agents[started.call_id] = started
        return started

    def agent_ended(self, agent: AgentRun, outcome: CallOutcome) -> None:
        """Emit the end of an agent, if a tool called it."""
        if agent.sub_agent is not None and isinstance(agent.within, OpenToolCall):
            self._sub_agent_ended(agent.within, agent.sub_agent, outcome)

    def _sub_agent_ended(self, tool: OpenToolCall, agent: SubAgent, outcome: CallOutcome) -> None:
        if tool.open_agents.pop(agent.call_id, None) is None:
            return
        self.call.emit(
            SubAgentFinished(
                **self.run_fields,
                at=self.clock(),
                call_id=agent.call_id,
                outcome=outcome,
                tally=agent.tally,
            )
        )

    def end(self, run_id: UUID, output: Any) -> None:
        """A tool returned a result, or an error message for the model."""
        opened = self._open.get(run_id)
        soft = isinstance(output, ToolMessage) and output.status == "error"
        error = opened.error if opened else None
        outcome = CallOutcome.TOOL_ERROR if soft or error else CallOutcome.COMPLETED
        result = plain.text(output.text if isinstance(output, BaseMessage) else output)
        self.latest_failure = result if outcome is CallOutcome.TOOL_ERROR else None
        self._ended(run_id, outcome, result, error)

    def fail(self, run_id: UUID, error: BaseException) -> None:
        """A tool raised."""
        if isinstance(error, asyncio.CancelledError) and is_being_cancelled():
            if self.call.stopping():
                return  # the run is being stopped, and closes open calls with its own outcome
            self._ended(run_id, CallOutcome.CANCELLED, None, None)
            return
        opened = self._open.get(run_id)
        cause = opened.error if opened is not None and opened.error is not None else error
        outcome = model_responses.call_outcome(error, CallOutcome.TOOL_ERROR)
        text = None
        if opened is not None and outcome is CallOutcome.TOOL_ERROR:
            text = failure_text(opened.name, error)
        self._ended(run_id, outcome, text, cause)

    def reject(self, tool: str, reason: Rejection = Rejection.UNKNOWN_TOOL) -> None:
        """The model requested a tool call that cannot be executed."""
        self.call.emit(
            ToolCallRejected(**self.run_fields, at=self.clock(), tool=tool, reason=reason)
        )

    def _ended(
        self, run_id: UUID, outcome: CallOutcome, result: str | None, error: BaseException | None
    ) -> None:
        opened = self._open.pop(run_id, None)
        if opened is None:
            return
        set_current_tool(opened.outer)
        for agent in list(opened.open_agents.values()):
            self._sub_agent_ended(opened, agent, outcome)
        if opened.invalid_arguments:
            self.reject(opened.name, Rejection.INVALID_ARGS)
        self.call.emit(
            ToolCallFinished(
                **self.run_fields,
                at=self.clock(),
                call_id=opened.call_id,
                tool=opened.name,
                started_at=opened.started_at,
                outcome=outcome,
                result=result,
                error=error,
            )
        )
