"""The LangChain callback handler: what LangChain calls back becomes facts about the run.

It is synchronous and `run_inline`: called in order and in the run's own context, so that what it
sets in `on_tool_start` is seen inside sync and async tools. It alone counts iterations. Chain
callbacks are ignored: which tool call a model call belongs to is known from the context.

It also refuses: a model call beyond the run's ceiling, and an answer that is broken. A refusal
is raised through LangChain, before the call is made or a tool is run.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.outputs import LLMResult

from app.agents.inside import inside
from app.agents.model_calls import ModelCalls, in_sub_agent
from app.agents.refusal import CeilingReached, IncompleteAnswer
from app.agents.tool_calls import ToolCalls
from app.runs.events import IterationCounted
from app.runs.model import Rejection
from app.runs.ports import AgentCall

# What AgentExecutor runs in place of a tool when a turn was unusable or named no known tool.
PARSE_ERROR_TOOL = "_Exception"
UNKNOWN_TOOL = "invalid_tool"

P = ParamSpec("P")


def _watching(callback: Callable[P, None]) -> Callable[P, None]:
    """A fault of ours is counted and never breaks the run; a refusal is meant to."""

    @functools.wraps(callback)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except (CeilingReached, IncompleteAnswer):
            raise
        except Exception:  # noqa: BLE001 - watching must not break what is watched
            handler = args[0]
            assert isinstance(handler, RunHandler)
            handler.call.fault()

    return guarded


class RunHandler(BaseCallbackHandler):
    """One for each run.

    `tools` and `output_tools` are the names the agent may call. With `refuses` off it only
    watches.
    """

    run_inline = True
    raise_error = True
    ignore_chain = True
    ignore_retriever = True
    ignore_retry = True
    ignore_custom_event = True

    def __init__(
        self,
        call: AgentCall,
        agent: str,
        tools: frozenset[str] = frozenset(),
        output_tools: frozenset[str] = frozenset(),
        *,
        refuses: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.call = call
        self.about = {"run_id": call.run_id, "agent": agent}
        self.tools = tools
        self.output_tools = output_tools
        self.clock = clock
        self.iterations = call.iterations
        self.finishing = False
        self.models = ModelCalls(call, self.about, clock, refuses)
        self.tool_calls = ToolCalls(call.emit, self.about, clock, call.fence, call.operation)

    @_watching
    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """The agent, or a sub-agent, asks a chat model."""
        self._model_starts(run_id, messages[0] if messages else (), metadata or {})

    @_watching
    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """The agent asks a model that completes text."""
        self._model_starts(run_id, [HumanMessage(text) for text in prompts[:1]], metadata or {})

    def _model_starts(
        self, run_id: UUID, messages: Sequence[BaseMessage], metadata: dict[str, Any]
    ) -> None:
        tool = inside.get()
        if tool is None and self.models.turn.unusable:
            self._count(0)
        if tool is not None and (name := in_sub_agent(tool, metadata)):
            self.tool_calls.asks_agent(tool, name)
        turn = self.iterations + 1
        self.models.start(run_id, messages, metadata, turn, last=self.finishing)

    @_watching
    def on_llm_new_token(self, token: Any, *, run_id: UUID, chunk: Any = None, **_: Any) -> None:
        """A streamed model call gave a token."""
        self.models.token(run_id, chunk)

    @_watching
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """A model answered; a turn of the agent that asks for tools is an iteration."""
        message, tool = self.models.end(run_id, response)
        if tool is not None:
            tool.answered(message)
            return
        calls = message.tool_calls if message is not None else ()
        asked = [call["name"] for call in calls if call["name"] not in self.output_tools]
        if calls:
            self.models.asked = {call["id"] for call in calls}
        if asked:
            self._count(len(asked))
        # Structured output that fits ends the run; if the model is asked again, it did not fit.
        self.models.turn.unusable = bool(calls) and not asked
        for name in asked:
            self.reject_if_unknown(name)

    @_watching
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A model raised."""
        self.models.fail(run_id, error)

    @_watching
    def on_agent_action(self, action: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """An AgentExecutor acts on a turn whose model call named no tool calls (ReAct)."""
        if inside.get() is None and not self.models.turn.counted:
            self._count(1)
            self.reject_if_unknown(action.tool)

    @_watching
    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        inputs: dict[str, Any] | None = None,
        tool_call_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A tool begins to work, perhaps on another thread."""
        name = str((serialized or {}).get("name") or "unknown")
        if name == PARSE_ERROR_TOOL and inside.get() is None:
            self._count(0)
        if name not in (PARSE_ERROR_TOOL, UNKNOWN_TOOL):
            arguments = inputs if inputs is not None else input_str
            iteration = self.iterations
            self.tool_calls.start(run_id, name, arguments, iteration, tool_call_id, metadata or {})

    @_watching
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool gave a result."""
        self.tool_calls.end(run_id, output)

    @_watching
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool raised."""
        self.tool_calls.fail(run_id, error)

    def reject_if_unknown(self, name: str) -> None:
        """The model asked for this tool, which the agent may not have."""
        if self.tools and name not in self.tools and not self.finishing:
            self.tool_calls.reject(name, Rejection.UNKNOWN_TOOL)

    def _count(self, tool_calls: int) -> None:
        """Count the present turn, once, however many calls it asked for."""
        if self.models.turn.counted or self.finishing:
            return
        self.models.turn.counted = True
        self.models.basis = self.models.turn.messages
        self.iterations += 1
        self.call.emit(
            IterationCounted(
                **self.about, at=self.clock(), iteration=self.iterations, tool_calls=tool_calls
            )
        )
