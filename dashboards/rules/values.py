"""The settings of the rules, read from `dashboards/values.toml` and checked.

All durations pass through here, so that the fire drills can run the same rules in a shorter time.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "values.toml"

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Knobs:
    """One table of the values. If no rule reads a knob, `unused` has its name.

    `job` is the name of the service's job in Prometheus.
    """

    def __init__(self, name: str, table: Mapping[str, Any], speed: float, job: str) -> None:
        self.name, self.job = name, job
        self._table = table
        self._speed = speed
        self._asked: set[str] = set()

    def number(self, knob: str) -> float:
        """Return a threshold. Raises KeyError if the table does not have it."""
        found = self._get(knob)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise TypeError(f"{knob} of {self.name} is not a number: {found!r}.")
        return found

    def text(self, knob: str) -> str:
        """Return a word or an address."""
        return str(self._get(knob))

    def span(self, knob: str) -> str:
        """Return a duration in the form of PromQL."""
        return scaled(self.text(knob), self._speed)

    def seconds(self, knob: str) -> float:
        """Return a duration in seconds."""
        return milliseconds(self.span(knob)) / 1000

    @property
    def unused(self) -> set[str]:
        """Return the names of knobs that no rule reads."""
        return set(self._table) - self._asked

    def _get(self, knob: str) -> Any:
        self._asked.add(knob)
        if knob not in self._table:
            raise KeyError(f"values.toml has no {knob} in [{self.name}].")
        return self._table[knob]


class Values:
    """All tables. `speed` divides every duration."""

    def __init__(self, tables: Mapping[str, Mapping[str, Any]], speed: float = 1) -> None:
        self.speed = speed
        job = Knobs("scrape", tables.get("scrape", {}), speed, "").text("job")
        others = {name: table for name, table in tables.items() if name != "scrape"}
        self._knobs = {name: Knobs(name, table, speed, job) for name, table in others.items()}

    @classmethod
    def load(cls, file: Path = FILE, speed: float = 1) -> "Values":
        """Read the values of a file."""
        return cls(tomllib.loads(file.read_text(encoding="utf-8")), speed)

    def __getitem__(self, name: str) -> Knobs:
        if name not in self._knobs:
            raise KeyError(f"values.toml has no table [{name}].")
        return self._knobs[name]

    def span(self, duration: str) -> str:
        """Return a fixed duration of a rule, divided by `speed`."""
        return scaled(duration, self.speed)

    def unused(self) -> list[str]:
        """Return every knob that no rule reads, once all rules are built."""
        return sorted(f"{k.name}.{knob}" for k in self._knobs.values() for knob in k.unused)


def milliseconds(duration: str) -> int:
    """Return `90s` or `1h30m` in milliseconds. Raises ValueError for an invalid duration."""
    parts = re.findall(r"(\d+)(ms|[smhd])", duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"{duration!r} is no duration such as 30s, 15m, 6h or 3d.")
    return sum(int(number) * _UNITS_MS[unit] for number, unit in parts)


def scaled(duration: str, speed: float) -> str:
    """Return the duration divided by `speed`, in the largest unit without a fraction."""
    if speed == 1:
        milliseconds(duration)
        return duration
    left = round(milliseconds(duration) / speed)
    if not left:
        return "0s"
    unit = next(u for u in ("d", "h", "m", "s", "ms") if left % _UNITS_MS[u] == 0)
    return f"{left // _UNITS_MS[unit]}{unit}"
