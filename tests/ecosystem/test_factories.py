"""Factories that hold sessions of MCP: a dead server takes its tools with it, and nothing else."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.command import WATCHKEEPER, Serving, run, serving

SHOP = """
import os, sys
from contextlib import asynccontextmanager
from langchain.agents import create_agent
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools
from tests import fakes

REACHED = {reached}
kept = []


def build(tools):
    model = fakes.ScriptedModel(script=fakes.calls_then_answers("add", {{"a": 1, "b": 2}}))
    return create_agent(model, tools)


def session():
    return MultiServerMCPClient({{"desk": REACHED}}).session("desk")


async def left_open():
    opened = session()
    kept.append(opened)
    return build(await load_mcp_tools(await opened.__aenter__()))


@asynccontextmanager
async def context():
    async with session() as opened:
        yield build(await load_mcp_tools(opened))
    print("closed", file=sys.stderr, flush=True)


async def each_call():
    return build(await MultiServerMCPClient({{"desk": REACHED}}).get_tools())
"""
SERVER = Path(__file__).with_name("tools_server.py")
AGENTS = ("left_open", "context", "each_call")
PATHS = {"streamable-http": "mcp", "sse": "sse"}
LONG_S = 60.0
FACTORY = (sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app")
RUNNING = r"running on (http://127\.0\.0\.1:\d+)"


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def tools(kind: str) -> Iterator[tuple[int, "subprocess.Popen[bytes]"]]:
    """A server of tools, once it takes connections."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, str(SERVER), kind, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + LONG_S
        while True:
            with closing(socket.socket()) as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        yield port, process
    finally:
        process.kill()
        process.wait()


def shop(here: Path, reached: dict[str, Any]) -> list[str]:
    """Write the agents of a user whose tools are reached so; how they are named."""
    (here / "wk_tools.py").write_text(SHOP.format(reached=repr(reached)))
    return [f"{name.replace('_', '-')}=wk_tools:{name}" for name in AGENTS]


@contextmanager
def served(here: Path, how: str, specs: list[str]) -> Iterator[Serving]:
    if how == "uvicorn":
        named = {"WATCHKEEPER_SERVE": ",".join(specs)}
        with serving(here, command=FACTORY, variables=named, announcement=RUNNING) as service:
            yield service
    else:
        with serving(here, *specs, command=(str(WATCHKEEPER), "serve")) as service:
            yield service


def ask(service: Serving, agent: str) -> str:
    """The answer of an agent, which has what its tool gave in it."""
    url = f"{service.url}/agents/{agent.replace('_', '-')}"
    payload = {"question": "q", "timeout": LONG_S - 5}
    response = httpx.post(url, json=payload, timeout=LONG_S)
    assert response.status_code == 200, response.text
    answer: str = response.json()["answer"]
    return answer


def lost(service: Serving) -> set[str]:
    """The agents of whose factories the log says that they lost what they opened."""
    written = service.out.read_text().splitlines(keepends=True)
    lines = [json.loads(line) for line in written if line[0] == "{" and line.endswith("}\n")]
    return {line["agent"] for line in lines if line["event"] == "factory_ended"}


@pytest.mark.parametrize("how", ["serve", "uvicorn"])
@pytest.mark.parametrize("kind", PATHS)
def test_dead_server_fails_its_tools(tmp_path: Path, kind: str, how: str) -> None:
    """If a tool server dies its tools fail, the service answers, and stops in order."""
    with tools(kind) as (port, server):
        url = f"http://127.0.0.1:{port}/{PATHS[kind]}"
        specs = shop(tmp_path, {"transport": kind.replace("-", "_"), "url": url})
        with served(tmp_path, how, specs) as service:
            for agent in AGENTS:
                assert ask(service, agent) == "done: q: 3"
            server.kill()
            server.wait()
            for agent in AGENTS * 2:
                # Long before the deadline, and in the first call after the death too.
                assert ask(service, agent).startswith("done: q: Tool add failed: ")
            if kind == "streamable-http":
                assert lost(service) == {"left-open", "context"}
            service.signal()
            assert service.wait(LONG_S) in ((0,) if how == "serve" else (0, -signal.SIGTERM))
            assert "Traceback" not in service.err.read_text()


def test_dead_child_belongs_to_its_factory(tmp_path: Path) -> None:
    """A server that is our child belongs to its factory, and ends with it."""
    command = {"command": sys.executable, "args": [str(SERVER), "stdio", "0"]}
    specs = shop(tmp_path, {"transport": "stdio", **command})
    with served(tmp_path, "serve", specs) as service:
        first, second = children(service)
        assert ask(service, "left_open") == ask(service, "context") == "done: q: 3"
        os.kill(first, signal.SIGKILL)
        assert ask(service, "left_open").startswith("done: q: Tool add failed: ")
        assert ask(service, "context") == "done: q: 3"
        service.signal()
        assert service.wait(LONG_S) == 0
        assert "closed" in service.err.read_text().splitlines()
        assert not Path(f"/proc/{second}").exists()


def children(service: Serving) -> list[int]:
    """The processes that a service started, the oldest first."""
    tasks = Path(f"/proc/{service.process.pid}/task").iterdir()
    return sorted(int(pid) for task in tasks for pid in (task / "children").read_text().split())


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("kind", PATHS)
def test_unreachable_server_is_named_at_start(tmp_path: Path, kind: str, agent: str) -> None:
    """A start without its tool server names the refused address and the cause."""
    url = f"http://127.0.0.1:{free_port()}/{PATHS[kind]}"
    shop(tmp_path, {"transport": kind.replace("-", "_"), "url": url})
    ended = run("agents", f"a=wk_tools:{agent}", cwd=tmp_path)
    assert ended.code == 2
    sentence = ended.err.splitlines()[-1]
    assert sentence.startswith(f"watchkeeper: The factory wk_tools:{agent} failed: ConnectError: ")
    assert "Connection refused" in sentence
    assert sentence.endswith(f"at {url}; start what should answer there, or correct the address.")
    assert "Traceback" not in ended.err
