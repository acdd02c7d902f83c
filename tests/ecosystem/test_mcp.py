"""langchain-mcp-adapters with a real MCP server, over its standard input and over HTTP."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from langchain.agents import create_agent
from langchain_core.tools import BaseTool
from langchain_mcp_adapters.client import MultiServerMCPClient

from tests.command import ROOT, environment
from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, limited
from tests.ecosystem.model import Model, call, calls, last_result, loops
from tests.ecosystem.served import WITHOUT_STORE
from tests.ecosystem.serves import serves
from tests.ecosystem.toolbox import asking, loop_of
from tests.ports import free_port

MODULE = "tests.ecosystem.tools_server"
UP_S = 60.0
LOOK = call("weather", city="Bonn")
Tools = Mapping[str, BaseTool]


@contextmanager
def server() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server over HTTP: its address, and its process."""
    port = free_port()
    command = [sys.executable, "-m", MODULE, "streamable-http", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment())
    url, deadline = f"http://127.0.0.1:{port}/mcp", time.monotonic() + UP_S
    try:
        while True:
            try:
                httpx.get(url)
                break
            except httpx.TransportError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield url, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """One server for the tests that do it no harm."""
    with server() as (address, _):
        yield address


async def over_http(url: str) -> Tools:
    """The tools of a server over HTTP, each call of which is a session of its own."""
    client = MultiServerMCPClient({"stations": {"transport": "streamable_http", "url": url}})
    return {tool.name: tool for tool in await client.get_tools()}


async def over_stdio() -> Tools:
    """The tools of a server on its standard input, a process of its own for each call."""
    client = MultiServerMCPClient(
        {
            "stations": {
                "transport": "stdio",
                "command": sys.executable,
                "args": ["-m", MODULE, "stdio", "0"],
                "cwd": str(ROOT),
                "env": environment(),
            }
        }
    )
    return {tool.name: tool for tool in await client.get_tools()}


def of_create_agent(model: Model, tools: list[BaseTool]) -> Any:
    """An agent of create_agent."""
    return create_agent(model, tools)


def of_a_graph(model: Model, tools: list[BaseTool]) -> Any:
    """A hand-made graph."""
    return loop_of(asking(model.bind_tools(tools)), tools).compile()


kinds = pytest.mark.parametrize("kind", [of_create_agent, of_a_graph])
Kind = Callable[[Model, list[BaseTool]], Any]


@serves("langchain-mcp-adapters", "tools over HTTP", "Tools like any other.")
@kinds
async def test_tool_over_http(serve: Serve, url: str, kind: Kind) -> None:
    """A tool of a server over HTTP is called, and its text is read."""
    tools = await over_http(url)
    model = Model(script=[calls(LOOK, call("report", city="Ulm")), lambda a: " / ".join(a.results)])

    def build() -> Any:
        return kind(model, list(tools.values()))

    for run in await serve(build, completed(None, 1, 2)):
        assert run.outcomes == {"report": ["completed"], "weather": ["completed"]}
        assert run.body["answer"].startswith("sun in Bonn / {")


@serves("langchain-mcp-adapters", "tools over standard input", "Tools like any other.")
async def test_tool_over_standard_input(serve: Serve) -> None:
    """A tool of a server on its standard input is called, and its text is read."""
    tools = await over_stdio()
    model = Model(script=[calls(LOOK), last_result()])

    def build() -> Any:
        return create_agent(model, [tools["weather"]])

    await serve(build, completed("I read: sun in Bonn", 1, 1), modes=WITHOUT_STORE)


@serves(
    "langchain-mcp-adapters", "results with `isError`", "`tool_error`; the model reads the text."
)
@kinds
async def test_failed_tool_reports_to_the_model(serve: Serve, url: str, kind: Kind) -> None:
    """The server's text of a failed call is for the model."""
    tools = await over_http(url)
    model = Model(script=[calls(call("fails", city="Bonn")), last_result()])

    def build() -> Any:
        return kind(model, [tools["fails"]])

    for run in await serve(build, completed(None, 1, 1)):
        assert run.outcomes == {"fails": ["tool_error"]}
        assert "no station in Bonn" in run.body["answer"]


async def test_model_reads_why_arguments_are_refused(serve: Serve, url: str) -> None:
    """The model reads why the server refused its arguments."""
    tools = await over_http(url)
    model = Model(script=[calls(call("weather", town="Bonn")), last_result()])

    def build() -> Any:
        return create_agent(model, [tools["weather"]])

    for run in await serve(build, completed(None, 1, 1), modes=("sync",)):
        assert run.outcomes == {"weather": ["tool_error"]}


async def test_picture_is_a_result(serve: Serve, url: str) -> None:
    """A result that is a picture is a result like any other."""
    tools = await over_http(url)
    model = Model(script=[calls(call("picture", city="Bonn")), "I saw it."])

    def build() -> Any:
        return create_agent(model, [tools["picture"]])

    for run in await serve(build, completed("I saw it.", 1, 1)):
        assert run.outcomes == {"picture": ["completed"]}


@serves("langchain-mcp-adapters", "a server that is gone", "`tool_error`; the run goes on.")
@kinds
async def test_tool_of_a_dead_server_fails(serve: Serve, kind: Kind) -> None:
    """A tool whose server has died fails; the run goes on, and so does the service."""
    with server() as (address, process):
        tools = await over_http(address)
        process.kill()
        process.wait()
        model = Model(script=[calls(LOOK), last_result()])

        def build() -> Any:
            return kind(model, [tools["weather"]])

        for run in await serve(build, completed(None, 1, 1)):
            assert run.outcomes == {"weather": ["tool_error"]}
            assert run.body["answer"].startswith("I read: Tool weather failed: ")


@pytest.mark.parametrize("limit", [1, 2])
async def test_endless_agent_stops_at_the_limit(serve: Serve, url: str, limit: int) -> None:
    """An endless agent of a server stops after N turns."""
    tools, model = await over_http(url), Model(script=[loops(LOOK)])

    def build() -> Any:
        return create_agent(model, [tools["weather"]])

    expected = limited("concluded", limit, limit)
    for run in await serve(build, expected, max_iterations=limit, modes=WITHOUT_STORE):
        assert len(run.calls_of(model)) == limit + 1
