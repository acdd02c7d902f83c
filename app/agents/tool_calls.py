"""The tool calls of one run: each told when it starts and once when it ends."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.messages import BaseMessage, ToolMessage

from app.agents import reading
from app.agents.inside import OpenTool, SubAgent, enter, inside
from app.runs import plain
from app.runs.events import (
    Emit,
    SubAgentFinished,
    SubAgentStarted,
    ToolCallFinished,
    ToolCallRejected,
    ToolCallStarted,
)
from app.runs.model import CallOutcome, Rejection
from app.runs.tasks import Fence


@dataclass(slots=True)
class ToolCalls:
    """Each call is found again, inside the tool, through `inside`."""

    emit: Emit
    about: Mapping[str, str]
    clock: Callable[[], float]
    fence: Fence | None = None
    operation: str | None = None
    _turn: int = 0
    _position: int = 0
    _open: dict[UUID, OpenTool] = field(default_factory=dict)

    def start(
        self,
        run_id: UUID,
        name: str,
        arguments: Any,
        iteration: int,
        tool_call_id: str | None,
        metadata: Mapping[str, Any],
    ) -> None:
        """A tool begins to work, perhaps on another thread."""
        outer = inside.get()
        opened = OpenTool(
            str(run_id),
            name,
            outer,
            self.clock(),
            key=self._key(name, arguments, iteration, tool_call_id),
            fence=self.fence,
            node=metadata.get("langgraph_node"),
        )
        self._open[run_id] = opened
        if outer is not None and outer.sub_agent is not None:
            outer.sub_agent.tally.tool_calls += 1
        enter(opened)
        self.emit(
            ToolCallStarted(
                **self.about,
                at=opened.started_at,
                call_id=opened.call_id,
                parent_id=outer.parent_of_calls if outer else None,
                tool=name,
                iteration=iteration,
                arguments=arguments,
                own=outer is None,
                tool_call_id=tool_call_id,
            )
        )

    def _key(self, name: str, arguments: Any, iteration: int, tool_call_id: str | None) -> str:
        """Its turn, and the model's own id of it there, which is kept with its message.

        Without one its place in the turn stands for it. So it does where no message is kept and
        the run may be repeated with its key: the model then gives other ids.
        """
        self._position = self._position + 1 if iteration == self._turn else 1
        self._turn = iteration
        own_id = None if self.operation is not None and self.fence is None else tool_call_id
        place = f"{iteration}.{own_id or self._position}"
        said = hashlib.sha256(
            f"{name}\0{plain.text(arguments)}".encode("utf-8", "replace")
        ).hexdigest()
        return f"{self.operation or self.about['run_id']}:{place}:{said[:8]}"

    def asks_agent(self, tool: OpenTool, name: str) -> None:
        """A tool asks an agent of its own; another one than before ends the one before."""
        former = tool.sub_agent
        if former is not None and former.name == name:
            return
        now = self.clock()
        if former is not None:
            self._agent_ended(former, now, CallOutcome.COMPLETED)
        tool.sub_agent = SubAgent(f"{tool.call_id}/{name}", name)
        self.emit(
            SubAgentStarted(
                **self.about,
                at=now,
                call_id=tool.sub_agent.call_id,
                parent_id=tool.call_id,
                name=name,
                tally=tool.sub_agent.tally,
            )
        )

    def _agent_ended(self, agent: SubAgent, now: float, outcome: CallOutcome) -> None:
        self.emit(
            SubAgentFinished(
                **self.about,
                at=now,
                call_id=agent.call_id,
                outcome=outcome,
                tally=agent.tally,
            )
        )

    def end(self, run_id: UUID, output: Any) -> None:
        """A tool gave a result, or an error that the model is told."""
        opened = self._open.get(run_id)
        soft = isinstance(output, ToolMessage) and output.status == "error"
        error = opened.error if opened else None
        outcome = CallOutcome.TOOL_ERROR if soft or error else CallOutcome.COMPLETED
        result = plain.text(output.text if isinstance(output, BaseMessage) else output)
        self._ended(run_id, outcome, result, error)

    def fail(self, run_id: UUID, error: BaseException) -> None:
        """A tool raised through its wrapper: an interrupt, or a tool out of the wrapper's reach."""
        self._ended(run_id, reading.call_outcome(error, CallOutcome.TOOL_ERROR), None, error)

    def reject(self, tool: str, reason: Rejection) -> None:
        """The model asked for what cannot be run."""
        self.emit(ToolCallRejected(**self.about, at=self.clock(), tool=tool, reason=reason))

    def _ended(
        self, run_id: UUID, outcome: CallOutcome, result: str | None, error: BaseException | None
    ) -> None:
        opened = self._open.pop(run_id, None)
        if opened is None:
            return
        enter(opened.outer)
        now = self.clock()
        if opened.sub_agent is not None:
            self._agent_ended(opened.sub_agent, now, outcome)
        if opened.invalid_arguments:
            self.reject(opened.name, Rejection.INVALID_ARGS)
        self.emit(
            ToolCallFinished(
                **self.about,
                at=now,
                call_id=opened.call_id,
                tool=opened.name,
                started_at=opened.started_at,
                outcome=outcome,
                result=result,
                error=error,
            )
        )
