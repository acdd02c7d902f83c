"""An alert as a value, and the links that it carries."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Severity(StrEnum):
    """Who is told: critical wakes somebody, warning is a ticket, info is read in the morning."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"
    NONE = "none"


class Board(StrEnum):
    """The dashboard to open; the value is its stable uid."""

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
    """One rule that wakes somebody, or tells somebody.

    `lasts` is how long the expression has to hold. Summary and description are Prometheus'
    templates; the description says the value in words.
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
    """A series that Prometheus computes ahead, since several rules and panels ask for it."""

    name: str
    expr: str


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that are evaluated together, in this order."""

    name: str
    rules: tuple[Alert | Record, ...]


# The dashboard opens on what the alert is about.
_ON_SUBJECT = (
    "?{{ with $labels.job }}var-job={{ . }}{{ end }}"
    "{{ with $labels.agent }}&var-agent={{ . }}{{ end }}"
    "{{ with $labels.instance }}&var-instance={{ . }}{{ end }}"
)


@dataclass(frozen=True, slots=True)
class Links:
    """Where runbooks and dashboards are found."""

    runbooks: str
    dashboards: str

    def runbook(self, alert: str) -> str:
        """The page that says what to do."""
        return f"{self.runbooks}/{alert}.md"

    def dashboard(self, board: Board) -> str:
        """The page that shows it, as a template."""
        return f"{self.dashboards}/{board}{_ON_SUBJECT}"
