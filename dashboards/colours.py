"""The meaning of each colour, the same on every page: green is good, red is a missed objective."""

from collections.abc import Mapping

GREEN, YELLOW, ORANGE, RED, DARK_RED = "#73BF69", "#FADE2A", "#FF9830", "#F2495C", "#C4162A"
BLUE, LIGHT_BLUE, PURPLE, LIGHT_PURPLE = "#5794F2", "#8AB8FF", "#B877D9", "#DEB6F2"
GREY, TEXT = "#8E8E8E", "text"

# The values that labels take from enums, and their colours.
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
    # Why a request was refused, a tool call was not executed, a reader left.
    "overloaded": RED,
    "draining": GREY,
    "unknown_tool": ORANGE,
    "invalid_args": YELLOW,
    "left": LIGHT_BLUE,
    "stalled": ORANGE,
    # The severity of an alert.
    "critical": RED,
    "warning": ORANGE,
    "info": BLUE,
    # The phase of a run at its deadline.
    "queue": YELLOW,
    "llm": BLUE,
    "tool": ORANGE,
    "other": GREY,
    # Status codes of HTTP, by their class.
    "2..": GREEN,
    "4..": YELLOW,
    "5..": RED,
    # Kinds of tokens. A kind that is a part of another has a similar colour.
    "input": BLUE,
    "cache_read": LIGHT_BLUE,
    "cache_creation": GREY,
    "output": PURPLE,
    "reasoning": LIGHT_PURPLE,
    # The state of a run.
    "queued": YELLOW,
    "running": BLUE,
}

# A number has the colour of the highest edge that it reaches.
Steps = tuple[tuple[float, str], ...]

# The share of a limit that is used.
FILLING: Steps = ((0, GREEN), (0.8, ORANGE), (1, RED))
ALL_IS_GOOD: Steps = ((0, RED), (1, GREEN))
FEW_ARE_FINE: Steps = ((0, GREEN), (0.001, ORANGE))
PLAIN: Steps = ((0, TEXT),)


def promised(objective: float) -> Steps:
    """Return green from the objective on, and red from ten times its error budget."""
    return ((0, RED), (round(1 - 10 * (1 - objective), 9), ORANGE), (objective, GREEN))
