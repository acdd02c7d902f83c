"""Reads streams as a browser does, byte by byte, and checks their events."""

import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests import wire
from tests.service import Served

# `make soak` sets it: tests that have a long form take that one.
SOAK = bool(os.environ.get("SOAK"))
Happening = dict[str, Any]
# What the WHATWG takes for the end of a line.
_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True)
class StreamEvent:
    """One event as it came."""

    id: int
    name: str
    data: Happening


def parse(body: bytes) -> list[StreamEvent]:
    """The whole events in what was read; one that was cut is not an event."""
    events, fields = list[StreamEvent](), dict[str, list[str]]()
    *lines, _ = _LINE_END.split(body)
    for line in lines:
        if not line:
            if "data" in fields:
                (number,), (name,) = fields["id"], fields["event"]
                events.append(StreamEvent(int(number), name, json.loads("\n".join(fields["data"]))))
            fields = {}
        elif not line.startswith(b":"):
            field, _, value = line.decode().partition(":")
            fields.setdefault(field, []).append(value.removeprefix(" "))
    return events


async def stream(
    desk: Served, agent: str = "", question: str = "hello", query: str = "", **body: Any
) -> list[StreamEvent]:
    """Ask for a stream and read it to its end; checks what is true of every stream."""
    response = await desk.client.post(path(agent, query), json={"question": question, **body})
    assert response.status_code == 200, response.text
    events = parse(response.content)
    in_order(events)
    return events


async def follow(desk: Served, run_id: str, after: int | None = None) -> list[StreamEvent]:
    """The events of a run, after an id."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    response = await desk.client.get(f"/runs/{run_id}/events", headers=headers)
    assert response.status_code == 200, response.text
    return parse(response.content)


def path(agent: str = "", query: str = "") -> str:
    """Where an agent's stream is."""
    address = f"/agents/{agent}/stream" if agent else "/agent/stream"
    return f"{address}?{query}" if query else address


def post(agent: str = "", query: str = "", **body: Any) -> bytes:
    """The request for a stream, by hand."""
    return wire.ask(path(agent, query), **{"question": "hello", **body})


@contextmanager
def deaf(url: str, request: bytes) -> Iterator[socket.socket]:
    """A reader that asks and never reads."""
    parts = urlsplit(url)
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        reader.connect((parts.hostname, parts.port))
        reader.sendall(request)
        yield reader


def in_order(events: Sequence[StreamEvent]) -> None:
    """`run` is first and alone, `end` last and alone, ids count from 1 without holes."""
    names = names_of(events)
    assert [event.id for event in events] == list(range(1, len(events) + 1)), names
    assert (names[0], names[-1]) == ("run", "end"), names
    assert (names.count("run"), names.count("end")) == (1, 1), names
    assert names.count("error") == (names[-2] == "error"), names


def names_of(events: Sequence[StreamEvent]) -> list[str]:
    """The names of events, in order."""
    return [event.name for event in events]


def of(events: Sequence[StreamEvent], name: str) -> list[Happening]:
    """The data of the events of one name."""
    return [event.data for event in events if event.name == name]


def text_of(events: Sequence[StreamEvent]) -> str:
    """The joined top-level tokens after the last `iteration` or `retract`."""
    text = ""
    for event in events:
        if event.name in ("iteration", "retract"):
            text = ""
        elif event.name == "token" and event.data["agent"] is None:
            text += event.data["text"]
    return text
