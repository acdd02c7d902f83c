"""Prices of model calls, from a small dated table that a file can override.

A model that is not in the table has no price: an unknown cost is never reported as 0.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from app.runs.model import Usage

_MILLION = 1_000_000
# Providers add a date or a version to the name of a model: gpt-4o-2024-08-06.
_VERSION = re.compile(r"-(\d[\d.-]*|latest)$")


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """US dollars for a million tokens; `cached` is the price of input read from a cache."""

    input: float
    output: float
    cached: float | None = None


class Prices:
    """The prices in force, by model name."""

    def __init__(self, models: Mapping[str, ModelPrice]) -> None:
        self.models = models

    @classmethod
    def load(cls, override: Path | None = None) -> "Prices":
        """Load the table of the service; a file of the same form overrides its entries.

        Raises ValueError, naming the file, if the file has another form.
        """
        table = json.loads(resources.files("app.runs").joinpath("prices.json").read_text())
        models = {name: ModelPrice(**price) for name, price in table["models"].items()}
        if override is not None:
            try:
                overrides = json.loads(override.read_text())["models"]
                models |= {name: ModelPrice(**price) for name, price in overrides.items()}
            except (OSError, KeyError, TypeError, ValueError) as wrong:
                raise ValueError(f"{override} is not a table of prices: {wrong!r}") from wrong
        return cls(models)

    def cost(self, model: str, usage: Usage) -> float | None:
        """US dollars of one call, or None if the model has no price."""
        price = self.models.get(model) or self.models.get(_VERSION.sub("", model))
        if price is None:
            return None
        cached = usage.cache_read if price.cached is not None else 0
        spent = (
            (usage.input_tokens - cached) * price.input
            + cached * (price.cached or 0.0)
            + usage.output_tokens * price.output
        )
        return spent / _MILLION
