"""HTTP by hand, for what a client library would refuse to send or would tidy up; and a problem."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

# A word that tests send, and that no response may contain.
CANARY = "canary-5f1c"


@dataclass(frozen=True)
class Reply:
    """An answer as it came off the socket; header names are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


def request(
    method: str = "POST",
    path: str = "/agent",
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A request as bytes; `headers` are added to, or replace, those of a well-made one."""
    fields = {
        "host": "test",
        "content-type": "application/json",
        "content-length": str(len(body)),
        **(headers or {}),
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items() if v)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def ask(path: str = "/agent", **body: Any) -> bytes:
    """A POST with a JSON body."""
    return request("POST", path, json.dumps(body).encode())


@asynccontextmanager
async def connection(
    url: str,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A socket to a running service; leaving the block closes it at once."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def exchange(url: str, *parts: bytes) -> Reply:
    """Send, then read one answer."""
    async with connection(url) as (reader, writer):
        for part in parts:
            writer.write(part)
        return await read_reply(reader)


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """One answer whose length is declared."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Reply(int(first.split(" ")[1]), headers, body)


def is_problem(reply: httpx.Response | Reply, status: int, code: str) -> dict[str, Any]:
    """The reply is a problem as the contract has it, and does not hold the canary."""
    if isinstance(reply, httpx.Response):
        reply = Reply(reply.status_code, reply.headers, reply.content)
    assert reply.status == status, reply
    body = reply.body
    problem: dict[str, Any] = json.loads(body)
    assert (problem["status"], problem["code"]) == (status, code), problem
    assert reply.headers["content-type"] == "application/problem+json"
    assert problem["type"].endswith(code)
    assert problem["title"]
    assert problem["detail"]
    assert problem["retryable"] is False
    assert reply.headers["x-request-id"]
    assert "x-run-id" not in reply.headers
    assert CANARY not in body.decode()
    assert CANARY not in str(reply.headers)
    return problem
