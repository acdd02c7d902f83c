"""An alert as a value, and the links that it carries."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    """The severity: critical wakes a person, warning is a ticket, info can wait."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"
    NONE = "none"


class Board(StrEnum):
    """The dashboard to open. The value is its stable uid."""

    OVERVIEW = "watchkeeper-overview"
    ITERATIONS = "watchkeeper-iterations"
    MODELS = "watchkeeper-models"
    TOOLS = "watchkeeper-tools"
    COST = "watchkeeper-cost"
    API = "watchkeeper-api"
    BACKGROUND = "watchkeeper-background"
    RUNTIME = "watchkeeper-runtime"
    SLO = "watchkeeper-slo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One rule that notifies a person.

    The expression has to hold for `lasts`. Summary and description are templates of Prometheus; the
    description has the value.
    """

    name: str
    expr: str
    lasts: str
    severity: Severity
    board: Board
    summary: str
    description: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """A series that Prometheus computes ahead, since several rules and panels use it."""

    name: str
    expr: str


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that Prometheus evaluates together, in this order."""

    name: str
    rules: tuple[Alert | Record, ...]


# The dashboard opens with the labels of the alert.
_ON_SUBJECT = (
    "?{{ with $labels.job }}var-job={{ . }}{{ end }}"
    "{{ with $labels.agent }}&var-agent={{ . }}{{ end }}"
    "{{ with $labels.instance }}&var-instance={{ . }}{{ end }}"
)


@dataclass(frozen=True, slots=True)
class Links:
    """The addresses of runbooks and dashboards."""

    runbooks: str
    dashboards: str

    def runbook(self, alert: str) -> str:
        """Return the address of the runbook."""
        return f"{self.runbooks}/{alert}.md"

    def dashboard(self, board: Board) -> str:
        """Return the address of the dashboard, as a template."""
        return f"{self.dashboards}/{board}{_ON_SUBJECT}"
