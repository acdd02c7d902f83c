"""A scripted provider on a loopback port: its turns, and the server that sends them.

Each `…_wire` module speaks the HTTP of one provider, so that the provider's real client is what a
test exercises.
"""

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

# The first bytes of an image, as a provider sends one.
IMAGE = "iVBORw0KGgo="
Json = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """One message of a model, and how it ends.

    `reason` is the provider's own word; without one the message ends as whole messages do. A turn
    that is `cut` is streamed without its last event. `blocked` says why the prompt was refused.
    """

    text: str = ""
    calls: Sequence[tuple[str, Json]] = ()
    reason: str | None = None
    refusal: str = ""
    image: str = ""
    audio: str = ""
    thinking: str = ""
    blocked: str = ""
    cut: bool = False
    status: int = 200
    usage: tuple[int, int] = (10, 5)

    @property
    def words(self) -> list[str]:
        """The text in the pieces in which it is streamed."""
        return [part for part in self.text.partition(" ") if part]


class Speaks(Protocol):
    """How one provider puts a turn on the wire; its ids differ by the number of the answer."""

    streams_as: str

    def wants_stream(self, path: str, asked: Json) -> bool: ...

    def whole(self, turn: Turn, number: int) -> Json: ...

    def pieces(self, turn: Turn, number: int) -> Iterable[bytes]: ...

    def failure(self, turn: Turn) -> Json: ...


@dataclass
class Wire:
    """A provider that is up: its address, and what it was asked."""

    url: str
    asked: list[Json] = field(default_factory=list)


@contextmanager
def serving(provider: Speaks, turns: Sequence[Turn]) -> Iterator[Wire]:
    """Serve one turn after the other, and the last one for ever."""
    wire = Wire("")

    class Handler(BaseHTTPRequestHandler):
        # Each connection ends with its answer, so that clients have none left to close.
        protocol_version = "HTTP/1.0"

        def do_POST(self) -> None:
            asked: Json = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            wire.asked.append(asked)
            number = len(wire.asked)
            turn = turns[min(number, len(turns)) - 1]
            if turn.status != 200:
                self._send(turn.status, "application/json", [_json(provider.failure(turn))])
            elif provider.wants_stream(self.path, asked):
                self._send(200, provider.streams_as, provider.pieces(turn, number))
            else:
                self._send(200, "application/json", [_json(provider.whole(turn, number))])

        def _send(self, status: int, content_type: str, parts: Iterable[bytes]) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.end_headers()
            for part in parts:
                self.wfile.write(part)

        def log_message(self, format: str, *args: object) -> None:
            """Not on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # so that closing it waits for them
    wire.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="wire")
    thread.start()
    try:
        yield wire
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def event(data: Json, name: str = "") -> bytes:
    """A server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + _json(data) + b"\n\n"


def _json(data: Json) -> bytes:
    return json.dumps(data).encode()
