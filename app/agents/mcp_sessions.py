"""Fails calls that wait for a response of a closed MCP session.

If a session's connection fails, its client cancels its own reader, and pending requests are not
notified. A tool that has sent a request would wait until its run's deadline.
"""

import asyncio
from collections.abc import Iterator
from types import FrameType
from typing import Any

import anyio

# The request method of an MCP client session, and its local variable that is awaited.
_REQUEST_METHOD = "send_request"
_RESPONSE_STREAM = "response_stream"


def fail_pending_requests() -> None:
    """Fail each call that waits for a closed session."""
    for task in asyncio.all_tasks():
        for frame in _frames(task.get_coro()):
            session = frame.f_locals.get("self")
            stream = frame.f_locals.get(_RESPONSE_STREAM)
            if (
                frame.f_code.co_name == _REQUEST_METHOD
                and stream is not None
                and _is_closed(session)
            ):
                stream.close()


def _frames(coroutine: Any) -> Iterator[FrameType]:
    """Yield the frames of a waiting task, outermost first."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if isinstance(frame, FrameType):
            yield frame
        coroutine = getattr(coroutine, "cr_await", None)


def _is_closed(session: Any) -> bool:
    """Whether a session can no longer send."""
    try:
        session._write_stream.clone().close()
    except anyio.ClosedResourceError:
        return True
    except AttributeError:  # of another library, or another version
        return False
    return False
