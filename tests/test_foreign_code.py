"""Processes that serve foreign code: factories that open resources, code that exits."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.command import WATCHKEEPER, Serving, environment, run, serving

SHOP = """
import asyncio, sys
from contextlib import asynccontextmanager, contextmanager
from langchain_core.messages import AIMessage
from tests import exits, faults, fakes


def note(word):
    with open("notes", "a") as notes:
        notes.write(word + "\\n")


@asynccontextmanager
async def opened():
    note("open opened")
    yield exits.answers()
    await asyncio.sleep(0)
    note("close opened")


@contextmanager
def opened_later():
    note("open opened_later")
    yield exits.answers()
    note("close opened_later")


async def dies():
    await asyncio.timeout(0.2).__aenter__()
    return exits.answers()


quits = exits.places(lambda: SystemExit(3))["node"]
interrupts = exits.places(KeyboardInterrupt)["gather"]


async def later(state):
    asyncio.get_running_loop().call_soon(sys.exit, 3)
    return {"messages": [AIMessage("done")]}

leaves_later = faults.graph_of(later)


async def stop(state):
    asyncio.get_running_loop().stop()
    return {"messages": [AIMessage("done")]}

stops = faults.graph_of(stop)


async def never():
    note("wait")
    await asyncio.sleep(1000)

number = 42
"""
ALL = ("opened", "opened_later", "dies", "quits", "interrupts")
LONG_S = 30.0
UVICORN = (sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app")
RUNNING = r"running on (http://127\.0\.0\.1:\d+)"


def specs(*names: str) -> list[str]:
    return [f"{name.replace('_', '-')}=wk_shop:{name}" for name in names]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A user's working directory."""
    (tmp_path / "wk_shop.py").write_text(SHOP)
    return tmp_path


@contextmanager
def served(here: Path, how: str, *names: str) -> Iterator[Serving]:
    """Serve agents of the shop by one of the three commands."""
    if how == "uvicorn":
        variables = {"WATCHKEEPER_SERVE": ",".join(specs(*names))}
        with serving(here, command=UVICORN, variables=variables, announcement=RUNNING) as service:
            yield service
        return
    with serving(here, *specs(*names), command=(str(WATCHKEEPER), how)) as service:
        yield service


def ask(service: Serving, agent: str) -> Any:
    payload = {"question": "q"}
    return httpx.post(f"{service.url}/agents/{agent}", json=payload, timeout=LONG_S).json()


def logged(service: Serving, event: str) -> list[dict[str, Any]]:
    """The lines of an event, once there is one."""
    end = time.monotonic() + LONG_S
    while time.monotonic() < end:
        written = service.out.read_text().splitlines(keepends=True)
        whole = [json.loads(line) for line in written if line[0] == "{" and line.endswith("}\n")]
        if found := [line for line in whole if line["event"] == event]:
            return found
        time.sleep(0.05)
    return []


def notes(here: Path) -> list[str]:
    return (here / "notes").read_text().splitlines()


IN_ORDER = ["open opened", "open opened_later", "close opened_later", "close opened"]


@pytest.mark.parametrize("how", ["serve", "uvicorn"])
def test_service_survives_factories_and_exits(here: Path, how: str) -> None:
    """Factories may lose their resources and agents may exit: the service goes on."""
    with served(here, how, *ALL) as service:
        (line,) = logged(service, "factory_ended")
        assert (line["level"], line["agent"]) == ("error", "dies")
        assert line["error_type"] == "CancelledError"
        for agent in ("quits", "interrupts"):
            assert ask(service, agent)["code"] == "agent_failed"
            assert ask(service, "dies")["answer"] == "fine"
        assert notes(here) == IN_ORDER[:2]
        service.signal()
        assert service.wait(60) in ((0,) if how == "serve" else (0, -signal.SIGTERM))
        assert notes(here) == IN_ORDER
        assert "Traceback" not in service.out.read_text() + service.err.read_text()


def test_worker_survives_factories_and_exits(here: Path) -> None:
    """A worker opens and closes agents in the same way, and a run that exits ends there once."""
    store = {"WATCHKEEPER_STORE_URL": f"sqlite:///{here / 'store.sqlite'}"}
    apart = here / "asks"
    apart.mkdir()
    (apart / "wk_shop.py").write_text(SHOP)
    asks, works = specs("quits", "opened"), specs(*ALL)
    with serving(apart, *asks, "--no-background", variables=store) as service:
        url = f"{service.url}/agents/quits/async"
        address = httpx.post(url, json={"question": "q"}, timeout=LONG_S).headers["location"]
        command = (str(WATCHKEEPER), "worker")
        with serving(here, *works, command=command, variables=store) as worker:
            waited = {"params": {"wait": LONG_S}, "timeout": LONG_S + 5}
            stored = httpx.get(f"{service.url}{address}", **waited).json()  # type: ignore[arg-type]
            assert (stored["status"], stored["attempts"]) == ("failed", 1)
            assert stored["error"]["code"] == "agent_failed"
            assert logged(worker, "factory_ended")[0]["agent"] == "dies"
            worker.signal()
            assert worker.wait(60) == 0
    assert notes(here) == IN_ORDER


def test_exit_in_a_timer_is_logged(here: Path) -> None:
    """A timer that exits after its run is a line in the log, and so is an end of the loop."""
    with served(here, "serve", "leaves_later", "stops") as service:
        for _ in range(3):
            assert ask(service, "leaves-later")["answer"] == "done"
        assert logged(service, "unhandled_error")[0]["error_type"] == "SystemExit"
        for _ in range(3):
            assert ask(service, "stops")["answer"] == "done"
        service.signal()
        assert service.wait(60) == 0


@pytest.mark.parametrize("command", [("agents",), ("serve", "--check"), ("worker", "--check")])
def test_listing_agents_closes_them(here: Path, command: tuple[str, ...]) -> None:
    """Agents that are only listed are opened and closed as well."""
    ended = run(*command, *specs("opened", "opened_later"), cwd=here)
    assert (ended.code, ended.err) == (0, "")
    assert notes(here) == IN_ORDER


@pytest.mark.parametrize("because", ["agent", "port", "store"])
def test_failed_start_closes_its_resources(here: Path, because: str) -> None:
    """A start that fails closes its resources."""
    names = ["opened", "opened_later", *(["number"] if because == "agent" else [])]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = "sqlite:///wk_shop.py/store.sqlite"
        variables = {"WATCHKEEPER_STORE_URL": nobody} if because == "store" else {}
        port = taken.getsockname()[1] if because == "port" else 0
        ended = run("serve", "--port", str(port), *specs(*names), cwd=here, variables=variables)
    assert ended.code == (2 if because == "agent" else 1)
    assert len([line for line in ended.err.splitlines() if line[:12] == "watchkeeper:"]) == 1
    assert notes(here) == IN_ORDER


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_waiting_start(here: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end a start that waits for a factory."""
    process = subprocess.Popen(
        [str(WATCHKEEPER), "serve", "--port", "0", *specs("never")],
        cwd=here,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + LONG_S
    while not (here / "notes").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(LONG_S) == -number


def test_slow_factory_stops_the_start(here: Path) -> None:
    """A factory that makes no agent in time stops the start, naming the setting."""
    ended = run("agents", *specs("never"), cwd=here, variables={"WATCHKEEPER_FACTORY_S": "0.2"})
    assert ended.code == 2
    assert ended.sentence() == (
        "The factory wk_shop:never failed: it returned no agent within 0.2 s "
        "(WATCHKEEPER_FACTORY_S)."
    )
