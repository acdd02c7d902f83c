"""The caller's connection: notices that the caller has left, and drops one that does not read."""

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.types import Receive

_ABORT = "watchkeeper.abort"


async def wait_or_disconnect(awaited: asyncio.Future[Any], receive: Receive) -> bool:
    """Wait for a future; false if the caller disconnects first."""
    leaving = asyncio.ensure_future(disconnected(receive))
    either: set[asyncio.Future[Any]] = {awaited, leaving}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
    return awaited.done()


async def disconnected(receive: Receive) -> None:
    """Return when the caller has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass


def offer_abort(scope: MutableMapping[str, Any], abort: Callable[[], None]) -> None:
    """Let whoever answers this request drop its connection."""
    scope[_ABORT] = abort


def abort(scope: MutableMapping[str, Any]) -> bool:
    """Drop the connection at once; false if the server has no way to."""
    drop: Callable[[], None] | None = scope.get(_ABORT)
    if drop is not None:
        drop()
    return drop is not None
