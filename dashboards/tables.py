"""Draws a table: queries side by side, with names, units and colours in their cells."""

from string import ascii_uppercase

from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.models import dashboard as model

from app.telemetry.catalogue import Label
from dashboards import links
from dashboards.borrowed import ALERT_NAME
from dashboards.colours import WORDS
from dashboards.looks import Builder, Property, data_link, thresholds
from dashboards.panels import Column, Panel


def table(panel: Panel) -> Builder:
    """Return a table with a row for each value of the first column's labels."""
    refs = ascii_uppercase[: len(panel.columns)]
    # Grafana numbers the values only if there are several.
    values = [f"Value #{ref}" for ref in refs] if len(refs) > 1 else ["Value"]
    order = [*(label.name for label in panel.columns[0].query.by), *values]
    organized = {
        "excludeByName": {"Time": True},
        "indexByName": {name: place for place, name in enumerate(order)},
        "renameByName": dict(zip(values, [c.name for c in panel.columns], strict=True)),
    }
    built = (
        tables.Panel()
        .with_transformation(model.DataTransformerConfig("merge", options={}))
        .with_transformation(model.DataTransformerConfig("organize", options=organized))
    )
    for label in panel.columns[0].query.by:
        built.override_by_name(label.name, [_NOTHING, *_words(label), *_runbooks(label)])
    for column in panel.columns:
        built.override_by_name(column.name, _column(column))
    return built


_NOTHING = Property("noValue", "–")


def _words(label: Label) -> list[Property]:
    """Colour the cells of a label by their values."""
    if not set(label.values) & WORDS.keys():
        return []
    shown = {
        word: model.ValueMappingResult(color=WORDS[word], index=place).to_json()
        for place, word in enumerate(label.values)
        if word in WORDS
    }
    return [
        Property("mappings", [{"type": "value", "options": shown}]),
        Property("custom.cellOptions", {"type": "color-text"}),
    ]


def _runbooks(label: Label) -> list[Property]:
    """Link the cells with names of alerts to the runbooks."""
    return [Property("links", [data_link(links.RUNBOOK)])] if label is ALERT_NAME else []


def _column(column: Column) -> list[Property]:
    coloured = len(column.steps) > 1
    return [
        Property("unit", column.unit),
        Property("thresholds", thresholds(column.steps).build().to_json()),
        Property("color", {"mode": "thresholds"}),
        Property("custom.cellOptions", {"type": "color-text" if coloured else "auto"}),
        Property("custom.align", "right"),
        _NOTHING,
    ]
