"""Adds `X-Request-Id` to every response, and answers unhandled exceptions with a problem."""

import re
import uuid
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import problems

HEADER = "X-Request-Id"
_VALID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestId:
    """ASGI middleware: uses the caller's id if it is valid, else a new one.

    An unhandled exception becomes a 500 problem, and `on_error` receives it.
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
        request_id = offered if _VALID.fullmatch(offered) else uuid.uuid4().hex
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001 - the edge: callers get only problems
            self.on_error(error)
            if not started:
                await problems.respond(problems.of_status(500))(scope, receive, send_with_id)
