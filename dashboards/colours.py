"""What each colour means, the same on every page: green is good, red is a broken promise."""

from collections.abc import Mapping

GREEN, YELLOW, ORANGE, RED, DARK_RED = "#73BF69", "#FADE2A", "#FF9830", "#F2495C", "#C4162A"
BLUE, LIGHT_BLUE, PURPLE, LIGHT_PURPLE = "#5794F2", "#8AB8FF", "#B877D9", "#DEB6F2"
GREY, TEXT = "#8E8E8E", "text"

# The words that labels take from enums, and their colours.
WORDS: Mapping[str, str] = {
    # Outcomes of runs, of model calls, of tool calls and of attempts.
    "completed": GREEN,
    "iteration_limit": ORANGE,
    "timeout": RED,
    "failed": DARK_RED,
    "rejected": YELLOW,
    "cancelled": GREY,
    "disconnected": LIGHT_BLUE,
    "interrupted": PURPLE,
    "rate_limited": YELLOW,
    "incomplete": PURPLE,
    "tool_error": ORANGE,
    "handed_over": BLUE,
    # Why a request was turned away, a tool call could not be run, a reader went.
    "overloaded": RED,
    "draining": GREY,
    "unauthorized": PURPLE,
    "unknown_tool": ORANGE,
    "invalid_args": YELLOW,
    "refused": PURPLE,
    "left": LIGHT_BLUE,
    "stalled": ORANGE,
    # How much an alert asks of whom.
    "critical": RED,
    "warning": ORANGE,
    "info": BLUE,
    # What held a run at its deadline.
    "queue": YELLOW,
    "llm": BLUE,
    "tool": ORANGE,
    "other": GREY,
    # Status codes of HTTP, by their class.
    "2..": GREEN,
    "4..": YELLOW,
    "5..": RED,
    # Kinds of tokens: what is a part of another is of its family.
    "input": BLUE,
    "cache_read": LIGHT_BLUE,
    "cache_creation": GREY,
    "output": PURPLE,
    "reasoning": LIGHT_PURPLE,
    # Where a run is.
    "queued": YELLOW,
    "running": BLUE,
}

# From the first edge on, a number has the first colour, and so on.
Steps = tuple[tuple[float, str], ...]

# How much of a limit is taken.
FILLING: Steps = ((0, GREEN), (0.8, ORANGE), (1, RED))
ALL_IS_GOOD: Steps = ((0, RED), (1, GREEN))
FEW_ARE_FINE: Steps = ((0, GREEN), (0.001, ORANGE))
PLAIN: Steps = ((0, TEXT),)


def promised(objective: float) -> Steps:
    """Green where a promise is kept, red where ten times as much is bad as it allows."""
    return ((0, RED), (round(1 - 10 * (1 - objective), 9), ORANGE), (objective, GREEN))
