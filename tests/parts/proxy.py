"""Stands between a service and its database, and can be silent, slow, or gone."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from typing import Any

from tests.ports import free_port

_PIECE = 65536
_STARTED_S, _CUT_S = 10.0, 5.0


class Way(Enum):
    """What happens to what is sent."""

    OPEN = auto()
    SILENT = auto()  # connections are taken and kept, and nothing passes
    SLOW = auto()  # every piece towards the database waits
    SHUT = auto()  # connections are cut and refused


class Proxy:
    """One port in front of another one; its way can be changed at any time."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.delay_s = 0.1
        self._target = target
        self._way = Way.OPEN
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._connected: set[asyncio.StreamWriter] = set()
        self._taken: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        """Begin to forward."""
        self.port = free_port()
        self._thread.start()
        self.go(Way.OPEN)

    def go(self, way: Way) -> None:
        """Change the mode; after silence, delayed bytes pass."""
        asyncio.run_coroutine_threadsafe(self._go(way), self._loop).result(_STARTED_S)

    def stop(self) -> None:
        """Cut everything."""
        self.go(Way.SHUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_STARTED_S)
        self._loop.close()

    async def _go(self, way: Way) -> None:
        self._way = way
        if way is Way.SILENT:
            self._passing.clear()
        else:
            self._passing.set()
        if way is not Way.SHUT:
            if self._server is None:
                self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port)
            return
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._connected:
            writer.transport.abort()
        if self._taken:
            await asyncio.wait(self._taken, timeout=_CUT_S)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connected.add(writer)
        taken = asyncio.current_task()
        assert taken is not None
        self._taken.add(taken)
        taken.add_done_callback(self._taken.discard)
        with suppress(OSError):
            await self._passing.wait()
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._connected.add(far_writer)
            await asyncio.gather(
                self._pass_on(reader, far_writer, slowly=True), self._pass_on(far_reader, writer)
            )
            self._connected.discard(far_writer)
        writer.transport.abort()
        self._connected.discard(writer)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slowly: bool = False
    ) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE):
                if slowly and self._way is Way.SLOW:
                    await asyncio.sleep(self.delay_s)
                await self._passing.wait()
                writer.write(piece)
                await writer.drain()
        writer.transport.abort()


@contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    """In front of a port on the loopback, until the block is left."""
    between = Proxy(target)
    between.start()
    try:
        yield between
    finally:
        between.stop()
