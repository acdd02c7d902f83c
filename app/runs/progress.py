"""The progress of a run, folded from its own facts.

The answer, the problem of a failed run, `GET /runs` and the final fact all read from here, so
they cannot disagree.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from app.runs import plain, rendering
from app.runs.clock import SYSTEM, Clock
from app.runs.events import (
    Event,
    FirstToken,
    IterationCounted,
    ModelCallFinished,
    ModelCallStarted,
    RunBeganAnew,
    RunStarted,
    SubAgentFinished,
    SubAgentStarted,
    ToolCallFinished,
    ToolCallStarted,
)
from app.runs.model import NO_USAGE, CallOutcome, Phase, PhaseKind, Step, Timings, Usage

# The longest preview of a tool call's arguments, and of its result.
_STEP_BYTES = 4096
# After these outcomes the agent does not repeat the call; after others it may wait to retry.
_ENDED = (CallOutcome.COMPLETED, CallOutcome.CANCELLED)
_QUEUE, _LLM, _OTHER = Phase(PhaseKind.QUEUE), Phase(PhaseKind.LLM), Phase(PhaseKind.OTHER)


def _shortened(result: str | None) -> str | None:
    return None if result is None else plain.cut(plain.text(result), _STEP_BYTES)


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call of a model, a tool or a sub-agent that has not ended."""

    started: ModelCallStarted | ToolCallStarted | SubAgentStarted


class Progress:
    """A fold over the facts of one run; the caller holds the lock."""

    def __init__(self, arrived_at: float, clock: Clock = SYSTEM) -> None:
        self.clock = clock
        self.arrived_at = arrived_at
        self.iterations = 0
        self.tool_calls = 0
        # Whether any tool has started, in any attempt and in any sub-agent.
        self.acted = False
        self.tools: Counter[str] = Counter()
        self.usage = Usage()
        self.cost_usd: float | None = None
        self.ttft_s: float | None = None
        self.unpriced = False
        # The ids of its own tool calls, as readers see them.
        self.call_ids: dict[str, str] = {}
        self.steps: list[Step] = []
        # The number of steps of earlier attempts that no longer count: the run started again.
        self.steps_dropped = 0
        self.open: dict[str, OpenCall] = {}
        self._spent = dict.fromkeys(PhaseKind, 0.0)
        self._phase = _QUEUE
        self._since = arrived_at
        self._backing_off = False

    @property
    def phase(self) -> Phase:
        """What the run is waiting for now."""
        return self._phase

    def timings(self, now: float | None = None) -> Timings:
        """How the time was spent until `now`."""
        self._account(self.clock.monotonic() if now is None else now)
        spent = self._spent
        return Timings(
            queue_s=spent[PhaseKind.QUEUE],
            llm_s=spent[PhaseKind.LLM],
            tools_s=spent[PhaseKind.TOOL],
            other_s=spent[PhaseKind.OTHER],
        )

    def account_for(self, spent: Mapping[PhaseKind, float], now: float) -> None:
        """Start at `now` with the time spent before; the rest since arrival counts as `other`."""
        self._spent.update(spent)
        self._spent[PhaseKind.OTHER] += max(0.0, now - self.arrived_at - sum(spent.values()))
        self._since = max(now, self.arrived_at)

    def add(self, fact: Event) -> None:
        """Add one fact."""
        self._account(fact.at)
        self._backing_off = False
        match fact:
            case ModelCallStarted():
                self.open[fact.call_id] = OpenCall(fact)
            case FirstToken():
                self.ttft_s = self.ttft_s or fact.at - self.arrived_at
            case ModelCallFinished():
                self.open.pop(fact.call_id, None)
                self._spend(fact)
                # Until the next fact the run waits to retry, which counts as time of the model.
                self._backing_off = fact.outcome not in _ENDED
            case SubAgentStarted():
                self.open[fact.call_id] = OpenCall(fact)
            case SubAgentFinished():
                self.open.pop(fact.call_id, None)
            case ToolCallStarted():
                self.acted = True
                self.open[fact.call_id] = OpenCall(fact)
                if fact.own:
                    self.call_ids[fact.call_id] = self._unique(fact)
                    self.tool_calls += 1
                    self.tools[fact.tool] += 1
            case ToolCallFinished():
                self._finish_tool(fact)
            case IterationCounted():
                self.iterations = fact.iteration
            case RunBeganAnew():
                self._restart()
            case _:
                pass
        self._phase = self._phase_now(queued=not isinstance(fact, RunStarted))

    def _restart(self) -> None:
        self.iterations = self.tool_calls = 0
        self.tools.clear()
        self.steps_dropped = len(self.steps)
        self.steps.clear()

    def _spend(self, fact: ModelCallFinished) -> None:
        """Add usage and cost. A single call without a price makes the cost of the run unknown."""
        self.usage += fact.usage
        if fact.cost_usd is None:
            self.unpriced = self.unpriced or fact.usage != NO_USAGE
        else:
            self.cost_usd = (self.cost_usd or 0.0) + fact.cost_usd
        if self.unpriced:
            self.cost_usd = None

    def _finish_tool(self, fact: ToolCallFinished) -> None:
        call = self.open.pop(fact.call_id, None)
        if call is None or not isinstance(call.started, ToolCallStarted) or not call.started.own:
            return
        started = call.started
        self.steps.append(
            Step(
                iteration=started.iteration,
                tool=started.tool,
                call_id=self.call_ids[fact.call_id],
                arguments=rendering.preview(started.arguments, _STEP_BYTES),
                result=_shortened(fact.result),
                outcome=fact.outcome,
                started_s=started.at - self.arrived_at,
                duration_s=fact.at - started.at,
            )
        )

    def _unique(self, started: ToolCallStarted) -> str:
        """The model's id of the call, unless it is missing or an earlier call has it too."""
        model_id = started.tool_call_id
        is_known = model_id in self.call_ids.values()
        repeated = is_known or any(step.call_id == model_id for step in self.steps)
        return started.call_id if not model_id or repeated else model_id

    def _account(self, now: float) -> None:
        if now > self._since:
            self._spent[self._phase.kind] += now - self._since
            self._since = now

    def _phase_now(self, queued: bool) -> Phase:
        if self._phase is _QUEUE and queued:
            return _QUEUE
        for call in self.open.values():
            if isinstance(call.started, ToolCallStarted):
                return Phase(PhaseKind.TOOL, call.started.tool)
        return _LLM if self.open or self._backing_off else _OTHER
