"""Agents as people write them: create_agent, a graph, a loop in a function, an executor."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import (
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    after_agent,
    after_model,
    before_agent,
    before_model,
    wrap_model_call,
    wrap_tool_call,
)
from langchain_classic.agents import AgentExecutor
from langchain_classic.agents.format_scratchpad.tools import format_to_tool_messages
from langchain_classic.agents.output_parsers.tools import ToolsAgentOutputParser
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import RetryPolicy
from pydantic import BaseModel

from tests.property.ledger import Ledger, Whose
from tests.property.model import (
    AgentModel,
    Down,
    HelperModel,
    Ticket,
    copy_in,
    tool_name,
)
from tests.property.plan import Agent, Ask, At, Call, Cure, Helper, Made, ToolKind

Answers = Callable[[Sequence[BaseMessage]], Awaitable[str]]


class Verdict(BaseModel):
    """Whether something is safe."""

    safe: bool


class Arguments(BaseModel):
    """What a tool is called with."""

    ticket: str


class BrokenTool(ValueError):
    """What a tool raises."""


async def consult(helper: Helper, ledger: Ledger) -> None:
    """Ask a helper; one that fails is done without."""
    model = HelperModel(ledger=ledger, place=helper.name, helper=helper)
    asked: Runnable[Any, Any] = model
    if helper.ask is Ask.STRUCTURED:
        asked = model.with_structured_output(Verdict)
    elif helper.ask is Ask.BOUND:
        asked = model.bind_tools([Verdict])
    try:
        await asked.ainvoke("Is this safe?")
    except Down:
        assert helper.ask is Ask.FAILS


@dataclass(frozen=True)
class Builder:
    """Builds agents whose doings go into one ledger."""

    ledger: Ledger

    def tools(self, owner: str, calls: Sequence[Call], *, sync: bool = False) -> list[BaseTool]:
        """The tools that these calls need, each once."""
        found: dict[str, BaseTool] = {}
        for number, call in enumerate(calls):
            name = tool_name(owner, call, number)
            if call.runs and name not in found:
                found[name] = self._tool(name, call, sync=sync)
        return list(found.values())

    def _tool(self, name: str, call: Call, *, sync: bool) -> BaseTool:
        ledger = self.ledger
        inner = self.answers(call.agent) if call.agent else None
        thinks = Helper(name)

        async def works(ticket: str) -> str:
            mark = Ticket.read(ticket)
            ledger.work(mark.whose, mark.turn, call.kind)
            await ledger.rest(ticket)
            if call.kind is ToolKind.RAISES:
                raise BrokenTool("secret")
            if call.kind is ToolKind.MUSES:
                await consult(thinks, ledger)
            if inner is not None:
                return await inner([HumanMessage("A part of it")])
            return f"result {ticket}"

        def blocks(ticket: str) -> str:
            mark = Ticket.read(ticket)
            ledger.work(mark.whose, mark.turn, call.kind)
            ledger.block(ticket)
            if call.kind is ToolKind.RAISES:
                raise BrokenTool("secret")
            return f"result {ticket}"

        about: dict[str, Any] = {"name": name, "description": "A tool.", "args_schema": Arguments}
        if sync and call.kind in (ToolKind.LOOKS, ToolKind.RAISES):
            return StructuredTool(func=blocks, **about)
        return StructuredTool(coroutine=works, **about)

    def answers(self, agent: Agent) -> Answers:
        """The agent as a function of messages to its answer."""
        if agent.made is Made.LOOP:
            return self.loop(agent)
        if agent.made is Made.EXECUTOR:
            executor = self.executor(agent)

            async def execute(messages: Sequence[BaseMessage]) -> str:
                copy = copy_in(messages)
                question = f"part {copy}" if copy else "go"
                return str((await executor.ainvoke({"input": question}))["output"])

            return execute
        graph = self.graph(agent)

        async def invoke(messages: Sequence[BaseMessage]) -> str:
            return str((await graph.ainvoke({"messages": list(messages)}))["messages"][-1].text)

        return invoke

    def graph(self, agent: Agent) -> Any:
        """The agent as a compiled graph."""
        if agent.made is Made.CREATED:
            return self._created(agent)
        graph = StateGraph(MessagesState)
        graph.add_edge(START, self.inline(graph, agent, END))
        return graph.compile(name=agent.name if agent.named else None)

    def model(self, agent: Agent) -> AgentModel:
        """Its model, with its trouble."""
        return AgentModel(ledger=self.ledger, place=agent.name, agent=agent)

    def _stand_in(self, agent: Agent) -> AgentModel:
        return AgentModel(ledger=self.ledger, place=agent.name, agent=agent, stands_in=True)

    def bound(self, agent: Agent, tools: Sequence[BaseTool]) -> Runnable[Any, Any]:
        """Its model with its tools and what it does about trouble, but for what nodes do."""
        model = self.model(agent)
        bound = model.bind_tools(tools) if tools else model
        trouble = agent.trouble
        if trouble is not None and trouble.cure is Cure.RETRY:
            return bound.with_retry(
                retry_if_exception_type=(Down,),
                stop_after_attempt=trouble.times + 1,
                wait_exponential_jitter=False,
            )
        if trouble is not None and trouble.cure is Cure.FALLBACK:
            other = self._stand_in(agent)
            return bound.with_fallbacks([other.bind_tools(tools) if tools else other])
        return bound

    def own_tools(self, agent: Agent) -> list[BaseTool]:
        """All tools of an agent. One that asks for an unknown tool has another all the same."""
        calls = [call for turn in agent.turns for call in turn.calls]
        calls += [Call()] if calls else []
        return self.tools(agent.name, calls, sync=agent.sync)

    def _created(self, agent: Agent) -> Any:
        middleware: list[Any] = []
        if agent.helper is not None:
            middleware.append(self._hook(agent.helper))
        if any(not turn.calls for turn in agent.turns):
            middleware.append(_sends_back())
        trouble = agent.trouble
        if trouble is not None and trouble.cure is Cure.RETRY:
            middleware.append(
                ModelRetryMiddleware(
                    max_retries=trouble.times, initial_delay=0.0, jitter=False, on_failure="error"
                )
            )
        elif trouble is not None and trouble.cure is Cure.FALLBACK:
            middleware.append(ModelFallbackMiddleware(self._stand_in(agent)))
        elif trouble is not None and trouble.cure is Cure.TWICE:
            middleware.append(self._asks_twice(agent))
        return create_agent(
            self.model(agent),
            self.own_tools(agent),
            system_prompt=f"You are {agent.name}.",
            middleware=middleware,
            name=agent.name if agent.named else None,
        )

    def _hook(self, helper: Helper) -> Any:
        ledger = self.ledger

        async def hook(state: Any, runtime: Any) -> None:
            await consult(helper, ledger)

        async def around(request: Any, handler: Any) -> Any:
            await consult(helper, ledger)
            return await handler(request)

        hooks: dict[At, Callable[..., Any]] = {
            At.BEFORE_AGENT: before_agent,
            At.BEFORE_MODEL: before_model,
            At.AFTER_MODEL: after_model,
            At.AFTER_AGENT: after_agent,
        }
        if helper.at in hooks:
            return hooks[helper.at](hook)
        return (wrap_tool_call if helper.at is At.WRAP_TOOL else wrap_model_call)(around)

    def _asks_twice(self, agent: Agent) -> Any:
        trouble, ledger = agent.trouble, self.ledger
        assert trouble is not None

        @wrap_model_call
        async def twice(request: Any, handler: Any) -> Any:
            whose = Whose(agent.name, copy_in(request.messages))
            if ledger.attempt("twice", whose) == trouble.turn:
                await handler(request)
            return await handler(request)

        return twice

    def inline(self, graph: Any, agent: Agent, after: str) -> str:
        """Add the nodes of an agent to a graph; `after` comes next. Gives its first node."""
        tools = self.own_tools(agent)
        bound, ledger, trouble = self.bound(agent, tools), self.ledger, agent.trouble
        think, work = f"{agent.name}_think", f"{agent.name}_tools"

        def relapse(messages: Sequence[BaseMessage]) -> None:
            if trouble is None or trouble.cure is not Cure.LATE:
                return
            whose = Whose(agent.name, copy_in(messages))
            turns = len([m for m in messages if isinstance(m, AIMessage) and _is_of(m, agent)])
            if turns == trouble.turn and ledger.attempt("late", whose) < trouble.times:
                raise Down("after the model")

        async def asks(state: MessagesState) -> dict[str, Any]:
            if beside is not None:
                await consult(beside, ledger)
            reply = await bound.ainvoke(state["messages"])
            relapse(state["messages"])
            return {"messages": [reply]}

        def blocks(state: MessagesState) -> dict[str, Any]:
            reply = bound.invoke(state["messages"])
            relapse(state["messages"])
            return {"messages": [reply]}

        def goes_on(state: MessagesState) -> str:
            last = state["messages"][-1]
            return work if isinstance(last, AIMessage) and last.tool_calls else after

        helper = agent.helper
        between = helper is not None and helper.at is At.BETWEEN
        beside = None if between else helper
        node = blocks if agent.sync and beside is None else asks
        graph.add_node(think, node, retry_policy=policy(trouble.times if trouble else 0))
        graph.add_node(work, ToolNode(tools))
        graph.add_conditional_edges(think, goes_on, [work, after])
        if helper is not None and between:
            check = f"{agent.name}_checks"
            graph.add_node(check, checks(helper, ledger))
            graph.add_edge(check, think)
            graph.add_edge(work, check)
        else:
            graph.add_edge(work, think)
        return think

    def loop(self, agent: Agent) -> Answers:
        """An agent that is one function: it asks, calls tools, and asks again."""
        tools = {tool.name: tool for tool in self.own_tools(agent)}
        bound, ledger = self.bound(agent, list(tools.values())), self.ledger

        async def use(request: Any) -> ToolMessage:
            tool = tools.get(request["name"])
            if tool is None:
                return ToolMessage("There is no such tool.", tool_call_id=request["id"])
            try:
                result: ToolMessage = await tool.ainvoke(request)
                return result
            except BrokenTool:
                return ToolMessage("It failed.", tool_call_id=request["id"], status="error")

        async def loops(messages: Sequence[BaseMessage]) -> str:
            history = list(messages)
            if agent.helper is not None:
                await consult(agent.helper, ledger)
            while True:
                reply = await bound.ainvoke(history)
                if not reply.tool_calls:
                    return str(reply.text)
                results = await asyncio.gather(*(use(request) for request in reply.tool_calls))
                history += [reply, *results]

        return loops

    def executor(self, agent: Agent) -> AgentExecutor:
        """The classic kind."""
        tools, ledger = self.own_tools(agent), self.ledger
        prompt = ChatPromptTemplate.from_messages(
            [
                ("system", f"You are {agent.name}."),
                ("human", "{input}"),
                MessagesPlaceholder("agent_scratchpad"),
            ]
        )
        scratchpad = RunnablePassthrough.assign(
            agent_scratchpad=lambda asked: format_to_tool_messages(asked["intermediate_steps"])
        )
        bound = self.bound(agent, tools)
        runs: Any = scratchpad | prompt | bound | ToolsAgentOutputParser()
        if agent.helper is not None:
            helper = agent.helper

            async def guard(asked: Any) -> Any:
                await consult(helper, ledger)
                return asked

            runs = RunnableLambda(guard) | runs
        # What it streams, no retry makes again: that is so in the library.
        return AgentExecutor(agent=runs, tools=tools, stream_runnable=agent.trouble is None)


def checks(helper: Helper, ledger: Ledger) -> Callable[[Any], Awaitable[dict[str, Any]]]:
    """A node that asks a helper and gives nothing on."""

    async def check(state: Any) -> dict[str, Any]:
        await consult(helper, ledger)
        return {}

    return check


def policy(relapses: int) -> RetryPolicy:
    """Tries a node again after each of so many failures."""
    return RetryPolicy(
        max_attempts=relapses + 1, initial_interval=0.001, jitter=False, retry_on=Down
    )


def _is_of(message: AIMessage, agent: Agent) -> bool:
    return any(Ticket.read(str(c["id"])).whose.name == agent.name for c in message.tool_calls)


def _sends_back() -> Any:
    @after_model(can_jump_to=["model"])
    async def review(state: Any, runtime: Any) -> dict[str, Any] | None:
        if state["messages"][-1].text.startswith("draft "):
            return {"jump_to": "model", "messages": [HumanMessage("Not good enough.")]}
        return None

    return review
