"""SIGTERM under load, as an orchestrator sends it: no answer is cut, nothing delays the exit.

A process of its own is asked, signalled and watched once; the tests look at what was seen.
"""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.command import Serving, serving

NOTICE_S, DRAIN_S = 2.5, 3.0
# What an exit may take beyond the drain on a machine that does other things too; far less than
# what would hold it.
EXTRA_S = 20.0

AGENTS = """
import time
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode
from tests import fakes


def looks_then(name, seconds):
    def script(messages):
        done = len(fakes.results_since_question(messages))
        return fakes.asks(("look", name)[done], {}, number=done) if done < 2 else AIMessage("done")

    model = fakes.ScriptedModel(script=script)
    return fakes.build("create_agent", model, fakes.ToolDesk(seconds).tools())


quick = looks_then("look", 0)
medium = looks_then("nap", 2.0)
long = looks_then("nap", 90)
stubborn = looks_then("stubborn", 90)
hung = looks_then("block", 90)


@tool
def hang() -> str:
    "Hang."
    time.sleep(90)
    return "never"


def node(state):
    return ToolNode([hang]).invoke({"messages": [fakes.asks("hang", {})]})


def graph_of(function):
    graph = StateGraph(fakes.GraphState)
    graph.add_node("node", function)
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    return graph.compile()


inner = graph_of(node)
"""
NAMES = ("quick", "medium", "long", "stubborn", "hung", "inner")
SPECS = [f"wk_desk:{name}" for name in NAMES]


@dataclass
class Asked:
    """A service under load: its process, a client, and requests that are on their way."""

    service: Serving
    client: httpx.Client
    pool: ThreadPoolExecutor

    def ask(self, agent: str, **body: Any) -> "Future[httpx.Response]":
        """Ask in the background, on a connection of its own."""
        json = {"question": "q", "timeout": 50, **body}
        return self.pool.submit(
            httpx.post, f"{self.service.url}/agents/{agent}", json=json, timeout=60
        )

    def wait_for(self, *phases: str) -> None:
        """Wait until runs are in these phases."""
        end = time.monotonic() + 60
        while True:
            runs = self.client.get("/runs?state=running").json()["runs"]
            if set(phases) <= {run["phase"] for run in runs}:
                return
            assert time.monotonic() < end, runs
            time.sleep(0.02)

    def wait_until_leaving(self) -> None:
        """Wait until the service has taken note of a signal."""
        end = time.monotonic() + 60
        while self.client.get("/health/ready").status_code == 200:
            assert time.monotonic() < end
            time.sleep(0.02)


@contextmanager
def asked(here: Path, notice_s: float, drain_s: float, *specs: str) -> Iterator[Asked]:
    """Serve the agents of the desk with this notice and drain."""
    (here / "wk_desk.py").write_text(AGENTS)
    settings = {"WATCHKEEPER_DRAIN_NOTICE_S": str(notice_s), "WATCHKEEPER_DRAIN_S": str(drain_s)}
    with (
        serving(here, *specs, variables=settings) as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        try:
            yield Asked(service, client, pool)
        finally:
            if service.process.poll() is None:
                service.process.kill()  # requests that are on their way end with it


@dataclass
class Seen:
    """What was seen of one drain."""

    ready: list[httpx.Response] = field(default_factory=list)
    live: list[httpx.Response] = field(default_factory=list)
    during_notice: list[httpx.Response] = field(default_factory=list)
    after_notice: list[httpx.Response] = field(default_factory=list)
    medium: list[httpx.Response] = field(default_factory=list)
    long: httpx.Response | None = None
    code: int = -1
    took_s: float = 0.0
    output: str = ""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """One SIGTERM with runs in flight, looked at from outside."""
    seen = Seen()
    with asked(tmp_path_factory.mktemp("drain"), NOTICE_S, DRAIN_S, *SPECS[:3]) as service:
        seen.ready.append(service.client.get("/health/ready"))
        medium = [service.ask("medium") for _ in range(3)]
        long = service.ask("long", include_steps=True)
        service.wait_for("tool:nap")
        began = time.monotonic()
        service.service.signal()
        service.wait_until_leaving()
        for _ in range(3):
            seen.ready.append(service.client.get("/health/ready"))
            seen.live.append(service.client.get("/health/live"))
            seen.during_notice.append(service.ask("quick").result())
        while (late := service.ask("quick").result()).status_code == 200:
            assert time.monotonic() < began + NOTICE_S + EXTRA_S
            time.sleep(0.1)
        seen.after_notice.append(late)
        seen.medium = [answer.result() for answer in medium]
        seen.long = long.result()
        seen.code = service.service.wait(60)
        seen.took_s = time.monotonic() - began
        seen.output = service.service.out.read_text() + service.service.err.read_text()
    return seen


def test_readiness_turns_red_at_once(seen: Seen) -> None:
    """Readiness is green before the signal and red right after it, with the reason."""
    before, *after = seen.ready
    assert before.status_code == 200
    assert after
    assert {response.status_code for response in after} == {503}
    assert after[0].json()["checks"]["draining"]["state"] == "failed"


def test_liveness_stays_green(seen: Seen) -> None:
    """A draining service is alive."""
    assert {response.status_code for response in seen.live} == {200}


def test_runs_are_accepted_during_the_notice(seen: Seen) -> None:
    """Until callers can have noticed, new runs are served."""
    assert {response.status_code for response in seen.during_notice} == {200}


def test_runs_are_refused_after_the_notice(seen: Seen) -> None:
    """After the notice a new run is refused, with advice to go elsewhere."""
    (response,) = seen.after_notice
    problem = response.json()
    assert (response.status_code, problem["code"], problem["outcome"]) == (
        503,
        "draining",
        "rejected",
    )
    assert problem["retryable"] is True
    assert int(response.headers["Retry-After"]) >= 1


def test_runs_in_flight_finish(seen: Seen) -> None:
    """A run that ends within the drain is answered as usual."""
    assert [response.status_code for response in seen.medium] == [200, 200, 200]
    assert {response.json()["answer"] for response in seen.medium} == {"done"}


def test_long_run_is_cut(seen: Seen) -> None:
    """A run that outlasts the drain gets 503 draining with its progress."""
    assert seen.long is not None
    problem = seen.long.json()
    assert (seen.long.status_code, problem["code"]) == (503, "draining")
    assert (problem["phase"], problem["retryable"]) == ("tool:nap", True)
    assert problem["steps"][0]["tool"] == "look"
    assert problem["tool_calls"] == 2
    assert "Retry-After" in seen.long.headers


def test_exit_code_is_0(seen: Seen) -> None:
    """The process exits with code 0 within its drain and a margin."""
    assert seen.code == 0
    assert NOTICE_S + DRAIN_S <= seen.took_s < NOTICE_S + DRAIN_S + EXTRA_S
    assert "Traceback" not in seen.output
    assert '"service_stopped"' in seen.output


@pytest.mark.parametrize(
    "left_behind",
    [{"stubborn": "tool:stubborn", "hung": "tool:block"}, {"inner": "tool:hang"}],
    ids=["a task and a thread of ours", "a thread of a library"],
)
def test_work_that_will_not_stop_does_not_delay_the_exit(
    left_behind: dict[str, str], tmp_path: Path
) -> None:
    """The exit leaves behind a task that swallows its cancellation and a hung thread."""
    with asked(tmp_path, 0.1, 0.2, *SPECS) as service:
        answers = [service.ask(agent) for agent in left_behind]
        service.wait_for(*left_behind.values())
        began = time.monotonic()
        service.service.signal()
        assert {answer.result(60).json()["code"] for answer in answers} == {"draining"}
        assert service.service.wait(60) == 0
        assert time.monotonic() - began < 0.3 + EXTRA_S


def test_second_signal_exits_at_once(tmp_path: Path) -> None:
    """A second signal ends the process at once."""
    with asked(tmp_path, 30, 30, *SPECS[:3]) as service:
        service.ask("long")
        service.wait_for("tool:nap")
        service.service.signal()
        service.wait_until_leaving()
        assert service.service.process.poll() is None
        began = time.monotonic()
        service.service.signal()
        assert service.service.wait(60) == 128 + signal.SIGTERM
        assert time.monotonic() - began < EXTRA_S


def test_idle_service_exits_after_its_notice(tmp_path: Path) -> None:
    """With nothing in flight, and a connection kept alive, the exit takes the notice only."""
    with asked(tmp_path, 0.2, 30, *SPECS[:1]) as service:
        assert service.client.get("/health").status_code == 200
        began = time.monotonic()
        service.service.signal(signal.SIGINT)
        assert service.service.wait(60) == 0
        # Waiting for connections to close would take five seconds.
        assert 0.2 <= time.monotonic() - began < 0.2 + 4.5
