"""Asks an agent as fast as it answers, over few or many connections, and checks every answer.

`python -m bench.load PORT CLIENTS REQUESTS` is a process of its own, so that its CPU
does not count as the server's. It imports no library but uvloop, and prints its observations as
JSON.
"""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass

import uvloop

# Tool calls in each run, one a turn. A server reads the same variable.
TURNS = int(os.environ.get("TURNS", "3"))
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)

Ask = Callable[[str], Awaitable[str]]
Connect = Callable[[], AbstractAsyncContextManager[Ask]]


class WrongAnswer(Exception):
    """An answer to another question: the measurement does not count."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The observations of the clients."""

    wall_s: float
    latencies_s: list[float]


def expected(question: str, last_result: str = f"order {TURNS} shipped") -> str:
    """Return the only right answer to a question."""
    return f"{question}: {last_result}"


async def drive(connect: Connect, clients: int, requests: int) -> Seen:
    """Ask this many questions in all, one after the other on each connection.

    Raises WrongAnswer (in an ExceptionGroup) at the first wrong answer.
    """
    questions = (f"Where is my order, asks caller {number}?" for number in range(requests))
    latencies_s: list[float] = []
    connected = asyncio.Barrier(clients + 1)

    async def client() -> None:
        async with connect() as ask:
            await connected.wait()
            for question in questions:
                began = time.perf_counter()
                answer = await ask(question)
                latencies_s.append(time.perf_counter() - began)
                if answer != expected(question):
                    raise WrongAnswer(f"{answer!r}, wanted {expected(question)!r}")

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
        await connected.wait()
        began = time.perf_counter()
    return Seen(time.perf_counter() - began, latencies_s)


def over_http(port: int) -> Connect:
    """Open connections to `POST /agent` on loopback that stay open between requests."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[Ask]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def ask(question: str) -> str:
            body = json.dumps({"question": question}).encode()
            writer.write(
                b"POST /agent HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if length is None:
                raise WrongAnswer(f"no length: {head!r}")
            answer = await reader.readexactly(int(length[1]))
            if not head.startswith(b"HTTP/1.1 200 "):
                raise WrongAnswer(f"{head.splitlines()[0]!r} {answer!r}")
            return str(json.loads(answer)["answer"])

        try:
            yield ask
        finally:
            writer.close()

    return connect


def main() -> None:
    """Ask, then print the observations as JSON."""
    port, clients, requests = map(int, sys.argv[1:4])
    print(json.dumps(asdict(uvloop.run(drive(over_http(port), clients, requests)))))


if __name__ == "__main__":
    main()
