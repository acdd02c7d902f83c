"""Gives every response its `X-Request-Id`, and an answer to a request that went wrong inside."""

import re
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import problems

HEADER = "X-Request-Id"
_USABLE = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestId:
    """ASGI middleware: the caller's own id where it can be used, else a new one.

    An exception that nothing inside answered becomes a 500 problem; `on_error` is told of it.
    """

    def __init__(self, app: ASGIApp, on_error: Callable[[Exception], None]) -> None:
        self.app = app
        self.on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        offered = Headers(scope=scope).get(HEADER, "")
        request_id = offered if _USABLE.fullmatch(offered) else uuid.uuid4().hex
        begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001 - the edge: nothing may leave but a problem
            self.on_error(error)
            if not begun:
                await problems.respond(problems.of_status(500))(scope, receive, send_with_id)
