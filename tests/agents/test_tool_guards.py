"""One wrapper for tools of every kind: the model reads of an exception, which ends nothing."""

import asyncio
import logging
import subprocess
import sys
from typing import Any

import pytest
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool, StructuredTool, ToolException, tool
from langgraph.errors import GraphInterrupt
from langgraph.types import Interrupt
from pydantic import BaseModel, field_validator

from app.agents.handler.tool_guards import handled
from tests.agents.toolbox import MAKES, SECRET, SYNC_MAKES, Make, call, classic, read

makes = pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
sync_makes = pytest.mark.parametrize("make", SYNC_MAKES, ids=lambda make: make.__name__)


async def ask(probe: BaseTool, **arguments: Any) -> tuple[str, str]:
    """What the model reads when it calls the handled tool."""
    return read(await handled(probe).ainvoke(call(**arguments)))


@makes
async def test_result_is_unchanged(make: Make) -> None:
    """The wrapper returns what a working tool returns."""
    expected = read(await make(None).ainvoke(call(text="x")))
    assert await ask(make(None), text="x") == expected
    assert expected[1] == "success"
    assert expected[0].endswith(" x")


@makes
async def test_model_reads_the_type_of_an_exception(make: Make) -> None:
    """The model reads the name of the tool and the type of the exception, never the text."""
    answer = await ask(make(ValueError(SECRET)), text="x")
    assert answer == ("Tool probe failed: ValueError", "error")


@sync_makes
def test_failure_in_sync_code_is_reported_alike(make: Make) -> None:
    """A tool that is called without a loop reports its failure in the same way."""
    message = handled(make(KeyError(SECRET))).invoke(call(text="x"))
    assert read(message) == ("Tool probe failed: KeyError", "error")


@makes
@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("t"),
        OSError(2, "no"),
        ExceptionGroup("g", [ValueError()]),
        NotImplementedError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_run_goes_on_after_any_exception(make: Make, error: Exception) -> None:
    """Whatever a tool raises, the run goes on."""
    assert await ask(make(error), text="x") == (
        f"Tool probe failed: {type(error).__name__}",
        "error",
    )


# In a process of its own, since SystemExit ends the event loop that it goes through.
EXITS = """
import asyncio
from app.agents.handler.tool_guards import handled
from tests.agents.toolbox import MAKES, call

for make in MAKES:
    try:
        message = asyncio.run(handled(make(SystemExit(2))).ainvoke(call(text="x")))
        print(make.__name__, "|", message.text)
    except SystemExit:
        print(make.__name__, "| ended the service")
"""


@pytest.mark.waits
def test_sys_exit_in_a_tool_is_a_failure() -> None:
    """A tool that calls sys.exit has failed; the service goes on."""
    ended = subprocess.run(
        [sys.executable, "-c", EXITS], capture_output=True, text=True, timeout=60, check=False
    )
    expected = [f"{make.__name__} | Tool probe failed: SystemExit" for make in MAKES]
    assert ended.stdout.splitlines() == expected, ended.stderr


@makes
async def test_text_of_a_tool_exception_reaches_the_model(make: Make) -> None:
    """The text of a ToolException reaches the model."""
    answer = await ask(make(ToolException("no order 7")), text="x")
    assert answer == ("Tool probe failed: ToolException: no order 7", "error")


@makes
@pytest.mark.parametrize(
    ("handler", "content"),
    [
        (True, "no order 7"),
        ("ask again", "ask again"),
        (lambda error: f"handled {error}", "handled no order 7"),
        (False, "Tool probe failed: ToolException: no order 7"),
    ],
    ids=["true", "text", "function", "false"],
)
async def test_own_handler_of_tool_exceptions_is_used(
    make: Make, handler: Any, content: str
) -> None:
    """A tool with its own handler of ToolExceptions reports them with it."""
    probe = make(ToolException("no order 7"), handle_tool_error=handler)
    assert await ask(probe, text="x") == (content, "error")


@pytest.mark.parametrize("handler", [True, "ask again", lambda error: f"handled {error}"])
async def test_own_handler_gets_no_other_exception(handler: Any) -> None:
    """A handler of ToolExceptions gets no other exception."""
    answer = await ask(classic(ValueError(SECRET), handle_tool_error=handler), text="x")
    assert answer == ("Tool probe failed: ValueError", "error")


async def test_tool_exception_without_text_is_reported_as_langchain_does() -> None:
    """A ToolException without text is reported as LangChain reports it."""
    probe = classic(ToolException(), handle_tool_error=True)
    expected = read(await probe.ainvoke(call(text="x")))
    assert await ask(probe, text="x") == expected


async def test_handler_that_raises_fails_the_tool() -> None:
    """A user's handler that raises fails the tool, not the run."""

    def handler(error: ToolException) -> str:
        raise RuntimeError(SECRET)

    text, status = await ask(classic(ToolException("x"), handle_tool_error=handler), text="x")
    assert status == "error"
    assert text.startswith("Tool probe failed: ")
    assert SECRET not in text


class Wanted(BaseModel):
    """Arguments that can be wrong."""

    number: int
    word: str = ""

    @field_validator("word")
    @classmethod
    def _known(cls, word: str) -> str:
        return {"": "", "a": "A"}[word]  # a KeyError is none of pydantic's own


def counting(**options: Any) -> BaseTool:
    """A tool that wants a number."""

    async def probe(number: int, word: str = "") -> str:
        """Probe."""
        return f"got {number}{word}"

    return StructuredTool.from_function(coroutine=probe, args_schema=Wanted, **options)


async def test_model_reads_why_arguments_are_invalid() -> None:
    """A model that sends invalid arguments reads the fault, and not its own input."""
    text, status = await ask(counting(), number="seven")
    assert status == "error"
    assert text.startswith("Tool probe failed: ValidationError: number: ")
    assert "seven" not in text
    text, status = await ask(counting())
    assert (status, "number: Field required" in text) == ("error", True)


async def test_valid_arguments_are_converted() -> None:
    """Valid arguments reach the tool as its schema converts them."""
    assert await ask(counting(), number="7", word="a") == ("got 7A", "success")


async def test_validator_that_raises_fails_the_tool() -> None:
    """A tool whose own validator raises has failed like any other."""
    text, status = await ask(counting(), number=1, word="b")
    assert (text.startswith("Tool probe failed: "), status) == (True, "error")


async def test_own_handler_of_validation_errors_is_used() -> None:
    """A tool with its own handler of validation errors reports them with it."""
    probe = counting(handle_validation_error="a number, please")
    assert await ask(probe, number="x") == ("a number, please", "error")


def with_artifact(result: Any, **options: Any) -> BaseTool:
    """A tool that gives words for the model and a thing for the program."""

    @tool(response_format="content_and_artifact")
    async def probe() -> Any:
        """Probe."""
        if isinstance(result, Exception):
            raise result
        return result

    return probe.model_copy(update=options)


async def test_artifacts_are_kept() -> None:
    """A tool's artifact goes with its message."""
    message = await handled(with_artifact(("words", {"rows": 3}))).ainvoke(call())
    assert isinstance(message, ToolMessage)
    assert (message.text, message.artifact) == ("words", {"rows": 3})


@pytest.mark.parametrize(
    ("error", "content"),
    [
        (ValueError(SECRET), "Tool probe failed: ValueError"),
        (ToolException("none"), "Tool probe failed: ToolException: none"),
    ],
    ids=["ValueError", "ToolException"],
)
async def test_failure_of_a_tool_with_artifacts_is_reported(error: Exception, content: str) -> None:
    """A tool with artifacts that raises is reported as any other."""
    assert await ask(with_artifact(error)) == (content, "error")


@pytest.mark.parametrize("result", ["words only", ("a", "b", "c"), None], ids=repr)
async def test_result_that_is_no_pair_is_a_failure(result: Any) -> None:
    """A tool that returns no pair of text and artifact has failed; the run goes on."""
    text, status = await ask(with_artifact(result))
    assert (text.startswith("Tool probe failed: "), status) == (True, "error")


@makes
async def test_interrupts_pass_through(make: Make) -> None:
    """An interrupt for a human is no failure of the tool."""
    with pytest.raises(GraphInterrupt):
        await handled(make(GraphInterrupt([Interrupt("ask")]))).ainvoke(call(text="x"))


async def test_cancellation_passes_through() -> None:
    """A tool that is cancelled is cancelled, not failed."""

    @tool
    async def probe() -> str:
        """Probe."""
        await asyncio.sleep(30)
        return ""

    task = asyncio.create_task(handled(probe).ainvoke(call()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@makes
async def test_tool_object_is_unchanged(make: Make) -> None:
    """Wrapping leaves the user's tool unchanged: it still raises to its author."""
    mine = make(ValueError(SECRET))
    before = (mine.handle_tool_error, mine.handle_validation_error, dict(vars(mine)))
    copy = handled(mine)
    await copy.ainvoke(call(text="x"))
    assert copy is not mine
    assert type(copy) is type(mine)
    assert (mine.handle_tool_error, mine.handle_validation_error, dict(vars(mine))) == before
    with pytest.raises(ValueError, match=SECRET):
        await mine.ainvoke(call(text="x"))


@makes
async def test_the_model_sees_the_same_tool(make: Make) -> None:
    """The wrapper changes nothing of the tool's description for the model."""
    mine = make(None)
    copy = handled(mine)
    assert (copy.name, copy.description, copy.args) == (mine.name, mine.description, mine.args)
    assert copy.tags == mine.tags
    assert copy.return_direct == mine.return_direct


@makes
async def test_wrapping_twice_reports_once(make: Make) -> None:
    """A tool of two served agents is reported in the same words."""
    probe = handled(handled(make(ValueError(SECRET))))
    message = await probe.ainvoke(call(text="x"))
    assert read(message) == ("Tool probe failed: ValueError", "error")


async def test_wrapper_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The wrapper itself logs nothing: it emits a fact."""
    with caplog.at_level(logging.DEBUG):
        await ask(classic(ValueError(SECRET)), text="x")
    assert SECRET not in caplog.text
