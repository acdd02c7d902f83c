"""The events of one run as its readers see them, built from its facts and its tokens."""

import asyncio

from app.runs.events import (
    Event,
    IterationCounted,
    ModelCallRetried,
    RunStarted,
    Token,
    ToolCallFinished,
    ToolCallStarted,
)
from app.runs.model import AgentInfo
from app.runs.progress import Progress
from app.runs.ring import Ring


class Transcript:
    """Adds to the ring of a run. Its owner calls it under a lock."""

    def __init__(
        self, run_id: str, agent: AgentInfo, progress: Progress, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.ring = Ring(loop)
        self._run_id = run_id
        self._agent = agent
        self._progress = progress
        # Text of the present turn, and the id of its first event.
        self._text: list[str] = []
        self._first_token_id = 0

    def emptied(self) -> "Transcript":
        """A closed transcript of the same run, without its events."""
        empty = Transcript(self._run_id, self._agent, self._progress, asyncio.get_running_loop())
        empty.ring.finish()
        return empty

    def add_token(self, token: Token) -> None:
        """Add text of a model."""
        if token.sub_agent is None:
            if not self.ring.has(self._first_token_id):
                self._text.clear()  # it has no bound, and `settle` needs all of it
            self._text.append(token.text)
            self._first_token_id = self._first_token_id or self.ring.last_id + 1
        self.ring.add("token", text=token.text, iteration=token.iteration, agent=token.sub_agent)

    def settle(self, answer: str) -> None:
        """Correct the text since the last turn if it is not the answer.

        An agent whose text is not its answer sends its answer as one token, at the end.
        """
        text = "".join(self._text)
        if text == answer and self.ring.has(self._first_token_id):
            return
        iteration = self._progress.iterations + 1
        if text:
            self.ring.add("retract", iteration=iteration)
        self.ring.add("token", text=answer, iteration=iteration, agent=None)

    def add(self, fact: Event, trace_id: str | None) -> None:
        """Add the event of a fact, if readers see that fact."""
        match fact:
            case RunStarted():
                self.ring.add(
                    "run",
                    run_id=self._run_id,
                    trace_id=trace_id,
                    agent=self._agent.name,
                    deadline_s=fact.timeout_s,
                    iteration_limit=fact.iteration_limit,
                    demo=self._agent.demo,
                )
            case ToolCallStarted() if fact.own:
                call_id = self._progress.call_ids[fact.call_id]
                self.ring.add(
                    "tool_start", tool=fact.tool, call_id=call_id, iteration=fact.iteration
                )
            case ToolCallFinished() if fact.call_id in self._progress.call_ids:
                self.ring.add(
                    "tool_end",
                    tool=fact.tool,
                    call_id=self._progress.call_ids[fact.call_id],
                    outcome=fact.outcome,
                    duration_s=round(fact.at - fact.started_at, 4),
                )
            case IterationCounted():
                self._end_turn()
                self.ring.add("iteration", iteration=fact.iteration, tool_calls=fact.tool_calls)
            case ModelCallRetried():
                self._end_turn()
                self.ring.add("retract", iteration=fact.iteration)
            case _:
                pass

    def _end_turn(self) -> None:
        self._text.clear()
        self._first_token_id = 0
