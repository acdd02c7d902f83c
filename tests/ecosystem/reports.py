"""The reports of one run: its answer, its record, its log line, its spans, its samples, its stream.

They are made from the same facts and have to say the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.ecosystem.expected import Expected
from tests.ecosystem.model import Asked, Model
from tests.otlp import Received
from tests.streams.reading import StreamEvent, in_order, names_of, of, text_of
from tests.telemetry.watched import Scrape, parent_of, root_of

LEVELS = {"completed": "info", "interrupted": "info", "failed": "error"}
ERROR_TYPES = {"iteration_limit": "iteration_limit"}
# What of an answer and of a line helps to understand a failed test.
CLUES = ("answer", "output", "code", "detail", "error_type", "error_at")


@dataclass(frozen=True)
class SubAgent:
    """An agent that a tool asked, as its span reports it."""

    name: str
    iterations: int
    tool_calls: int
    tool: str


@dataclass
class Run:
    """One run and its four reports. `body` is the finished run, or the problem."""

    mode: str
    agent: str
    status: int
    body: Mapping[str, Any]
    events: list[StreamEvent]
    line: Mapping[str, Any]
    record: Mapping[str, Any]
    spans: list[Received]
    before: Scrape
    after: Scrape
    rejections: int

    @property
    def id(self) -> str:
        """The id of the run."""
        return str(self.body["run_id"])

    @property
    def root(self) -> Received:
        """The span of the run."""
        return root_of(self.spans, self.id)

    @property
    def own_tools(self) -> list[Received]:
        """The spans of tool calls, without those that were made inside another tool."""
        return [s for s in self._of("execute_tool") if not self._tool_around(s)]

    @property
    def sub_agents(self) -> list[SubAgent]:
        """The agents that tools asked."""
        return sorted(
            (self._sub_agent(s) for s in self._of("invoke_agent") if s is not self.root),
            key=lambda agent: agent.name,
        )

    @property
    def outcomes(self) -> dict[str, list[str]]:
        """How the tool calls of each tool ended, those inside other tools included."""
        found: dict[str, list[str]] = {}
        for span in self._of("execute_tool"):
            name = str(span.attributes["gen_ai.tool.name"])
            found.setdefault(name, []).append(str(span.attributes["agent.tool.outcome"]))
        return {name: sorted(outcomes) for name, outcomes in found.items()}

    def spoken(self, agent: str | None = None) -> str:
        """All text that was streamed under a name; that of the agent asked by default."""
        tokens = of(self.events, "token")
        return "".join(str(token["text"]) for token in tokens if token["agent"] == agent)

    def calls_of(self, model: Model) -> list[Asked]:
        """What a model was asked in this run."""
        return model.in_run(self.id)

    def grown(self, sample: str, **labels: str) -> float:
        """By how much a sample of this agent grew."""
        both = [s.total(sample, agent=self.agent, **labels) for s in (self.before, self.after)]
        return both[1] - both[0]

    def differences(self, expected: Expected) -> list[str]:
        """What each signal reports, and should; empty where all of them agree."""
        if expected.iterations is None:
            expected = replace(expected, iterations=self.body["iterations"])
        return [
            f"{signal} {name}: {got!r}, not {wanted!r}"
            for signal, report in (
                ("answer", self._answer(expected)),
                ("record", self._record(expected)),
                ("line", self._line(expected)),
                ("span", self._span(expected)),
                ("metric", self._metric(expected)),
                ("stream", self._stream(expected)),
            )
            for name, (got, wanted) in report.items()
            if got != wanted
        ]

    def _answer(self, expected: Expected) -> dict[str, tuple[Any, Any]]:
        body = self.body
        report = self._counts(body, expected)
        if expected.answers:
            report |= {
                "limit": (body.get("limit"), expected.limit),
                "refused": (body.get("refused"), expected.refused),
                "code": (body.get("code"), None),
            }
            if expected.answer is not None:
                report["text"] = (body.get("answer"), expected.answer)
            return report
        report["code"] = (body.get("code"), expected.code)
        if expected.retryable is not None:
            report["retryable"] = (body.get("retryable"), expected.retryable)
        if expected.detail is not None:
            report["detail"] = (body.get("detail"), expected.detail)
        return report

    def _record(self, expected: Expected) -> dict[str, tuple[Any, Any]]:
        steps = self.record.get("steps", [])
        return {
            **self._counts(self.record, expected),
            "steps": (len(steps), expected.tool_calls),
        }

    def _line(self, expected: Expected) -> dict[str, tuple[Any, Any]]:
        line = self.line
        return {
            **self._counts(line, expected),
            "level": (line["level"], LEVELS.get(expected.outcome, "warning")),
            "code": (line["code"], expected.code),
            "limit": (line.get("limit"), expected.limit),
            "refused": (line.get("refused", False), expected.refused),
            "tools": (sum(line["tools"].values()), expected.tool_calls),
            "rejected": (self.rejections, expected.rejected),
        }

    def _span(self, expected: Expected) -> dict[str, tuple[Any, Any]]:
        attributes = self.root.attributes
        report = {
            name: (attributes.get(f"agent.run.{name}"), getattr(expected, name))
            for name in ("outcome", "iterations", "tool_calls", "limit")
        }
        error = ERROR_TYPES.get(expected.outcome, expected.code)
        report["error"] = (
            attributes.get("error.type"),
            None if expected.outcome == "interrupted" else error,
        )
        report["refused"] = (attributes.get("agent.run.refused", False), expected.refused)
        report["tools"] = (len(self.own_tools), expected.tool_calls)
        return report

    def _metric(self, expected: Expected) -> dict[str, tuple[Any, Any]]:
        counted = self.grown("agent_runs_total", mode=self.mode, outcome=expected.outcome)
        hits = self.grown("agent_iteration_limit_hits_total")
        return {
            "runs": (counted, 1),
            "all runs": (self.grown("agent_runs_total"), 1),
            "iterations": (self.grown("agent_run_iterations_sum"), expected.iterations),
            "tool_calls": (self.grown("agent_run_tool_calls_sum"), expected.tool_calls),
            "rejected": (self.grown("agent_tool_rejected_calls_total"), expected.rejected),
            "limit hits": (hits, expected.outcome == "iteration_limit"),
        }

    def _counts(self, report: Mapping[str, Any], expected: Expected) -> dict[str, tuple[Any, Any]]:
        names = ("outcome", "iterations", "tool_calls")
        return {name: (report.get(name), getattr(expected, name)) for name in names}

    def _stream(self, expected: Expected) -> dict[str, tuple[Any, Any]]:
        if not self.events:
            return {}
        in_order(self.events)
        counted = [event["iteration"] for event in of(self.events, "iteration")]
        report: dict[str, tuple[Any, Any]] = {
            "iterations": (max(counted, default=0), expected.iterations),
            "errors": (names_of(self.events).count("error"), int(not expected.answers)),
        }
        if expected.answers:
            report["text"] = (text_of(self.events), self.body.get("answer"))
        return report

    def _of(self, operation: str) -> list[Received]:
        return [span for span in self.spans if span.operation == operation]

    def _tool_around(self, span: Received) -> Received | None:
        outer = parent_of(span, self.spans)
        while outer is not None and outer.operation != "execute_tool":
            outer = parent_of(outer, self.spans)
        return outer

    def _sub_agent(self, span: Received) -> SubAgent:
        tool = self._tool_around(span)
        return SubAgent(
            str(span.attributes["gen_ai.agent.name"]),
            int(span.attributes["agent.run.iterations"]),
            int(span.attributes["agent.run.tool_calls"]),
            str(tool.attributes["gen_ai.tool.name"]) if tool else "",
        )


def assert_agree(runs: Sequence[Run], expected: Expected) -> None:
    """Every report of each run is as expected; fails with all that differs."""
    lines = []
    for run in runs:
        if differences := run.differences(expected):
            known = {**run.line, **run.body}
            clues = {name: known[name] for name in CLUES if known.get(name)}
            lines.append(f"{run.mode}: {'; '.join(differences)} {clues}")
    assert not lines, "\n".join(lines)
