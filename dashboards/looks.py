"""What all kinds of panels share: colours, legends, thresholds and links, in Grafana's types."""

from typing import Any

from grafana_foundation_sdk.builders import common, dashboard
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as model

from dashboards.colours import Steps
from dashboards.links import Link

SOURCE = kinds.DataSourceRef(type_val="prometheus", uid="${datasource}")

# The SDK has a builder for each kind of panel: alike, but without a common type.
Builder = Any
Property = model.DynamicConfigValue


def thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    """The edges from which a colour holds."""
    first, *others = [model.Threshold(value=edge, color=colour) for edge, colour in steps]
    first.value = None
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps([first, *others])


def in_order() -> dashboard.FieldColor:
    """No two lines alike; chosen by name, two agents may get one colour."""
    return colours(model.FieldColorModeId.PALETTE_CLASSIC)


def colours(mode: model.FieldColorModeId) -> dashboard.FieldColor:
    """Colours chosen in this way."""
    return dashboard.FieldColor().mode(mode)


def legend() -> common.VizLegendOptions:
    """Names below the graph."""
    return (
        common.VizLegendOptions()
        .display_mode(kinds.LegendDisplayMode.LIST)
        .placement(kinds.LegendPlacement.BOTTOM)
        .show_legend(True)
    )


def tooltip() -> common.VizTooltipOptions:
    """All lines at once, the greatest first."""
    return (
        common.VizTooltipOptions()
        .mode(kinds.TooltipDisplayMode.MULTI)
        .sort(kinds.SortOrder.DESCENDING)
    )


def last_value() -> common.ReduceDataOptions:
    """Of a series, its last value."""
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)


def panel_link(link: Link) -> dashboard.DashboardLink:
    """A link in the corner of a panel."""
    return (
        dashboard.DashboardLink(link.title)
        .type(model.DashboardLinkType.LINK)
        .url(link.url)
        .target_blank(True)
    )


def data_link(link: Link) -> dict[str, object]:
    """A link of a line or a cell."""
    return {"title": link.title, "url": link.url, "targetBlank": True}
