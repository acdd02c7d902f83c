"""Asks a running service a question from a terminal, and shows the run as it goes.

It only speaks HTTP, so it imports nothing of the service and starts quickly.
"""

import asyncio
import io
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO
from urllib.parse import quote

import httpx2

from app.runs.model import Limit, Outcome

_CONNECT_S = 5.0
# The end of a run may arrive this long after its deadline.
_MARGIN_S = 5.0
# The longest wait for the start of a run without a timeout: the service's default maximum.
_DEFAULT_TIMEOUT_S = 300.0
# The event `end` has the whole answer, with up to six bytes for each character.
_MOST_EVENT_BYTES = 64_000_000

UNREACHABLE, REFUSED, INTERRUPTED = 1, 2, 130
EXIT_CODES = {
    Outcome.COMPLETED: 0,
    Outcome.ITERATION_LIMIT: 3,
    Outcome.TIMEOUT: 4,
    Outcome.FAILED: 5,
    Outcome.INTERRUPTED: 5,
    Outcome.CANCELLED: 6,
    Outcome.DISCONNECTED: 6,
    Outcome.REJECTED: 7,
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question, the service and the agent to ask, and the timeout."""

    text: str
    url: str
    agent: str | None = None
    timeout_s: float | None = None

    @property
    def address(self) -> str:
        """The URL of the request."""
        agent = "agent" if self.agent is None else f"agents/{quote(self.agent, safe='')}"
        return f"{self.url.rstrip('/')}/{agent}/stream"

    @property
    def body(self) -> dict[str, Any]:
        """The body of the request. Without a timeout, the agent's default applies."""
        timeout = {} if self.timeout_s is None else {"timeout": self.timeout_s}
        return {"question": self.text, **timeout}


class Screen:
    """Writes the answer to one stream, and progress to the other. Both may be one terminal.

    Only a terminal gets text as it comes. A pipe gets the final answer, since its reader cannot
    retract text.
    """

    def __init__(self, out: TextIO, err: TextIO, as_json: bool = False) -> None:
        self._out, self._err, self._as_json = out, err, as_json
        self._is_live = out.isatty() and not as_json
        self._is_dim = err.isatty() and not os.environ.get("NO_COLOR")
        self._is_mid_line = False

    def show(self, event: str, data: Mapping[str, Any]) -> None:
        """Show one event of the run."""
        match event:
            case "token" if data["agent"] is None:  # a sub-agent's text is not the answer
                self._write_live(data["text"])
            case "tool_start":
                self.note(f"  → {data['tool']}")
            case "tool_end":
                self.note(f"  ← {data['tool']}: {data['outcome']}, {_time(data['duration_s'])}")
            case "iteration":
                calls = _count(data["tool_calls"], "tool call")
                self.note(f"iteration {data['iteration']}: {calls}")
            case "retract":
                self.note("the agent retracted the text so far; it starts again:")
            case _:
                pass

    def end(self, end: Mapping[str, Any]) -> None:
        """Show how the run ended, and where the time went."""
        if self._as_json:
            print(json.dumps(end), file=self._out, flush=True)
        elif not self._is_live and end.get("answer"):
            print(end["answer"], file=self._out, flush=True)
        if "answer" not in end:
            self.fail(_why(end))
        if "outcome" not in end or "timings" not in end:
            return
        for line in _summary(end):
            self.note(line)

    def note(self, line: str) -> None:
        """Write one line of progress."""
        self._break()
        line = _printable(line)
        print(f"\x1b[2m{line}\x1b[0m" if self._is_dim else line, file=self._err, flush=True)

    def fail(self, sentence: str) -> None:
        """Write one sentence about an error."""
        self._break()
        print(f"watchkeeper: {_printable(sentence)}", file=self._err, flush=True)

    def _write_live(self, text: str) -> None:
        if self._is_live and text:
            self._out.write(_printable(text))
            self._out.flush()
            self._is_mid_line = not text.endswith("\n")

    def _break(self) -> None:
        if self._is_mid_line:
            print(file=self._out, flush=True)
            self._is_mid_line = False


def ask(question: Question, as_json: bool = False) -> int:
    """Ask, show the run, and return the exit code: that of the outcome, or one of ours."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an answer may have what a terminal cannot encode
            stream.reconfigure(errors="replace")
    screen = Screen(sys.stdout, sys.stderr, as_json)
    try:
        return asyncio.run(_bounded(question, screen))
    except KeyboardInterrupt:
        screen.fail("Left; the service cancels the run.")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone. At its exit Python would try once more to write, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED


async def _bounded(question: Question, screen: Screen) -> int:
    limit_s = _MARGIN_S + (_DEFAULT_TIMEOUT_S if question.timeout_s is None else question.timeout_s)
    try:
        async with asyncio.timeout(limit_s) as limit:
            return await _ask(question, screen, limit)
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol):
        screen.fail(f"{question.url} is no address; write it as http://127.0.0.1:8000.")
        return REFUSED
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as unreachable:
        screen.fail(f"Cannot connect to {question.url}: {_reason(unreachable)}.")
        return UNREACHABLE
    except (TimeoutError, httpx2.TimeoutException):
        screen.fail("The service did not end the run in time.")
        return EXIT_CODES[Outcome.TIMEOUT]
    except httpx2.SSEError:
        screen.fail(f"The server at {question.url} is no Watchkeeper.")
        return UNREACHABLE
    except httpx2.TransportError as lost:
        screen.fail(f"The connection was lost before the run ended: {_reason(lost)}.")
        return EXIT_CODES[Outcome.DISCONNECTED]


async def _ask(question: Question, screen: Screen, limit: asyncio.Timeout) -> int:
    # Comments keep a stream open, so reads have no timeout: `limit` bounds the whole stream.
    timeout = httpx2.Timeout(None, connect=_CONNECT_S)
    async with (
        httpx2.AsyncClient(timeout=timeout) as client,
        client.stream("POST", question.address, json=question.body) as response,
    ):
        if not response.is_success:
            return _refused(response.status_code, await response.aread(), screen)
        async for event in httpx2.EventSource(response, _MOST_EVENT_BYTES):
            data = json.loads(event.data)
            if event.event == "run":
                now = asyncio.get_running_loop().time()
                limit.reschedule(now + data["deadline_s"] + _MARGIN_S)
            if event.event == "end":
                screen.end(data)
                return _code(data, 200)
            screen.show(event.event, data)
    raise httpx2.ReadError("the server closed it")


def _refused(status: int, body: bytes, screen: Screen) -> int:
    """Show why there is no stream. The body gives the reason if the service wrote it."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"status": status, "detail": f"The answer was HTTP {status}, without a reason."}
    screen.end(problem)
    return _code(problem, status)


def _code(end: Mapping[str, Any], status: int) -> int:
    outcome = end.get("outcome")
    if outcome in EXIT_CODES:
        return EXIT_CODES[Outcome(outcome)]
    if 400 <= status < 500:
        return REFUSED
    return EXIT_CODES[Outcome.REJECTED if status == 503 else Outcome.FAILED]


def _why(problem: Mapping[str, Any]) -> str:
    wrong = "; ".join(f"{e['field']} {e['message']}" for e in problem.get("errors") or ())
    detail = problem.get("detail") or "The service gave no reason."
    return f"{detail.removesuffix('.')}: {wrong}." if wrong else str(detail)


def _summary(end: Mapping[str, Any]) -> tuple[str, str]:
    """Return two lines: the outcome and the timings; the counts and the id of the run."""
    timings = {name.removesuffix("_s"): seconds for name, seconds in end["timings"].items()}
    held = f" in {end['phase']}" if end.get("phase") else ""
    shares = ", ".join(f"{name} {_time(seconds)}" for name, seconds in timings.items())
    counts = [
        _count(end.get("iterations") or 0, "iteration"),
        _count(end.get("tool_calls") or 0, "tool call"),
    ]
    if usage := end.get("usage"):
        counts.append(f"{(usage['input_tokens'] or 0) + (usage['output_tokens'] or 0)} tokens")
    return (
        f"{end['outcome']}{_details(end)}{held} after {_time(sum(timings.values()))}: {shares}",
        ", ".join([*counts, f"run {end.get('run_id')}"]),
    )


def _details(end: Mapping[str, Any]) -> str:
    """Add what the outcome does not say: a limit of model calls, a refusal."""
    details = ["limit of model calls"] if end.get("limit") == Limit.MODEL_CALLS else []
    details += ["refused"] if end.get("refused") else []
    return f" ({', '.join(details)})" if details else ""


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__


def _printable(text: str) -> str:
    """Remove control characters from text: a model must not control the terminal."""
    return "".join(c for c in text if c in "\n\t" or not (c < " " or "\x7f" <= c <= "\x9f"))
