"""Before each tool call of a background run its process checks that it still owns the run."""

import pytest

from app.agents import registry
from app.runs.errors import HandedOver
from app.runs.events import Event, ToolCallFinished
from app.runs.model import EarlyStopping
from app.runs.ports import AgentCall
from app.settings import Settings
from tests import fakes


class Fence:
    """One that shuts when so many tools have been called."""

    claim_token = "c"

    def __init__(self, tools: fakes.ToolDesk, calls: int) -> None:
        self._tools = tools
        self._calls = calls

    def confirm_owned_in_thread(self) -> None:
        """Raises HandedOver."""
        if len(self._tools.started) >= self._calls:
            raise HandedOver

    async def confirm_owned(self) -> None:
        """Raises HandedOver."""
        self.confirm_owned_in_thread()


@pytest.mark.parametrize("kind", fakes.KINDS)
@pytest.mark.parametrize("tool", ["look", "block"])
@pytest.mark.parametrize("calls", [0, 1])
async def test_tool_of_a_lost_run_does_nothing(kind: str, tool: str, calls: int) -> None:
    """A tool of any kind, on the loop or on a thread, does nothing once another owns the run."""
    tools, facts = fakes.ToolDesk(), list[Event]()
    model = fakes.ScriptedModel(script=fakes.calls_then_answers(tool, turns=3))
    built = fakes.build(kind, model, tools.tools())
    agent = registry.adapt(built, "a", Settings().served("a"))
    call = AgentCall(
        run_id="r",
        question="q",
        iteration_limit=10,
        early_stopping=EarlyStopping.FORCE,
        thread_id=None,
        emit=facts.append,
        price=lambda model, usage: None,
        fence=Fence(tools, calls),
    )
    with pytest.raises(HandedOver):
        await agent.answer(call)
    assert tools.started == [tool] * calls
    outcomes = [fact.outcome for fact in facts if isinstance(fact, ToolCallFinished)]
    assert outcomes == ["completed"] * calls + ["cancelled"]  # which is no error of the tool's
