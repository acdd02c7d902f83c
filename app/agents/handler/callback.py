"""The LangChain callback handler: turns callbacks into facts about the run.

It is synchronous and `run_inline`: LangChain calls it in order and in the run's context. Sync and
async tools therefore see what `on_tool_start` sets. It only dispatches: `CallTree` places each
call, `TurnCounter` counts, `Limits` decides, and `ModelCalls` and `ToolCalls` emit facts.

It also rejects steps beyond the limit and incomplete answers. It raises through LangChain, before
a model call or a tool starts.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec
from uuid import UUID

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import LLMResult
from langgraph.errors import GraphInterrupt

from app.agents.errors import CeilingReached, IncompleteAnswer
from app.agents.handler.call_tree import (
    AgentRun,
    Branch,
    CallTree,
    Place,
    enclosing_agent,
    enclosing_tool,
)
from app.agents.handler.interceptor import CallInterceptor, RunControls
from app.agents.handler.library_patches import InterceptingHandler, install_patches
from app.agents.handler.limits import Limits, Verdict
from app.agents.handler.model_calls import ModelCalls, iteration_of
from app.agents.handler.node_outputs import messages_in, output_of
from app.agents.handler.node_retries import Policies
from app.agents.handler.pending_model_call import PendingModelCall, bound_tools, current_model_call
from app.agents.handler.tool_calls import ToolCalls
from app.agents.handler.tool_guards import ToolGuards
from app.agents.handler.turns import TurnCounter
from app.runs.model import CallOutcome, Limit
from app.runs.ports import AgentCall

# AgentExecutor runs these instead of a tool if a turn was unusable or named an unknown tool.
PARSE_ERROR_TOOL = "_Exception"
UNKNOWN_TOOL = "invalid_tool"
_SILENT = "nostream"

P = ParamSpec("P")


def _fault_counted(callback: Callable[P, None]) -> Callable[P, None]:
    """Count our own faults, so that they never break the run. Let rejections through."""

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


class RunHandler(InterceptingHandler):
    """The handler of one run.

    `tools` and `output_tools` are the names that the agent may call. Without `guards` it only
    watches. `limit_nodes` are the nodes of LangChain's own limits, and `limit_messages` are the
    messages that they added. `interrupted` are the agents that stopped to ask a human.
    """

    run_inline = True
    raise_error = True
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
        guards: ToolGuards | None = None,
        policies: Policies | None = None,
        limit_nodes: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        install_patches()
        self.call = call
        self.run_fields = {"run_id": call.run_id, "agent": agent}
        self.clock = clock
        self.tree = CallTree(agent)
        self.limit_messages: list[BaseMessage] = []
        self._limit_nodes = limit_nodes
        self.tool_calls = ToolCalls(call, self.run_fields, clock, self.tree)
        self.turns = TurnCounter(
            self.tree,
            call.emit,
            self.run_fields,
            clock,
            tools,
            output_tools,
            self.tool_calls.reject,
        )
        self.turns.resume_at(call.iterations)
        self.models = ModelCalls(call, self.run_fields, clock, enforces=guards is not None)
        self.limits = Limits(
            call, self.run_fields, clock, self.tree, self.turns, enforces=guards is not None
        )
        self.controls = RunControls(self.turns, self.limits, self.models, guards, policies or {})
        self.interrupted = self.controls.interrupted

    def interceptor(self, parent_id: UUID | None) -> CallInterceptor:
        """Return the interceptor of a call inside that chain or tool call."""
        return CallInterceptor(self.controls, self.tree.place(parent_id))

    @_fault_counted
    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: Sequence[str] | None = None,
        metadata: dict[str, Any] | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """A chain starts: an agent's run, one of its steps, or a chain in between."""
        branch = self.tree.begin(run_id, parent_run_id, name, tags or (), metadata or {}, inputs)
        if branch is not None and self.turns.runs_without_model(branch):
            self.limits.step_begins(branch)
            self.turns.step_begins(branch)

    @_fault_counted
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A chain ended. Turns are counted at the end of their step."""
        ended = self.tree.end(run_id)
        if isinstance(ended, Branch):
            self.turns.branch_ended(ended, outputs)
            if self.limits.final_message is not None:
                self.limits.update_final_message(messages_in(outputs))
            if ended.node in self._limit_nodes and enclosing_tool(ended) is None:
                self.limit_messages += (m for m in messages_in(outputs) if isinstance(m, AIMessage))
            ended.reply = ended.inputs = None  # free long texts
        elif isinstance(ended, AgentRun):
            self._agent_ended(ended, CallOutcome.COMPLETED)

    def release(self) -> None:
        """The run is over: release all its messages."""
        self.turns.release()
        self.models.latest = None
        self.models.open.clear()
        self.limits.final_message = None
        self.limit_messages.clear()

    @_fault_counted
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A chain raised: it failed, asked a human, or handed over to another agent."""
        ended = self.tree.end(run_id)
        if isinstance(ended, Branch):
            ended.agent.interrupted = ended.agent.interrupted or isinstance(error, GraphInterrupt)
            ended.agent.failed[ended.key] = (ended.attempts, ended.failure)
            output = output_of(error)
            if output is not None:
                self.turns.branch_ended(ended, output)
        elif isinstance(ended, AgentRun):
            self._agent_failed(ended, error)

    def _agent_failed(self, agent: AgentRun, error: BaseException) -> None:
        if not isinstance(error, asyncio.CancelledError):
            handed_over = output_of(error) is not None
            self._agent_ended(agent, CallOutcome.COMPLETED if handed_over else CallOutcome.FAILED)
        elif not self.call.stopping():  # otherwise the end of the run closes open calls
            self._agent_ended(agent, CallOutcome.CANCELLED)

    def _agent_ended(self, agent: AgentRun, outcome: CallOutcome) -> None:
        agent.reply = agent.last_reply = None
        if agent.interrupted:
            self.interrupted.add(agent.name)
            outcome = CallOutcome.INTERRUPTED
        else:
            self.interrupted.discard(agent.name)
        self.tool_calls.agent_ended(agent, outcome)

    @_fault_counted
    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: Sequence[str] | None = None,
        metadata: dict[str, Any] | None = None,
        invocation_params: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """An agent, or one of its helpers, calls a chat model."""
        call = current_model_call.get()
        if call is None or call.call_ids:  # the call did not go through our patched methods
            call_options = {**(invocation_params or {}), **(options or {})}
            call = self._unintercepted_call(parent_run_id, call_options)
        prompt = messages[0] if messages else ()
        self._model_starts(run_id, call, prompt, metadata or {}, silent=_SILENT in (tags or ()))

    @_fault_counted
    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: Sequence[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """An agent calls a text completion model."""
        call = self._unintercepted_call(parent_run_id, {})
        prompt = [HumanMessage(text) for text in prompts[:1]]
        self._model_starts(run_id, call, prompt, metadata or {}, silent=_SILENT in (tags or ()))

    def _unintercepted_call(
        self, parent_id: UUID | None, options: dict[str, Any]
    ) -> PendingModelCall:
        """Admit a call that no interceptor handles. At the limit it is rejected."""
        call = PendingModelCall(None, bound_tools(options), options, self.tree.place(parent_id))
        if self.controls.admit(call) is not Verdict.MAKE:
            self.limits.stop(Limit.ITERATIONS)
        return call

    def _model_starts(
        self,
        run_id: UUID,
        call: PendingModelCall,
        messages: Sequence[BaseMessage],
        metadata: dict[str, Any],
        *,
        silent: bool,
    ) -> None:
        place: Place | None = call.place
        assert place is not None
        self.limits.count(call)
        parent_id = self.tool_calls.parent_of_calls(place)
        iteration = iteration_of(place, self.turns.iterations)
        self.models.start(run_id, call, messages, metadata, parent_id, iteration, silent=silent)

    @_fault_counted
    def on_llm_new_token(self, token: Any, *, run_id: UUID, chunk: Any = None, **_: Any) -> None:
        """A streamed model call produced a token."""
        self.models.token(run_id, chunk)

    @_fault_counted
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """A model replied."""
        ended = self.models.end(run_id, response)
        if ended is not None and ended.reply is not None:
            call = ended.pending
            flags = {"helper": call.helper, "last": call.last}
            self.turns.model_replied(ended.reply, call.tools, ended.place, **flags)

    @_fault_counted
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A model raised."""
        self.models.fail(run_id, error)

    @_fault_counted
    def on_agent_action(
        self, action: Any, *, run_id: UUID, metadata: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """An AgentExecutor acts on a turn of its model."""
        agent = self.tree.agent(run_id, metadata or {})
        agent.is_executor = True
        self.turns.executor_acted(agent, action)

    @_fault_counted
    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        inputs: dict[str, Any] | None = None,
        tool_call_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """A tool starts, perhaps on another thread."""
        name = str((serialized or {}).get("name") or "unknown")
        place = self.tree.place(parent_run_id)
        if name == PARSE_ERROR_TOOL:
            self.turns.unusable_turn(enclosing_agent(place) or place)
        if name in (PARSE_ERROR_TOOL, UNKNOWN_TOOL):
            return
        self.turns.tool_begins(place, name, tool_call_id)
        arguments = inputs if inputs is not None else input_str
        iteration = iteration_of(place, self.turns.iterations) - 1
        self.tool_calls.start(run_id, name, arguments, place, iteration, tool_call_id)

    @_fault_counted
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool returned a result."""
        self.tree.end(run_id)
        self.models.record_result(output)
        self.tool_calls.end(run_id, output)

    @_fault_counted
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool raised."""
        self.tree.end(run_id)
        self.tool_calls.fail(run_id, error)
