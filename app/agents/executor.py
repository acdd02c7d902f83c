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

from app.agents.conversations import Conversations, InMemoryThreads
from app.agents.error_translation import refusal_answer, translated_errors
from app.agents.final_answer import ask_for_final_answer, final_prompt
from app.agents.handler.callback import RunHandler
from app.agents.handler.last_turn import final_text, is_empty
from app.agents.handler.library_patches import install_patches
from app.agents.handler.streaming import handler_for, only_sub_agents
from app.agents.handler.tool_guards import ToolGuards, handled
from app.agents.inspection import introspection
from app.agents.models import upstream
from app.agents.models.message_content import blocks_of
from app.runs.errors import ModelFailed, NoAnswer, RunError
from app.runs.model import AgentAnswer, AgentInfo, Limit
from app.runs.ports import AgentCall, ThreadStore

# The instruction of the classic `generate` to a model that writes its thoughts as text.
_CONCLUDE = "Thought: I now need to return a final answer based on the previous steps."

# Parsers of agents whose model sends tool calls, so that its text is its answer.
_READS_TOOL_CALLS = (
    "ToolsAgentOutputParser",
    "OpenAIToolsAgentOutputParser",
    "OpenAIFunctionsAgentOutputParser",
)


class ExecutorAgent:
    """A copy of an executor with guarded tools and without its own limits.

    The service applies the limits. The library's own would end in an exception, or in a sentence
    that is not the agent's.
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
                # For a known method, the library answers a TimeoutError with its own sentence.
                # For an unknown one it raises.
                "early_stopping_method": "watchkeeper",
            }
        )
        # `astream` serializes the executor for callbacks in each run: do it once.
        serialized = self._executor.to_json()
        object.__setattr__(self._executor, "to_json", lambda: serialized)
        self._tools = frozenset(info.tools)
        self._conversations = Conversations(info.name, InMemoryThreads())
        self._history_is_text = _wants_text(executor)
        # If the agent parses the model's text (ReAct), that text is not its answer.
        parsers = [
            parser
            for parser in (
                *introspection.find_all(executor.agent, BaseOutputParser),  # type: ignore[type-abstract]
                getattr(executor.agent, "output_parser", None),  # of the oldest agents
            )
            if any(cls.__name__.endswith("AgentOutputParser") for cls in type(parser).__mro__)
        ]
        self._answers_in_text = any(
            type(parser).__name__ in _READS_TOOL_CALLS for parser in parsers
        )
        self._parser = parsers[0] if parsers and not self._answers_in_text else None
        self._direct_tools = {tool.name for tool in executor.tools if tool.return_direct}
        self._guards = ToolGuards()
        self._upstream = upstream.current()
        self._model = introspection.find(executor, BaseLanguageModel)  # type: ignore[type-abstract]

    def use_store(self, threads: ThreadStore, steps: object = None) -> None:
        """Store conversations in `threads`. An executor has no checkpoints."""
        self._conversations = Conversations(self.info.name, threads)

    async def answer(self, call: AgentCall) -> AgentAnswer:
        """Run the executor until it ends, or until a limit stops it."""
        upstream.use(self._upstream)
        if not self._answers_in_text and call.on_token is not None:
            call = replace(call, on_token=only_sub_agents(call.on_token))
        handler = handler_for(call, self.info.name, self._tools, guards=self._guards)
        before = _before(call, await self._conversations.history(call.thread_id))
        with translated_errors(handler):
            answer = await self._answer(call, handler, before)
        exchange = [HumanMessage(call.question, id=call.run_id), AIMessage(answer.text)]
        await self._conversations.store(call, answer, [*before, *exchange])
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
            if (refusal := refusal_answer(raised)) is not None:
                return refusal
            if not handler.limits.cut:
                raise
            output = None
        if output is None:
            return await self._at_limit(handler, turn)
        # The output may be a list of content blocks.
        reply = AIMessage(output) if isinstance(output, list) else AIMessage(str(output))
        if is_empty(reply):
            raise ModelFailed
        limit = handler.limits.reached_limit
        return AgentAnswer(str(reply.text), output=blocks_of(reply), limit=limit)

    async def _at_limit(self, handler: RunHandler, turn: list[BaseMessage]) -> AgentAnswer:
        latest = handler.models.latest
        prompt = (
            [*latest.messages, *turn] if latest is not None and turn else final_prompt(handler, [])
        )
        limit = handler.limits.reached_limit or Limit.ITERATIONS
        reply = await ask_for_final_answer(handler, self._model, prompt, limit=limit)
        text = self._parsed(str(reply.text if isinstance(reply, AIMessage) else reply))
        return AgentAnswer(text or handler.limits.fixed_sentence, limit=limit)

    def _parsed(self, text: str) -> str:
        """Parse the final text with the agent's own parser; empty if it requests a tool."""
        if self._parser is None:
            return text.strip() if self._answers_in_text else final_text(text)
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
        """Return the output, or None and the last turn if the limit stopped it.

        The executor yields the actions of a turn before it runs the tools, and their results
        before it calls the model again.
        """
        turn, open_calls = list[AgentStep](), 0
        history = get_buffer_string(before) if self._history_is_text else before
        inputs = {"input": call.question, "chat_history": history}
        stream = self._executor.astream(inputs, {"callbacks": [handler]})
        async with aclosing(stream):
            async for chunk in stream:
                if "output" in chunk:
                    self._check_direct_result(handler, turn, chunk["output"])
                    return chunk["output"], []
                turn = turn if open_calls else []
                open_calls += len(chunk.get("actions", ())) - len(chunk.get("steps", ()))
                open_calls = max(0, open_calls)  # a parse error is a step without an action
                turn += chunk.get("steps", ())
                at_limit = handler.turns.iterations >= call.iteration_limit
                if at_limit and turn and not open_calls:
                    return None, _as_messages(turn)
        return "", []

    def _check_direct_result(
        self, handler: RunHandler, turn: Sequence[AgentStep], output: object
    ) -> None:
        """Raises NoAnswer if the output is the failure text of a return_direct tool."""
        last = turn[-1].action.tool if turn else None
        if last in self._direct_tools and handler.tool_calls.latest_failure == str(output):
            raise NoAnswer


def _before(call: AgentCall, history: list[BaseMessage]) -> list[BaseMessage]:
    """Return the history without this run's own turn, which a crashed attempt may have stored."""
    own = call.resumed and len(history) > 1 and history[-2].id == call.run_id
    return history[:-2] if own else history


def takes_history(executor: Any) -> bool:
    """Whether its prompt takes `chat_history`."""
    prompts = introspection.find_all(executor, BasePromptTemplate)  # type: ignore[type-abstract]
    return any("chat_history" in (*p.input_variables, *p.optional_variables) for p in prompts)


def _wants_text(executor: Any) -> bool:
    """Whether its prompt takes `chat_history` as one string."""
    prompts = introspection.find_all(executor, StringPromptTemplate)  # type: ignore[type-abstract]
    return any("chat_history" in prompt.input_variables for prompt in prompts)


def _as_messages(steps: Sequence[AgentStep]) -> list[BaseMessage]:
    """Return a turn as messages: tool messages if the model sent tool calls, else text."""
    messages: list[BaseMessage] = []
    for step in steps:
        sent = getattr(step.action, "message_log", None)
        if not sent:
            messages += _as_text(step.action, step.observation)
            continue
        messages += [message for message in sent if message not in messages]
        call_id = getattr(step.action, "tool_call_id", None)
        text, name = str(step.observation), step.action.tool
        # OpenAI's older function calls have no call ids.
        result = ToolMessage(text, tool_call_id=call_id) if call_id else None
        messages.append(result or FunctionMessage(content=text, name=name))
    return messages


def _as_text(action: AgentAction, observation: Any) -> list[BaseMessage]:
    text = f"Observation: {observation}\n{_CONCLUDE}"
    return [AIMessage(action.log), HumanMessage(text)]
