"""The look that all panels share: colours, legends, thresholds and links, in Grafana's types."""

from typing import Any

from grafana_foundation_sdk.builders import common, dashboard
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as model

from dashboards.colours import Steps
from dashboards.links import Link

SOURCE = kinds.DataSourceRef(type_val="prometheus", uid="${datasource}")

# The SDK has similar builders for each kind of panel, without a common type.
Builder = Any
Property = model.DynamicConfigValue


def thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    """Return the thresholds of these colours."""
    first, *others = [model.Threshold(value=edge, color=colour) for edge, colour in steps]
    first.value = None
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps([first, *others])


def in_order() -> dashboard.FieldColor:
    """Give each line its own colour. By name, two agents could get the same one."""
    return colours(model.FieldColorModeId.PALETTE_CLASSIC)


def colours(mode: model.FieldColorModeId) -> dashboard.FieldColor:
    """Return colours of this mode."""
    return dashboard.FieldColor().mode(mode)


def legend() -> common.VizLegendOptions:
    """Return a legend below the graph."""
    return (
        common.VizLegendOptions()
        .display_mode(kinds.LegendDisplayMode.LIST)
        .placement(kinds.LegendPlacement.BOTTOM)
        .show_legend(True)
    )


def tooltip() -> common.VizTooltipOptions:
    """Return a tooltip of all lines, the greatest first."""
    return (
        common.VizTooltipOptions()
        .mode(kinds.TooltipDisplayMode.MULTI)
        .sort(kinds.SortOrder.DESCENDING)
    )


def last_value() -> common.ReduceDataOptions:
    """Reduce a series to its last value."""
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)


def panel_link(link: Link) -> dashboard.DashboardLink:
    """Return a link in the corner of a panel."""
    return (
        dashboard.DashboardLink(link.title)
        .type(model.DashboardLinkType.LINK)
        .url(link.url)
        .target_blank(True)
    )


def data_link(link: Link) -> dict[str, object]:
    """Return a link of a line or a cell."""
    return {"title": link.title, "url": link.url, "targetBlank": True}
