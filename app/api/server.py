"""The HTTP server: uvicorn, with a shutdown that cuts no request.

uvicorn's own shutdown closes the listener before the application can drain. Here the first signal
starts the drain while connections are still accepted; the listener closes after the drain.
"""

import asyncio
import os
import socket
import struct
import sys
import uuid
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api import connection, problems

# How long open connections may take to close once every run has ended.
_CLOSE_S = 5
# Longer than the idle timeout of clients and load balancers, so that they close first. If the
# server closed first, the next request could meet a closed connection.
_KEEP_ALIVE_S = 65
_BACKLOG = 2048


class CannotListen(Exception):
    """The address is in use or not available; the message names the options to change."""


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises CannotListen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With IPPROTO_TCP, asyncio sets TCP_NODELAY and sends small answers at once.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as refused:
        listener.close()
        why = (refused.strerror or str(refused)).lower()
        raise CannotListen(
            f"Cannot listen on {host}:{port}: {why}; choose another with --host or --port."
        ) from refused
    return listener


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, but its answer to invalid HTTP is a problem like any other."""

    def on_message_begin(self) -> None:
        """Offer the abort: a stream whose reader stalled cannot close its connection otherwise."""
        super().on_message_begin()
        connection.offer_abort(self.scope, self._abort)  # type: ignore[arg-type]

    def _abort(self) -> None:
        """Reset the connection, so that the kernel discards unsent data, too."""
        connected = self.transport.get_extra_info("socket")
        if connected is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer and close; there is no request that the application could answer."""
        body = problems.body(problems.of_status(400, "invalid_http"))
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            f"content-type: {problems.MEDIA_TYPE}\r\n"
            f"content-length: {len(body)}\r\n"
            f"x-request-id: {uuid.uuid4().hex}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class Server(uvicorn.Server):
    """Serves until a signal, drains, then closes. A second signal ends the process at once."""

    def __init__(self, app: FastAPI, drain: Callable[[], Awaitable[None]]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                loop="none",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_CLOSE_S,
            )
        )
        self._drain = drain
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None
        self._signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by Python for SIGTERM and SIGINT."""
        self._signals += 1
        if self._signals > 1:
            sys.stdout.flush()
            os._exit(128 + sig)
        self._loop.call_soon_threadsafe(self._start_drain)

    def _start_drain(self) -> None:
        self._draining = self._loop.create_task(self._drain_then_close(), name="drain")

    async def _drain_then_close(self) -> None:
        try:
            await self._drain()
        finally:
            self.should_exit = True
