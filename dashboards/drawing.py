"""Draws a panel with Grafana's own builders: the look of all graphs, numbers, bars and tables.

It has nothing about a single panel.
"""

from collections.abc import Callable, Iterator, Mapping
from string import ascii_uppercase

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heat
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from app.telemetry.catalogue import STATUS
from dashboards import links
from dashboards.colours import GREEN, ORANGE, RED, WORDS, Steps
from dashboards.looks import (
    SOURCE,
    Builder,
    Property,
    colours,
    data_link,
    in_order,
    last_value,
    legend,
    panel_link,
    thresholds,
    tooltip,
)
from dashboards.panels import PER_MINUTE, Panel, Shape
from dashboards.queries import Query
from dashboards.tables import table


def drawn(panel: Panel) -> Builder:
    """Return the builder of a panel."""
    built = _SHAPES[panel.shape](panel)
    built.title(panel.title).description(panel.description).datasource(SOURCE)
    built.unit(panel.unit).no_value(panel.empty).span(panel.width).height(panel.height)
    built.thresholds(thresholds(panel.steps + _alarmed(panel)))
    built.links([panel_link(links.runbook(alert)) for alert in panel.runbooks])
    for ref, query in _refs(panel):
        built.with_target(_target(ref, query, panel.shape))
        behind = () if query in panel.limits else links.of(query)
        if behind:
            built.override_by_query(ref, [Property("links", [data_link(link) for link in behind])])
    return built


def _refs(panel: Panel) -> Iterator[tuple[str, Query]]:
    yield from zip(ascii_uppercase, panel.asked, strict=False)


def _target(ref: str, query: Query, shape: Shape) -> prometheus.Dataquery:
    target = prometheus.Dataquery().ref_id(ref).expr(query.expr).datasource(SOURCE)
    target.legend_format(query.name or "all")
    if shape is Shape.TABLE:
        return target.instant().format(PromQueryFormat.TABLE)
    if query.heat:
        target.format(PromQueryFormat.HEATMAP)
    if query.exemplars:
        target.exemplar(True)
    return target.instant() if query.instant else target.range()


def _graph(panel: Panel) -> Builder:
    built = (
        timeseries.Panel()
        .line_width(1 if panel.stacked else 2)
        .fill_opacity(60 if panel.stacked else 0)
        .show_points(kinds.VisibilityMode.AUTO)
        .span_nulls(False)
        .min(0)
        .color_scheme(in_order())
        .legend(legend())
        .tooltip(tooltip())
    )
    if panel.most is not None:
        built.max(panel.most)
    if panel.unit == PER_MINUTE:
        # A rare event does not fill the panel.
        built.axis_soft_max(1)
    if panel.wide:
        scale = common.ScaleDistributionConfig().type(kinds.ScaleDistribution.SYMLOG)
        built.scale_distribution(scale.log(10).linear_threshold(1))
    if panel.stacked:
        built.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    if panel.alarms:
        style = common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
        built.thresholds_style(style)
    _colour_words(built, panel)
    for ref, query in _refs(panel):
        if query in panel.limits:
            built.override_by_query(ref, _DASHED)
    return built


_DASHED = [
    Property("color", {"mode": "fixed", "fixedColor": RED}),
    Property("custom.lineStyle", {"fill": "dash", "dash": [8, 8]}),
    Property("custom.fillOpacity", 0),
    Property("custom.stacking", {"mode": "none"}),
    Property("custom.showPoints", "never"),
]


def _number(panel: Panel) -> Builder:
    return (
        stat.Panel()
        .color_mode(kinds.BigValueColorMode.VALUE)
        .graph_mode(_sparkline(panel))
        .text_mode(kinds.BigValueTextMode.VALUE)
        .reduce_options(last_value())
        .color_scheme(colours(model.FieldColorModeId.THRESHOLDS))
    )


def _sparkline(panel: Panel) -> kinds.BigValueGraphMode:
    """A count over the whole time range has no sparkline."""
    once = any(query.instant for query in panel.queries)
    return kinds.BigValueGraphMode.NONE if once else kinds.BigValueGraphMode.AREA


def _bars(panel: Panel) -> Builder:
    built = (
        bargauge.Panel()
        .display_mode(kinds.BarGaugeDisplayMode.BASIC)
        .orientation(kinds.VizOrientation.HORIZONTAL)
        .value_mode(kinds.BarGaugeValueMode.COLOR)
        .name_placement(kinds.BarGaugeNamePlacement.LEFT)
        .reduce_options(last_value())
        .color_scheme(
            in_order() if len(panel.steps) == 1 else colours(model.FieldColorModeId.THRESHOLDS)
        )
        .min(0)
    )
    if panel.most is not None:
        built.max(panel.most)
    _colour_words(built, panel)
    return built


def _heat(panel: Panel) -> Builder:
    colours = heatmap.HeatmapColorOptions().mode(heat.HeatmapColorMode.SCHEME).scheme("Blues")
    return (
        heatmap.Panel()
        .calculate(False)
        .color(colours.steps(32).reverse(False))
        .cell_gap(1)
        .y_axis(heatmap.YAxisConfig().unit(panel.unit))
        .show_legend()
    )


def _states(panel: Panel) -> Builder:
    fine = model.ValueMappingResult(text="fine", color=GREEN, index=0)
    not_fine = model.ValueMappingResult(text="not fine", color=RED, index=1)
    return (
        statetimeline.Panel()
        .mappings([model.ValueMap({"1": fine, "0": not_fine})])
        .show_value(kinds.VisibilityMode.NEVER)
        .merge_values(True)
        .fill_opacity(70)
        .legend(legend())
        .tooltip(tooltip())
    )


_SHAPES: Mapping[Shape, Callable[[Panel], Builder]] = {
    Shape.GRAPH: _graph,
    Shape.NUMBER: _number,
    Shape.BARS: _bars,
    Shape.HEAT: _heat,
    Shape.TABLE: table,
    Shape.STATES: _states,
}


# A label whose values are known by their form only.
_PATTERNS = {STATUS: ("2..", "4..", "5..")}


def _colour_words(built: Builder, panel: Panel) -> None:
    """Give the values of enums their colours. The name of a series ends with the value."""
    labels = dict.fromkeys(query.by[-1] for query in panel.queries if query.by)
    words = (value for label in labels for value in _PATTERNS.get(label, label.values))
    for value in dict.fromkeys(words):
        if value in WORDS:
            fixed = Property("color", {"mode": "fixed", "fixedColor": WORDS[value]})
            built.override_by_regexp(f"/(^| ){value}$/", [fixed])


def _alarmed(panel: Panel) -> Steps:
    return tuple((edge, ORANGE) for edge in sorted(panel.alarms))
