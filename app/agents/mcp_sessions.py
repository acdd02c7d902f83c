"""Ends calls that wait for what a dead MCP session would have answered.

When a session's connection fails, its client cancels its own reader, which then cannot tell those
who wait for it. A tool that had just asked would wait until the deadline of its run.
"""

import asyncio
from collections.abc import Iterator
from types import FrameType
from typing import Any

import anyio

# A method of a session of MCP's client that asks, and what it waits for.
_ASKS = "send_request"
_ANSWER = "response_stream"


def end_waiting() -> None:
    """Let each call fail that waits for a session which is closed; others are left alone."""
    for task in asyncio.all_tasks():
        for frame in _frames(task.get_coro()):
            session = frame.f_locals.get("self")
            answer = frame.f_locals.get(_ANSWER)
            if frame.f_code.co_name == _ASKS and answer is not None and _is_closed(session):
                answer.close()


def _frames(coroutine: Any) -> Iterator[FrameType]:
    """The frames in which a task waits, the outermost first."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if isinstance(frame, FrameType):
            yield frame
        coroutine = getattr(coroutine, "cr_await", None)


def _is_closed(session: Any) -> bool:
    """Whether a session can send nothing any more."""
    try:
        session._write_stream.clone().close()
    except anyio.ClosedResourceError:
        return True
    except AttributeError:  # of another library, or another version
        return False
    return False
