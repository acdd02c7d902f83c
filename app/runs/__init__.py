"""The core: what a run is, who may start one, when it must end and what is known about it.

It knows no library. A tool may ask `remaining()` how many seconds its run has left.
"""

from app.runs.deadline import remaining

__all__ = ["remaining"]
