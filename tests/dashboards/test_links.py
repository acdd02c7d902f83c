"""A line in a graph leads to its traces and log lines."""

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from app.runs.model import PhaseKind
from app.telemetry import conventions, lines
from app.telemetry.catalogue import (
    AGENT,
    CONCURRENCY_LIMIT,
    LLM_DURATION,
    MODEL,
    OUTCOME,
    PHASE,
    PROVIDER,
    RUNS,
    TIMEOUTS,
    TOOL,
    TOOL_DURATION,
)
from dashboards import links, queries
from dashboards.links import TRAILS, Trail
from dashboards.queries import Query

_NAMES = {str(value) for value in vars(conventions).values() if isinstance(value, str)}


def explored(query: Query) -> tuple[str, str]:
    """What Explore is asked, of traces and of log lines."""
    traces, logs = (
        json.loads(parse_qs(urlsplit(link.url).query)["panes"][0])["watch"]
        for link in links.of(query)
    )
    assert (traces["datasource"], logs["datasource"]) == ("${traces}", "${logs}")
    assert traces["range"] == {"from": "${__from}", "to": "${__to}"}
    return traces["queries"][0]["query"], logs["queries"][0]["expr"]


@pytest.mark.parametrize("trail", TRAILS, ids=lambda trail: trail.span)
def test_links_filter_by_known_names(trail: Trail) -> None:
    """The attributes that links filter by are those of our spans, the events those of our lines."""
    assert {trail.span, *trail.attributes.values()} <= _NAMES
    (span,) = [one for one in conventions.SPANS if one.name.partition(" {")[0] == trail.span][:1]
    assert set(trail.attributes.values()) <= set(span.attributes)
    assert trail.event in {line.event for line in lines.LINES}


def test_link_of_runs_selects_their_spans_and_lines() -> None:
    """The link of an outcome selects the spans and log lines of its runs."""
    traces, logs = explored(queries.rate(RUNS, AGENT, OUTCOME))
    assert traces == (
        '{ span.gen_ai.operation.name = "invoke_agent" && '
        'span.gen_ai.agent.name =~ "${__field.labels.agent}" && '
        'span.agent.run.outcome =~ "${__field.labels.outcome}" }'
    )
    assert logs == (
        '{service_name=~".+"} |= `run_finished` | json | event = `run_finished`'
        " | agent =~ `${__field.labels.agent}` | outcome =~ `${__field.labels.outcome}`"
    )


def test_link_selects_the_outcomes_of_its_line() -> None:
    """A line about some outcomes leads to those, of the selected agents."""
    traces, logs = explored(queries.rate(RUNS, outcome=("failed", "timeout")))
    assert 'span.agent.run.outcome =~ "failed|timeout"' in traces
    assert 'span.gen_ai.agent.name =~ "${agent:regex}"' in traces
    assert logs.endswith(" | agent =~ `${agent:regex}` | outcome =~ `failed|timeout`")
    traces, _ = explored(queries.total(TIMEOUTS))
    assert 'span.agent.run.outcome =~ "timeout"' in traces


def test_phase_is_timeout_phase_in_lines() -> None:
    """The phase of a run is `timeout_phase` in its line."""
    _, logs = explored(queries.rate(TIMEOUTS, PHASE))
    assert logs.endswith(" | timeout_phase =~ `${__field.labels.phase}`")
    assert set(PHASE.values) == set(PhaseKind)


def test_links_of_calls_select_their_spans() -> None:
    """Calls lead to their own spans; a line of a model call does not name the provider."""
    traces, logs = explored(queries.rate(LLM_DURATION, PROVIDER, MODEL))
    assert '"chat"' in traces
    assert "gen_ai.provider.name" in traces
    assert "provider" not in logs
    traces, logs = explored(queries.rate(TOOL_DURATION, TOOL))
    assert '"execute_tool"' in traces
    assert "tool_call" in logs


def test_line_without_runs_has_no_link() -> None:
    """A limit of the process leads nowhere."""
    assert links.of(queries.level("max", CONCURRENCY_LIMIT)) == ()


def test_dashboard_can_change_the_runbook_address() -> None:
    """The dashboard itself can change the address of runbooks."""
    assert links.runbook("AgentRunTimeouts").url == "${runbooks:raw}/AgentRunTimeouts.md"
