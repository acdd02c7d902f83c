"""Serves the classic AgentExecutor of langchain-classic, which is never imported here."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from langchain_core.agents import AgentAction, AgentFinish, AgentStep
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    ToolMessage,
    get_buffer_string,
)
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.prompts import BasePromptTemplate, StringPromptTemplate

from app.agents import introspection, upstream
from app.agents.callback import RunHandler
from app.agents.conversations import Conversations, InMemoryThreads
from app.agents.error_translation import refusal_of, translated_errors
from app.agents.final_answer import ask_for_final_answer, final_prompt
from app.agents.last_turn import final_text, is_empty
from app.agents.library_patches import install_patches
from app.agents.message_content import blocks_of
from app.agents.streaming import handler_for, only_sub_agents
from app.agents.tool_guards import ToolGuards, handled
from app.runs.errors import ModelFailed, NoAnswer, RunError
from app.runs.model import AgentAnswer, AgentInfo, Limit
from app.runs.ports import AgentCall, ThreadStore

# What the classic `generate` told a model that writes its thoughts as text.
_CONCLUDE = "Thought: I now need to return a final answer based on the previous steps."

# Parsers of agents whose model calls tools by itself, so that its text is its answer.
_READS_TOOL_CALLS = (
    "ToolsAgentOutputParser",
    "OpenAIToolsAgentOutputParser",
    "OpenAIFunctionsAgentOutputParser",
)


class ExecutorAgent:
    """One executor, copied with guarded tools and without limits of its own.

    The library's own limits answer with an exception or with a sentence that is not the
    agent's, so the limits are the service's.
    """

    def __init__(self, executor: Any, info: AgentInfo) -> None:
        install_patches()
        verbose = executor.verbose or any(tool.verbose for tool in executor.tools)
        self.info = replace(info, verbose=bool(verbose))
        self._executor = executor.model_copy(
            update={
                "tools": [handled(tool) for tool in executor.tools],
                "max_iterations": None,
                "max_execution_time": None,
                # A TimeoutError raised inside would be answered with the library's own sentence;
                # of a method that it does not know it makes an exception instead.
                "early_stopping_method": "watchkeeper",
            }
        )
        # `astream` tells callbacks what the executor is made of, anew in each run.
        told = self._executor.to_json()
        object.__setattr__(self._executor, "to_json", lambda: told)
        self._tools = frozenset(info.tools)
        self._conversations = Conversations(info.name, InMemoryThreads())
        self._history_is_text = _wants_text(executor)
        # The text of an agent that is parsed (ReAct) is not its answer.
        parsers = [
            parser
            for parser in (
                *introspection.find_all(executor.agent, BaseOutputParser),  # type: ignore[type-abstract]
                getattr(executor.agent, "output_parser", None),  # of the oldest agents
            )
            if any(cls.__name__.endswith("AgentOutputParser") for cls in type(parser).__mro__)
        ]
        self._speaks = any(type(parser).__name__ in _READS_TOOL_CALLS for parser in parsers)
        self._parser = parsers[0] if parsers and not self._speaks else None
        self._direct_tools = {tool.name for tool in executor.tools if tool.return_direct}
        self._guards = ToolGuards()
        self._upstream = upstream.current()
        self._model = introspection.find(executor, BaseLanguageModel)  # type: ignore[type-abstract]

    def use_store(self, threads: ThreadStore, steps: object = None) -> None:
        """Store conversations there; an executor has no steps that could be stored."""
        self._conversations = Conversations(self.info.name, threads)

    async def answer(self, call: AgentCall) -> AgentAnswer:
        """Run the executor to its end, to the iteration limit or to the ceiling of model calls."""
        upstream.use(self._upstream)
        if not self._speaks and call.on_token is not None:
            call = replace(call, on_token=only_sub_agents(call.on_token))
        handler = handler_for(call, self.info.name, self._tools, guards=self._guards)
        before = _before(call, await self._conversations.history(call.thread_id))
        with translated_errors(handler):
            answer = await self._answer(call, handler, before)
        now = [HumanMessage(call.question, id=call.run_id), AIMessage(answer.text)]
        await self._conversations.store(call, [*before, *now])
        return answer

    async def _answer(
        self, call: AgentCall, handler: RunHandler, before: list[BaseMessage]
    ) -> AgentAnswer:
        turn = list[BaseMessage]()
        try:
            output, turn = await self._run(call, handler, before)
        except RunError:
            raise
        except Exception as raised:  # foreign code: an agent may raise anything
            if (refusal := refusal_of(raised)) is not None:
                return refusal
            if not handler.limits.cut:
                raise
            output = None
        if output is None:
            return await self._at_limit(handler, turn)
        # A model that answers in blocks leaves them as they are.
        said = AIMessage(output) if isinstance(output, list) else AIMessage(str(output))
        if is_empty(said):
            raise ModelFailed
        limit = handler.limits.stopped
        return AgentAnswer(str(said.text), output=blocks_of(said), limit=limit)

    async def _at_limit(self, handler: RunHandler, turn: list[BaseMessage]) -> AgentAnswer:
        latest = handler.models.latest
        asked = (
            [*latest.messages, *turn] if latest is not None and turn else final_prompt(handler, [])
        )
        limit = handler.limits.stopped or Limit.ITERATIONS
        words = await ask_for_final_answer(handler, self._model, asked, limit=limit)
        text = self._parsed(str(words.text if isinstance(words, AIMessage) else words))
        return AgentAnswer(text or handler.limits.fixed_sentence, limit=limit)

    def _parsed(self, text: str) -> str:
        """What the agent's own parser makes of the last words; empty if they ask for a tool."""
        if self._parser is None:
            return text.strip() if self._speaks else final_text(text)
        try:
            parsed = self._parser.parse(text)
        except (OutputParserException, ValueError):
            return final_text(text)
        if isinstance(parsed, AgentFinish):
            return str(parsed.return_values.get("output", "")).strip()
        return ""

    async def _run(
        self, call: AgentCall, handler: RunHandler, before: list[BaseMessage]
    ) -> tuple[Any, list[BaseMessage]]:
        """The output, or None with the turn at which the limit stopped it.

        The executor yields each action of a turn before it runs the tools, and each result
        before it asks the model again.
        """
        turn, open_calls = list[AgentStep](), 0
        history = get_buffer_string(before) if self._history_is_text else before
        asked = {"input": call.question, "chat_history": history}
        stream = self._executor.astream(asked, {"callbacks": [handler]})
        async with aclosing(stream):
            async for chunk in stream:
                if "output" in chunk:
                    self._refuse_failed_tool(handler, turn, chunk["output"])
                    return chunk["output"], []
                turn = turn if open_calls else []
                open_calls += len(chunk.get("actions", ())) - len(chunk.get("steps", ()))
                open_calls = max(0, open_calls)  # a parse error is a step without an action
                turn += chunk.get("steps", ())
                at_limit = handler.turns.iterations >= call.iteration_limit
                if at_limit and turn and not open_calls:
                    return None, _as_messages(turn)
        return "", []

    def _refuse_failed_tool(
        self, handler: RunHandler, turn: Sequence[AgentStep], output: object
    ) -> None:
        """The words for the model of a tool that failed are nobody's answer. Raises NoAnswer."""
        last = turn[-1].action.tool if turn else None
        if last in self._direct_tools and handler.tool_calls.failed_words == str(output):
            raise NoAnswer


def _before(call: AgentCall, said: list[BaseMessage]) -> list[BaseMessage]:
    """What was said before a run: not its own turn, kept by an attempt that died a moment later."""
    own = call.resumed and len(said) > 1 and said[-2].id == call.run_id
    return said[:-2] if own else said


def takes_history(executor: Any) -> bool:
    """Whether its prompt has a place for what was said before."""
    prompts = introspection.find_all(executor, BasePromptTemplate)  # type: ignore[type-abstract]
    return any("chat_history" in (*p.input_variables, *p.optional_variables) for p in prompts)


def _wants_text(executor: Any) -> bool:
    """A prompt that is one text has what was said as text, too."""
    prompts = introspection.find_all(executor, StringPromptTemplate)  # type: ignore[type-abstract]
    return any("chat_history" in prompt.input_variables for prompt in prompts)


def _as_messages(steps: Sequence[AgentStep]) -> list[BaseMessage]:
    """A turn as the model would read it: tool messages where it sent tool calls, else text."""
    messages: list[BaseMessage] = []
    for step in steps:
        sent = getattr(step.action, "message_log", None)
        if not sent:
            messages += _as_text(step.action, step.observation)
            continue
        messages += [message for message in sent if message not in messages]
        call_id = getattr(step.action, "tool_call_id", None)
        text, name = str(step.observation), step.action.tool
        # An agent that calls functions, as OpenAI had them first, has no ids of calls.
        result = ToolMessage(text, tool_call_id=call_id) if call_id else None
        messages.append(result or FunctionMessage(content=text, name=name))
    return messages


def _as_text(action: AgentAction, observation: Any) -> list[BaseMessage]:
    told = f"Observation: {observation}\n{_CONCLUDE}"
    return [AIMessage(action.log), HumanMessage(told)]
