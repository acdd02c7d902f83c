"""`watchkeeper ask`, at a terminal and in a script."""

import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from app.ask import EXIT_CODES
from app.runs.model import Outcome
from tests.command import WATCHKEEPER, Ended, environment, run, serving

SHOP = """
from langchain_core.tools import tool
from langgraph.types import interrupt

from tests import fakes

@tool
def ask_human() -> str:
    "Ask a human."
    return interrupt("may I?")

def agent(script, tools, **options):
    return fakes.build("create_agent", fakes.ScriptedModel(script=script, **options), tools)

tools = fakes.ToolDesk(seconds=60).tools()
orders = agent(fakes.calls_then_answers("look"), tools)
endless = agent(fakes.never_stops("look"), tools)
slow = agent(fakes.calls_then_answers("nap"), tools)
broken = agent(fakes.calls_then_answers("look"), tools, error=RuntimeError("no"))
human = agent(fakes.calls_then_answers("ask_human"), [ask_human])
"""
AGENTS = [f"wk_shop:{name}" for name in ("orders", "endless", "slow", "broken", "human")]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service of the real command, with agents that end in each way."""
    here = tmp_path_factory.mktemp("shop")
    (here / "wk_shop.py").write_text(SHOP)
    variables = {"WATCHKEEPER_MAX_ITERATIONS": "3", "WATCHKEEPER_MAX_RUNNING_RUNS": "1"}
    variables["WATCHKEEPER_MAX_QUEUED_RUNS"] = "0"
    with serving(here, *AGENTS, variables=variables) as service:
        yield service.url


def ask(url: str, *arguments: str) -> Ended:
    """Ask, in a process of its own."""
    return run("ask", "where is it?", "--url", url, *arguments)


@contextmanager
def asking(url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A question to the slow agent, whose tool works by now; its slot is free afterwards."""
    command = [str(WATCHKEEPER), "ask", "q", "--url", url, "--agent", "slow", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stderr=pipe, text=True, env=environment()) as process:
        try:
            assert process.stderr is not None
            assert "iteration 1" in process.stderr.readline()
            yield process
        finally:
            process.kill()
            deadline = time.monotonic() + 30
            while running(url):
                assert time.monotonic() < deadline
                time.sleep(0.02)


def running(url: str) -> list[dict[str, Any]]:
    """The executing runs."""
    answer = httpx.get(f"{url}/runs", params={"state": "running"}, timeout=30)
    found: list[dict[str, Any]] = answer.json()["runs"]
    return found


def terminal(*arguments: str) -> tuple[int, str]:
    """The exit code, and all that a terminal was sent."""
    ours, theirs = pty.openpty()
    variables = {name: value for name, value in environment().items() if name != "NO_COLOR"}
    with subprocess.Popen(
        [str(WATCHKEEPER), "ask", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=variables,
    ) as process:
        os.close(theirs)
        output = b""
        while part := _read(ours):
            output += part
        os.close(ours)
        return process.wait(60), output.decode().replace("\r\n", "\n")


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how Linux says that the other end is closed
        return b""


@contextmanager
def scripted(*parts: bytes, kind: str = "text/event-stream", status: int = 200) -> Iterator[str]:
    """A service that answers with these bytes, whatever it is asked, and closes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-type", kind)
            self.end_headers()
            for part in parts:
                self.wfile.write(part)
                self.wfile.flush()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def events(*sent: tuple[str, dict[str, Any]]) -> bytes:
    """Events as the service sends them."""
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in sent).encode()


def tokens(*texts: str, agent: str | None = None) -> Sequence[tuple[str, dict[str, Any]]]:
    """Text of a model."""
    return [("token", {"text": text, "iteration": 1, "agent": agent}) for text in texts]


RUN = ("run", {"run_id": "r", "deadline_s": 30.0})
END = ("end", {"answer": "all right", "outcome": "completed", "timings": {"llm_s": 1.5}})


def test_pipe_gets_the_answer_only(url: str) -> None:
    """A pipe gets the answer and nothing else; the steps and the times are on stderr."""
    completed = ask(url)
    assert (completed.code, completed.out) == (0, "done: where is it?: order 1 shipped\n")
    assert "\x1b" not in completed.err
    iteration, begun, ended, last, counts = completed.err.splitlines()
    assert (iteration, begun) == ("iteration 1: 1 tool call", "  → look")
    assert re.fullmatch(r"  ← look: completed, \d+ ms", ended)
    assert re.match(r"completed after \d+ ms: queue \d+ ms, llm ", last)
    assert re.match(r"1 iteration, 1 tool call, \d+ tokens, run [\w-]{36}$", counts)


@pytest.mark.parametrize(
    ("agent", "code", "outcome"),
    [("orders", 0, "completed"), ("endless", 3, "iteration_limit"), ("slow", 4, "timeout"),
     ("broken", 5, "failed"), ("human", 5, "interrupted")],
)  # fmt: skip
def test_exit_code_is_the_outcome(url: str, agent: str, code: int, outcome: str) -> None:
    """The exit code gives the outcome, and `--json` prints the end of the run and nothing else."""
    completed = ask(url, "--agent", agent, "--timeout", "2" if agent == "slow" else "60", "--json")
    end = json.loads(completed.out)
    assert (completed.code, end["outcome"]) == (code, outcome)
    assert outcome in completed.err
    assert ("answer" in end) != ("watchkeeper: " in completed.err)


def test_timeout_names_the_phase(url: str) -> None:
    """After a timeout the last lines give the reason and the phase of the run."""
    completed = ask(url, "--agent", "slow", "--timeout", "3")
    assert (completed.code, completed.out) == (4, "")
    assert "watchkeeper: The run did not end within its timeout.\n" in completed.err
    assert "timeout in tool:nap after " in completed.err


def test_cancelled_run_exits_with_6(url: str) -> None:
    """A cancelled run ends the command with 6."""
    with asking(url) as process:
        [row] = running(url)
        httpx.delete(f"{url}/runs/{row['run_id']}", timeout=30).raise_for_status()
        assert process.wait(60) == 6


def test_full_service_exits_with_7(url: str) -> None:
    """A full service ends the command with 7, and --json prints the problem."""
    with asking(url):
        completed = ask(url, "--json")
    assert completed.code == 7
    assert json.loads(completed.out)["code"] == "overloaded"


def test_ctrl_c_exits_with_130_and_ends_the_run(url: str) -> None:
    """Ctrl-C ends the command with 130, and the run with it."""
    with asking(url) as process:
        [row] = running(url)
        process.send_signal(2)
        assert process.wait(60) == 130
    run = httpx.get(f"{url}/runs/{row['run_id']}", timeout=30).json()
    assert run["outcome"] == "disconnected"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--agent", "nope"), "There is nothing of that name here."),
        (("--agent", "../x?"), "There is nothing"),
        (("--timeout", "9999"), "written: timeout must be at most 300 seconds."),
        (("--url", "localhost:8000"), "localhost:8000 is no address"),
        (("--url", "http://:x"), "http://:x is no address"),
    ],
)
def test_invalid_question_exits_with_2(url: str, arguments: Sequence[str], sentence: str) -> None:
    """A fault of the question is one sentence, with exit code 2."""
    completed = ask(url, *arguments)
    assert (completed.code, completed.out) == (2, "")
    assert sentence in completed.sentence()


@pytest.mark.parametrize("arguments", [(), ("q", "--timeout", "0"), ("q", "--timeout", "nan")])
def test_wrong_usage_exits_with_2(arguments: Sequence[str]) -> None:
    """A wrong command prints the usage, with exit code 2."""
    completed = run("ask", *arguments)
    assert (completed.code, completed.err.split()[0]) == (2, "usage:")


def test_unreachable_service_exits_with_1() -> None:
    """Without a listening service the command fails at once, with exit code 1."""
    with socket.socket() as bound:  # so that the port becomes nobody else's meanwhile
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        completed = ask(url)
    assert completed.code == 1
    assert completed.sentence().startswith(f"Cannot connect to {url}: ")


@pytest.mark.parametrize(
    ("parts", "kind", "status", "code", "sentence"),
    [
        (events(RUN), "text/event-stream", 200, 6, "The connection was lost before the run ended"),
        (b"<html>", "text/html", 200, 1, "is no Watchkeeper"),
        (b"<html>", "text/html", 502, 5, "The answer was HTTP 502, without a reason."),
        (b"<html>", "text/html", 503, 7, "HTTP 503"),
        (b"[]", "application/json", 401, 2, "HTTP 401"),
    ],
)
def test_incomplete_run_is_an_error(
    parts: bytes, kind: str, status: int, code: int, sentence: str
) -> None:
    """An incomplete run is never taken for a whole one."""
    with scripted(parts, kind=kind, status=status) as url:
        completed = ask(url)
    assert (completed.code, completed.out) == (code, "")
    assert sentence in completed.sentence()


def test_hanging_service_times_out() -> None:
    """The command waits no longer than its timeout for a silent service."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        completed = ask(url, "--timeout", "0.1")
    assert completed.code == 4
    assert completed.sentence() == "The service did not end the run in time."


def test_terminal_shows_steps_and_answer(url: str) -> None:
    """On a terminal the steps are dim, and the answer stands on lines of its own."""
    code, output = terminal("q", "--url", url)
    assert code == 0
    assert "\x1b[2m  → look\x1b[0m\n" in output
    assert "\ndone: q: order 1 shipped\n\x1b[2mcompleted after " in output


@pytest.mark.parametrize(
    ("end", "detail"),
    [({"limit": "model_calls", "outcome": "iteration_limit"}, "(limit of model calls)"),
     ({"refused": True}, "(refused)"), ({"limit": "iterations"}, ""), ({}, "")],
)  # fmt: skip
def test_detail_beside_the_outcome(end: dict[str, Any], detail: str) -> None:
    """A refusal, and a ceiling of model calls, are printed beside the outcome."""
    with scripted(events(RUN, *tokens("all right"), ("end", {**END[1], **end}))) as url:
        completed = ask(url)
    outcome = end.get("outcome", "completed")
    assert f"{outcome} {detail} after ".replace("  ", " ") in completed.err


def test_retracted_text_is_replaced() -> None:
    """On a terminal the new text follows a retracted one, on its own line."""
    sent = [RUN, *tokens("all wr"), ("retract", {"iteration": 1}), *tokens("all ", "right"), END]
    with scripted(events(*sent)) as url:
        _, output = terminal("q", "--url", url)
        piped = ask(url)
    anew = (
        "all wr\n\x1b[2mthe agent retracted the text so far; it starts again:\x1b[0m\nall right\n"
    )
    assert output.startswith(anew)
    assert piped.out == "all right\n"


def test_control_characters_are_removed() -> None:
    """Text of a model cannot move the cursor, and a sub-agent's text is not shown."""
    sent = [RUN, *tokens("all\x1b[2J ", "r\x9big\rht"), *tokens("psst", agent="helper"), END]
    with scripted(events(*sent)) as url:
        _, output = terminal("q", "--url", url)
    assert output.startswith("all[2J right\n")


def test_events_are_joined_from_pieces() -> None:
    """Events are whole however the network cuts them, and comments are ignored."""
    whole = b": ping\r\n\r\n" + events(RUN, END).replace(b"all right", "größer".encode())
    with scripted(*(bytes([byte]) for byte in whole)) as url:
        completed = ask(url)
    assert (completed.code, completed.out) == (0, "größer\n")


def test_help_names_every_exit_code() -> None:
    """The help names every exit code with its outcome."""
    completed = run("ask", "--help").out
    assert set(EXIT_CODES) == set(Outcome)
    for outcome, code in EXIT_CODES.items():
        assert re.search(rf"^ +{code}  .*{outcome}", completed, re.M), outcome


@pytest.mark.parametrize("arguments", [["ask", "q", "--url", "http://127.0.0.1:1"], ["--help"]])
def test_asking_imports_nothing_of_the_service(arguments: list[str]) -> None:
    """Asking or printing the help imports nothing of the service."""
    code = (
        "import sys\nfrom app.__main__ import main\n"
        f"try: main({arguments})\nexcept SystemExit: pass\n"
        "print(*(m for m in sys.modules if '.' not in m or m.startswith('app.')))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    loaded = set(ended.stdout.splitlines()[-1].split())
    assert not loaded & {"langchain", "langchain_core", "fastapi", "pydantic", "structlog"}
    ours = {name for name in loaded if name.startswith("app.")}
    assert not any(name.startswith(("app.api", "app.agents", "app.main")) for name in ours)
