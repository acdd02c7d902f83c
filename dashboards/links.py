"""From a line in a graph to the traces and log lines behind it, and to the page of an alert.

Traces and logs open in Grafana's Explore, in the data sources that the reader has chosen. A link
filters by what the line that was clicked is about.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from app.telemetry.catalogue import AGENT, LIMIT_HITS, MODEL, TIMEOUTS, TOOL
from dashboards.queries import Query

# A constant of each dashboard, so that it can be changed where it was imported too.
RUNBOOKS = "${runbooks:raw}"


@dataclass(frozen=True, slots=True)
class Trail:
    """What tells of one kind of thing: its spans, its log lines, and their names for our labels."""

    event: str
    span: str
    attributes: Mapping[str, str]


_AGENT = {"agent": "gen_ai.agent.name"}
RUN = Trail(
    "run_finished",
    "invoke_agent",
    _AGENT
    | {
        "mode": "agent.run.mode",
        "outcome": "agent.run.outcome",
        "phase": "agent.run.timeout.phase",
    },
)
MODEL_CALL = Trail(
    "llm_call",
    "chat",
    _AGENT
    | {
        "provider": "gen_ai.provider.name",
        "model": "gen_ai.request.model",
        "outcome": "agent.call.outcome",
    },
)
TOOL_CALL = Trail(
    "tool_call",
    "execute_tool",
    _AGENT | {"tool": "gen_ai.tool.name", "outcome": "agent.tool.outcome"},
)
TRAILS = (RUN, MODEL_CALL, TOOL_CALL)
# Fields of log lines that are not named like the label.
_FIELDS = {"phase": "timeout_phase"}
# What is not a label, since the metric counts nothing else.
_IMPLIED = {TIMEOUTS: {"outcome": "timeout"}, LIMIT_HITS: {"outcome": "iteration_limit"}}
_VARIABLE = re.compile(r"%24%7B[\w.%]+?%7D")
# What the lines of a kind have no field for.
_NOT_IN_LINES = {"llm_call": {"provider"}}


@dataclass(frozen=True, slots=True)
class Link:
    """A title and an address, with Grafana's variables in it."""

    title: str
    url: str


def of(query: Query) -> tuple[Link, ...]:
    """The links of a line: its traces and its log lines, where there are any."""
    trail = _trail(query)
    if trail is None:
        return ()
    wanted = _wanted(trail, query)
    return (
        Link("Traces behind this", _explore("traces", "tempo", _traceql(trail, wanted))),
        Link("Log lines behind this", _explore("logs", "loki", _logql(trail, wanted))),
    )


# In a cell that holds the name of an alert.
RUNBOOK = Link("Runbook", f"{RUNBOOKS}/${{__value.raw}}.md")


def runbook(alert: str) -> Link:
    """The page that says what to do when an alert fires."""
    return Link(f"Runbook: {alert}", f"{RUNBOOKS}/{alert}.md")


def _trail(query: Query) -> Trail | None:
    labels = query.metrics[0].labels
    for label, trail in ((MODEL, MODEL_CALL), (TOOL, TOOL_CALL), (AGENT, RUN)):
        if label in labels:
            return trail
    return None


def _wanted(trail: Trail, query: Query) -> Mapping[str, str]:
    """For each name what it has to match: what the line is about, or what was chosen."""
    wanted = {"agent": "${agent:regex}"} | _IMPLIED.get(query.metrics[0], {})
    wanted |= {name: "|".join(values) for name, values in query.held}
    wanted |= {label.name: f"${{__field.labels.{label.name}}}" for label in query.by}
    return {name: value for name, value in wanted.items() if name in trail.attributes}


def _traceql(trail: Trail, wanted: Mapping[str, str]) -> dict[str, str]:
    matched = [f'span.gen_ai.operation.name = "{trail.span}"']
    matched += [f'span.{trail.attributes[name]} =~ "{value}"' for name, value in wanted.items()]
    return {"queryType": "traceql", "query": f"{{ {' && '.join(matched)} }}"}


def _logql(trail: Trail, wanted: Mapping[str, str]) -> dict[str, str]:
    lines = f'{{service_name=~".+"}} |= `{trail.event}` | json | event = `{trail.event}`'
    left_out = _NOT_IN_LINES.get(trail.event, set())
    for name, value in wanted.items():
        if name not in left_out:
            lines += f" | {_FIELDS.get(name, name)} =~ `{value}`"
    return {"expr": lines}


def _explore(source: str, kind: str, query: Mapping[str, str]) -> str:
    uid = f"${{{source}}}"
    pane = {
        "datasource": uid,
        "queries": [{"refId": "A", "datasource": {"type": kind, "uid": uid}, **query}],
        "range": {"from": "${__from}", "to": "${__to}"},
    }
    panes = quote(json.dumps({"watch": pane}), safe="")
    # Grafana's variables stay as they are.
    return "/explore?schemaVersion=1&panes=" + _VARIABLE.sub(lambda v: unquote(v[0]), panes)
