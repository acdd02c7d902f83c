"""Turns a dashboard into the JSON that Grafana imports: variables, annotations, links and rows."""

import json
from collections.abc import Iterator

from grafana_foundation_sdk.builders import dashboard as sdk
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from app.telemetry.catalogue import BUILD_INFO, RUNS
from dashboards.borrowed import ALERTS, STARTED
from dashboards.colours import BLUE, GREY, RED
from dashboards.drawing import drawn
from dashboards.looks import SOURCE
from dashboards.panels import Dashboard
from dashboards.queries import RATE, scope

TAG = "watchkeeper"
_KINDS = tuple(label.name for label in BUILD_INFO.labels if label.name in ("version", "commit"))


def text(dashboard: Dashboard, runbooks: str) -> str:
    """Return the JSON of a dashboard. `runbooks` is the address of the runbooks."""
    built = (
        sdk.Dashboard(f"Watchkeeper / {dashboard.title}")
        .uid(dashboard.uid)
        .description(dashboard.description)
        .tags([TAG])
        .time(dashboard.since, "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .variables([*_choices(), sdk.ConstantVariable("runbooks").value(runbooks)])
        .annotations(list(_annotations()))
        .link(_other_dashboards())
    )
    for row in dashboard.rows:
        built.with_row(sdk.Row(row.title))
        for panel in row.panels:
            built.with_panel(drawn(panel))
    made = built.build()
    for number, made_panel in enumerate(made.panels or [], start=1):
        made_panel.id_val = number
    plain = json.loads(json.dumps(made, cls=JSONEncoder))
    # Visible, and not in a menu that only the newest Grafana has.
    for shown in (*plain["links"], *plain["annotations"]["list"]):
        del shown["placement"]
    return json.dumps(plain, indent=1) + "\n"


def _choices() -> Iterator[sdk.DatasourceVariable | sdk.QueryVariable]:
    yield sdk.DatasourceVariable("datasource").label("Data source").type("prometheus")
    jobs = f"label_values({BUILD_INFO.name}, job)"
    yield _choice("job", "Job", jobs)
    instances = f'label_values({BUILD_INFO.name}{{job=~"$job"}}, instance)'
    yield _choice("instance", "Instance", instances)
    agents = f'label_values({RUNS.name}{{job=~"$job"}}, agent)'
    # Some metrics have no agent.
    yield _choice("agent", "Agent", agents).all_value(".*")
    yield sdk.DatasourceVariable("traces").label("Traces").type("tempo")
    yield sdk.DatasourceVariable("logs").label("Logs").type("loki")


def _choice(name: str, label: str, query: str) -> sdk.QueryVariable:
    """ "All" means all listed values: Prometheus has other jobs with metrics of the same name."""
    return (
        sdk.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(SOURCE)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .current(model.VariableOption(text="All", value="$__all"))
    )


def _annotations() -> Iterator[sdk.AnnotationQuery]:
    build = f"count by ({', '.join(_KINDS)}) ({BUILD_INFO.name}{{{scope(BUILD_INFO)}}}"
    yield (
        _annotation("Deploys", BLUE, f"{build}) unless {build} offset 5m)")
        .title_format("Deployed {{version}}")
        .text_format("Commit {{commit}}")
    )
    yield (
        _annotation("Restarts", GREY, f"changes({STARTED.name}{{{scope(STARTED)}}}[{RATE}]) > 0")
        .title_format("Restarted")
        .text_format("{{instance}}")
    )
    firing = f'{scope(ALERTS)}, alertstate="firing", severity=~"critical|warning"'
    yield (
        _annotation("Alerts", RED, f"{ALERTS.name}{{{firing}}}")
        .title_format("{{alertname}}")
        .text_format("{{agent}} {{instance}}")
    )


def _annotation(name: str, colour: str, expr: str) -> sdk.AnnotationQuery:
    built = sdk.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(colour)
    return built.expr(expr).step("60s")


def _other_dashboards() -> sdk.DashboardLink:
    return (
        sdk.DashboardLink("Watchkeeper")
        .type(model.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(True)
        .include_vars(True)
        .keep_time(True)
    )
