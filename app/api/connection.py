"""The caller's connection: detects a disconnect, and aborts a connection that is not read."""

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
    """Store the abort function of a connection in the scope of its request."""
    scope[_ABORT] = abort


def abort(scope: MutableMapping[str, Any]) -> bool:
    """Abort the connection at once; false if the server offered no function for it."""
    close: Callable[[], None] | None = scope.get(_ABORT)
    if close is not None:
        close()
    return close is not None
