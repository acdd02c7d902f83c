"""Serves the classic AgentExecutor of langchain-classic, which is never imported here."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from langchain_core.agents import AgentAction, AgentStep
from langchain_core.language_models import BaseLanguageModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    ToolMessage,
    get_buffer_string,
)
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.prompts import BasePromptTemplate, StringPromptTemplate

from app.agents import anatomy
from app.agents.callback import RunHandler
from app.agents.conversations import Conversations, InMemory
from app.agents.failure import blamed, stops_at_ceiling, whole_answer
from app.agents.final import last_answer
from app.agents.speaking import handler_for, only_sub_agents
from app.agents.tools import guarded
from app.runs.model import AgentAnswer, AgentInfo
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
        self.info = info
        self.verbose = bool(executor.verbose or any(tool.verbose for tool in executor.tools))
        self._executor = executor.model_copy(
            update={
                "tools": [guarded(tool) for tool in executor.tools],
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
        self._conversations = Conversations(info.name, InMemory())
        self._history_is_text = _wants_text(executor)
        # The text of an agent that is parsed (ReAct) is not its answer.
        parsers = anatomy.find_all(executor.agent, BaseOutputParser)  # type: ignore[type-abstract]
        self._speaks = any(type(parser).__name__ in _READS_TOOL_CALLS for parser in parsers)
        self._model = anatomy.find(executor, BaseLanguageModel)  # type: ignore[type-abstract]

    def keep_in(self, threads: ThreadStore, steps: object = None) -> None:
        """Keep conversations there; an executor has no steps that could be kept."""
        self._conversations = Conversations(self.info.name, threads)

    async def answer(self, call: AgentCall) -> AgentAnswer:
        """Run the executor to its end, to the iteration limit or to the ceiling of model calls."""
        if not self._speaks and call.say is not None:
            call = replace(call, say=only_sub_agents(call.say))
        handler = handler_for(call, self.info.name, self._tools)
        before = _before(call, await self._conversations.so_far(call.thread_id))
        with blamed(handler):
            output, new_turn = await self._run(call, handler, before)
            if output is None:
                answer = await last_answer(call, handler, self._model, new_turn)
            else:
                # A model that answers in blocks leaves them as they are.
                text = AIMessage(output).text if isinstance(output, list) else output
                answer = whole_answer(handler, str(text))
        now = [HumanMessage(call.question, id=call.run_id), AIMessage(answer.text)]
        await self._conversations.keep(call, [*before, *now])
        return answer

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
        async with stops_at_ceiling(handler), aclosing(stream):
            async for chunk in stream:
                if "output" in chunk:
                    return chunk["output"], []
                turn = turn if open_calls else []
                open_calls += len(chunk.get("actions", ())) - len(chunk.get("steps", ()))
                open_calls = max(0, open_calls)  # a parse error is a step without an action
                turn += chunk.get("steps", ())
                if handler.iterations >= call.iteration_limit and turn and not open_calls:
                    return None, _as_messages(turn)
        return (None if handler.models.ceiling_reached else ""), []


def _before(call: AgentCall, said: list[BaseMessage]) -> list[BaseMessage]:
    """What was said before a run: not its own turn, kept by an attempt that died a moment later."""
    own = call.resumed and len(said) > 1 and said[-2].id == call.run_id
    return said[:-2] if own else said


def takes_history(executor: Any) -> bool:
    """Whether its prompt has a place for what was said before."""
    prompts = anatomy.find_all(executor, BasePromptTemplate)  # type: ignore[type-abstract]
    return any("chat_history" in (*p.input_variables, *p.optional_variables) for p in prompts)


def _wants_text(executor: Any) -> bool:
    """A prompt that is one text has what was said as text, too."""
    prompts = anatomy.find_all(executor, StringPromptTemplate)  # type: ignore[type-abstract]
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
        call_id = getattr(step.action, "tool_call_id", "")
        messages.append(ToolMessage(str(step.observation), tool_call_id=call_id))
    return messages


def _as_text(action: AgentAction, observation: Any) -> list[BaseMessage]:
    told = f"Observation: {observation}\n{_CONCLUDE}"
    return [AIMessage(action.log), HumanMessage(told)]
