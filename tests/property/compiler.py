"""Turns a plan into the agent that is served: a real LangGraph graph, or one agent as it is."""

import asyncio
import operator
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Send

from tests.property.agents import Builder, checks, policy
from tests.property.ledger import Ledger, Whose
from tests.property.model import Down, copy_in, requests
from tests.property.plan import (
    By,
    Call,
    Checks,
    Fans,
    How,
    Made,
    Plan,
    Raw,
    Says,
    Step,
    Steps,
    Turn,
    Works,
)

Answers = Callable[[HumanMessage], Awaitable[BaseMessage]]


class State(MessagesState):
    """Messages, and the text of each branch by its name."""

    parts: Annotated[dict[str, str], operator.or_]


def compiled(plan: Plan, ledger: Ledger) -> Any:
    """The agent of a plan, its doings written into the ledger."""
    builder = Builder(ledger)
    agent = plan.bare
    if agent is not None and agent.made is Made.EXECUTOR:
        return builder.executor(agent)
    if agent is not None and agent.made is not Made.LOOP:
        return builder.graph(agent)
    return Compiler(builder).graph(plan.steps)


def said_by(name: str) -> str:
    """The text of a node without a model."""
    return f"{name} says so"


def copied(outer: str, number: int) -> str:
    """The sign of a copy inside another."""
    return f"{outer}.{number}" if outer else str(number)


def joined(name: str, parts: dict[str, str]) -> str:
    """The text of a join about its branches."""
    own = sorted((key, text) for key, text in parts.items() if key.startswith(f"{name}."))
    return "; ".join(text for _, text in own)


@dataclass(frozen=True)
class Compiler:
    """Adds steps to graphs, the last one first, since each wants to know what comes next."""

    builder: Builder

    def graph(self, steps: Steps, out: str = "") -> Any:
        """The steps as a graph; its last message is stored as that part."""
        graph = StateGraph(State)
        last = END
        if out:
            graph.add_node("out", _hands_out(out))
            graph.add_edge("out", END)
            last = "out"
        graph.add_edge(START, self._chain(graph, steps, last))
        return graph.compile()

    def _chain(self, graph: Any, steps: Steps, after: str, sign: str = "") -> str:
        for number, step in reversed(list(enumerate(steps))):
            after = self._add(graph, step, after, f"{sign}{number}")
        return after

    def _add(self, graph: Any, step: Step, after: str, sign: str) -> str:
        match step:
            case Works(agent, How.INLINE):
                return self.builder.inline(graph, agent, after)
            case Works():
                return self._works(graph, step, after)
            case Checks(helper):
                check = checks(helper, self.builder.ledger)
                return _node(graph, f"checks_{sign}", check, after)
            case Says(name):

                def speak(state: State) -> dict[str, Any]:
                    return {"messages": [AIMessage(said_by(name))]}

                return _node(graph, f"says_{sign}", speak, after)
            case Raw():
                return self._raw(graph, step, after)
            case Fans():
                return self._fans(graph, step, after)

    def _works(self, graph: Any, step: Works, after: str) -> str:
        agent, ledger = step.agent, self.builder.ledger
        compiles = agent.made in (Made.CREATED, Made.GRAPH)
        if step.how is How.NODE and compiles:
            return _node(graph, agent.name, self.builder.graph(agent), after)
        answers = self.builder.answers(agent)

        async def called(state: State) -> dict[str, Any]:
            whose = Whose(agent.name, copy_in(state["messages"]))
            text = await answers(state["messages"][:1])
            if ledger.attempt("relapse", whose) < step.relapses:
                raise Down("after the agent")
            return {"messages": [AIMessage(text)]}

        graph.add_node(agent.name, called, retry_policy=policy(step.relapses))
        graph.add_edge(agent.name, after)
        return agent.name

    def _raw(self, graph: Any, step: Raw, after: str) -> str:
        name, tools = step.name, f"{step.name}_tools"

        def asks(state: State) -> dict[str, Any]:
            whose = Whose(name, copy_in(state["messages"]))
            self.builder.ledger.raw.append(whose)
            calls: Any = requests(name, whose, 0, Turn(step.calls))
            return {"messages": [AIMessage("", tool_calls=calls)]}

        graph.add_node(tools, ToolNode(self.builder.tools(name, (*step.calls, Call()))))
        graph.add_edge(tools, after)
        return _node(graph, name, asks, tools)

    def _fans(self, graph: Any, fans: Fans, after: str) -> str:
        name = fans.name
        join, split = f"{name}_join", f"{name}_split"

        def joins(state: State) -> dict[str, Any]:
            return {"messages": [AIMessage(joined(name, state["parts"]))]}

        if fans.by is By.GATHER:
            return _node(graph, name, self._gathers(fans), after)
        _node(graph, join, joins, after)
        graph.add_node(split, lambda state: {})
        if fans.by in (By.COPIES, By.MAPS):
            return self._copies(graph, fans, split, join)
        ends, starts = [], []
        for number, branch in enumerate(fans.branches):
            end = f"{name}_{number}"
            if fans.by is By.LANES:
                graph.add_node(end, _hands_out(f"{name}.{number}", _speaker(branch)))
                starts.append(self._chain(graph, branch, end, f"{name}_{number}_"))
            else:
                graph.add_node(end, self.graph(branch, f"{name}.{number}"))
                starts.append(end)
            ends.append(end)
        graph.add_edge(ends, join)
        if fans.by is By.SEND:

            def sends(state: State) -> list[Send]:
                state_of_branch = {"messages": state["messages"][:1], "parts": {}}
                return [Send(start, state_of_branch) for start in starts]

            graph.add_conditional_edges(split, sends, starts)
        else:
            for start in starts:
                graph.add_edge(split, start)
        return split

    def _copies(self, graph: Any, fans: Fans, split: str, join: str) -> str:
        (branch,) = fans.branches
        work = f"{fans.name}_work"
        answers = self._maps(branch) if fans.by is By.MAPS else self._asks(branch)

        async def works(part: dict[str, Any]) -> dict[str, Any]:
            answer = await answers(HumanMessage(f"part {part['copy']}"))
            update = {"parts": {f"{fans.name}.{part['copy']}": str(answer.text)}}
            return {**update, "messages": [answer]} if fans.by is By.MAPS else update

        graph.add_node(work, works)
        graph.add_edge(work, join)

        def sends(state: State) -> list[Send]:
            outer = copy_in(state["messages"])
            return [Send(work, {"copy": copied(outer, n)}) for n in range(fans.copies)]

        graph.add_conditional_edges(split, sends, [work])
        return split

    def _asks(self, branch: Steps) -> Answers:
        inner = self.graph(branch)

        async def asks(question: HumanMessage) -> BaseMessage:
            end = await inner.ainvoke({"messages": [question], "parts": {}})
            last: BaseMessage = end["messages"][-1]
            return last

        return asks

    def _maps(self, branch: Steps) -> Answers:
        (step,) = branch
        assert isinstance(step, Works)
        model, ledger = self.builder.model(step.agent), self.builder.ledger

        async def maps(question: HumanMessage) -> BaseMessage:
            await ledger.rest(step.agent.name)
            return await model.ainvoke([question])

        return maps

    def _gathers(self, fans: Fans) -> Any:
        inner = [self.graph(branch) for branch in fans.branches]

        async def gathers(state: State) -> dict[str, Any]:
            asked = {"messages": state["messages"][:1], "parts": {}}
            ends = await asyncio.gather(*(graph.ainvoke(asked) for graph in inner))
            texts = [str(end["messages"][-1].text) for end in ends]
            parts = {f"{fans.name}.{n}": text for n, text in enumerate(texts)}
            return {"messages": [AIMessage(joined(fans.name, parts))]}

        return gathers


def _node(graph: Any, name: str, node: Any, after: str) -> str:
    graph.add_node(name, node)
    graph.add_edge(name, after)
    return name


def _speaker(branch: Steps) -> str:
    last = branch[-1]
    return last.agent.name if isinstance(last, Works) else last.name  # type: ignore[union-attr]


def _hands_out(part: str, speaker: str = "") -> Any:
    """Gives the last message on as a part; in lanes, the last one of its own speaker."""

    def hands_out(state: State) -> dict[str, Any]:
        own = [m for m in state["messages"] if m.text.startswith(speaker)]
        return {"parts": {part: str(own[-1].text)}}

    return hands_out
