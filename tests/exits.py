"""Agents whose code asks the process to exit, in each place where user code executes."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_classic.agents import AgentExecutor
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import tool

from tests import fakes, faults


class Odd(BaseException):
    """What somebody made for themselves."""


# Exceptions that no code catches by accident.
EXITS: dict[str, Callable[[], BaseException]] = {
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "generator": GeneratorExit,
    "odd": Odd,
}


def places(leave: Callable[[], BaseException]) -> dict[str, Any]:
    """An agent for each place; asking it ends in `leave`."""

    def now(*_: Any, **__: Any) -> Any:
        raise leave()

    async def soon(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(0)
        raise leave()

    async def in_a_task(state: Any) -> Any:
        await asyncio.create_task(soon())

    async def beside(state: Any) -> Any:
        await asyncio.gather(asyncio.sleep(60), soon())

    async def in_a_group(state: Any) -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(soon())
            group.create_task(asyncio.sleep(60))

    return {
        "node": faults.graph_of(soon),
        "node-thread": faults.graph_of(now),
        "task": faults.graph_of(in_a_task),
        "gather": faults.graph_of(beside),
        "group": faults.graph_of(in_a_group),
        "runnable": faults.graph_of(_Node(leave)),
        "graph": faults.graph_of(faults.graph_of(soon)),
        "model": create_agent(_leaving_model(leave), []),
        "model-thread": create_agent(faults.SyncModel(script=now), []),
        "middleware": create_agent(faults.model(), [], middleware=[_leaving_hook(leave)]),
        "callback": _hooks(_Leaves(leave)),
        "callback-async": _hooks(_LeavesSoon(leave)),
        "executor-parser": _executor(now),
    }


def tool_that_leaves(leave: Callable[[], BaseException], kind: str, *, thread: bool) -> Any:
    """An agent of a kind whose tool exits while another one of its turn works."""

    @tool("look")
    def on_thread() -> str:
        """Leave."""
        raise leave()

    @tool("look")
    async def on_loop() -> str:
        """Leave."""
        await asyncio.sleep(0)
        raise leave()

    model = fakes.ScriptedModel(script=fakes.calls_then_answers("look"))
    return fakes.build(kind, model, [on_thread if thread else on_loop])


class _Node(Runnable[Any, Any]):
    """A node that is no function."""

    def __init__(self, leave: Callable[[], BaseException]) -> None:
        self._leave = leave

    def invoke(self, *_: Any, **__: Any) -> Any:
        raise AssertionError

    async def ainvoke(self, *_: Any, **__: Any) -> Any:
        await asyncio.sleep(0)
        raise self._leave()


class _Leaving(fakes.ScriptedModel):
    leave: Any = None

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> Any:
        await asyncio.sleep(0)
        raise self.leave()


def _leaving_model(leave: Callable[[], BaseException]) -> fakes.ScriptedModel:
    def never(messages: Sequence[BaseMessage]) -> AIMessage:
        raise AssertionError

    return _Leaving(script=never, leave=leave)


def _leaving_hook(leave: Callable[[], BaseException]) -> Any:
    class Leaves(AgentMiddleware[Any, Any, Any]):
        async def abefore_model(self, state: Any, runtime: Any) -> Any:
            raise leave()

    return Leaves()


class _Leaves(BaseCallbackHandler):
    """A callback handler of the user's own."""

    def __init__(self, leave: Callable[[], BaseException]) -> None:
        self._leave = leave

    def on_chat_model_start(self, *_: Any, **__: Any) -> Any:
        raise self._leave()


class _LeavesSoon(AsyncCallbackHandler):
    """The same, asynchronous: LangChain calls it in a task of its own."""

    def __init__(self, leave: Callable[[], BaseException]) -> None:
        self._leave = leave

    async def on_chat_model_start(self, *_: Any, **__: Any) -> Any:
        await asyncio.sleep(0)
        raise self._leave()


def _hooks(handler: Any) -> Any:
    return create_agent(faults.model(), []).with_config(callbacks=[handler])


def _executor(leave: Callable[..., Any]) -> Any:
    prompt = ChatPromptTemplate.from_messages([("human", "{input}")])
    return AgentExecutor(agent=prompt | faults.model() | RunnableLambda(leave), tools=[])


def answers() -> Any:
    """An agent that does nothing of the kind."""

    async def node(state: fakes.GraphState) -> dict[str, Any]:
        return {"messages": [AIMessage("fine")]}

    return faults.graph_of(node)
