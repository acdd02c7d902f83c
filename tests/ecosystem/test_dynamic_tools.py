"""Kind 2: tools that a middleware adds to a request execute, guarded, counted, not rejected."""

from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
)

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, limited
from tests.ecosystem.model import Model, call, calls, last_result
from tests.ecosystem.serves import serves
from tests.ecosystem.test_limit import LOOK, endless, own_calls
from tests.ecosystem.toolbox import offline, stock, weather


class Lends(AgentMiddleware):
    """Lends the agent one more tool for each request."""

    def __init__(self, lent: Any) -> None:
        super().__init__()
        self.lent = lent

    async def awrap_model_call(self, request: Any, handler: Any) -> Any:
        """Bind it."""
        return await handler(request.override(tools=[*request.tools, self.lent]))

    async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
        """Find it."""
        known = request.tool_call["name"] != self.lent.name
        return await handler(request if known else request.override(tool=self.lent))


@serves("langchain", "tools that a middleware adds", "Run, guarded and counted like the others.")
async def test_dynamic_tool_is_not_rejected(serve: Serve) -> None:
    """A tool that was added to a request executed, so it was not rejected."""

    def build() -> Any:
        model = Model(script=[calls(LOOK, call("stock", item="maps")), last_result()])
        return create_agent(model, [weather], middleware=[Lends(stock)])

    await serve(build, completed("I read: 12 of maps", 1, 2))


async def test_exception_of_a_dynamic_tool_ends_no_run(serve: Serve) -> None:
    """A tool that was added to a request never ends the run, however it ends itself."""

    def build() -> Any:
        model = Model(script=[calls(call("offline", city="Ulm")), last_result()])
        return create_agent(model, [weather], middleware=[Lends(offline)])

    answer = "I read: Tool offline failed: ConnectionError"
    for run in await serve(build, completed(answer, 1, 1)):
        assert run.outcomes == {"offline": ["tool_error"]}


async def test_dynamic_tools_at_the_limit(serve: Serve) -> None:
    """Turns with added tools count as any other."""
    model = endless(call("stock", item="maps"))

    def build() -> Any:
        return create_agent(model, [weather], middleware=[Lends(stock)])

    for run in await serve(build, limited("concluded", 2, 2), max_iterations=2):
        assert own_calls(run, model) == 3
