"""Rows and ratios, for people at a terminal."""

import statistics
from collections.abc import Sequence


def show(title: str, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Return a table with the first column to the left and figures to the right."""
    cells = [list(heads), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    print(f"\n{title}")
    for row in cells:
        first, *rest = (
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([f"  {first}", *rest]).rstrip(), flush=True)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return our time over theirs: by the median of the rounds, and by the least figures.

    A slow drift does not change the median of the rounds. The least figures are those of turns
    without a disturbance.
    """
    of_rounds = sorted(mine / other for mine, other in zip(ours, theirs, strict=True))
    middle = statistics.median(of_rounds)
    of_least = min(ours) / min(theirs)
    return f"{middle:.2f} ({of_rounds[0]:.2f} to {of_rounds[-1]:.2f}), {of_least:.2f}"


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the value that this percentage of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
