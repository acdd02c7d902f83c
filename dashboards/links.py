"""Links from a line in a graph to its traces and log lines, and from an alert to its runbook.

Traces and logs open in Grafana's Explore, in the data sources that the reader has chosen. A link
filters by the labels of the clicked line.
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
    """The spans and log lines of one kind of event, and their attributes for our labels."""

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
# Fields of log lines with another name than the label.
_FIELDS = {"phase": "timeout_phase"}
# Values that the metric implies, so it has no label for them.
_IMPLIED = {TIMEOUTS: {"outcome": "timeout"}, LIMIT_HITS: {"outcome": "iteration_limit"}}
_VARIABLE = re.compile(r"%24%7B[\w.%]+?%7D")
# Labels that the lines of a kind have no field for.
_NOT_IN_LINES = {"llm_call": {"provider"}}


@dataclass(frozen=True, slots=True)
class Link:
    """A title, and an address with Grafana's variables."""

    title: str
    url: str


def of(query: Query) -> tuple[Link, ...]:
    """Return the links from a line to its traces and log lines, if it has any."""
    trail = _trail(query)
    if trail is None:
        return ()
    wanted = _wanted(trail, query)
    return (
        Link("Traces behind this", _explore("traces", "tempo", _traceql(trail, wanted))),
        Link("Log lines behind this", _explore("logs", "loki", _logql(trail, wanted))),
    )


# For a cell with the name of an alert.
RUNBOOK = Link("Runbook", f"{RUNBOOKS}/${{__value.raw}}.md")


def runbook(alert: str) -> Link:
    """Return the link to the runbook of an alert."""
    return Link(f"Runbook: {alert}", f"{RUNBOOKS}/{alert}.md")


def _trail(query: Query) -> Trail | None:
    labels = query.metrics[0].labels
    for label, trail in ((MODEL, MODEL_CALL), (TOOL, TOOL_CALL), (AGENT, RUN)):
        if label in labels:
            return trail
    return None


def _wanted(trail: Trail, query: Query) -> Mapping[str, str]:
    """Return the pattern for each name: from the line, or from the reader's choice."""
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
    # Grafana's variables are not quoted.
    return "/explore?schemaVersion=1&panes=" + _VARIABLE.sub(lambda v: unquote(v[0]), panes)
