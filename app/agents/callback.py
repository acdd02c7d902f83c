"""The LangChain callback handler: what LangChain calls back becomes facts about the run.

It is synchronous and `run_inline`: called in order and in the run's own context, so that what it
sets in `on_tool_start` is seen inside sync and async tools. It only passes on: the tree knows
where a call stands, `Turns` what counts, `Limits` what may be asked, and the two kinds of calls
report themselves.

It also refuses: a step beyond the limit, and an answer that is broken. A refusal is raised
through LangChain, before a model is asked or a tool is run.
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

from app.agents.call_tree import AgentRun, Branch, CallTree, Place, enclosing_agent, enclosing_tool
from app.agents.errors import CeilingReached, IncompleteAnswer
from app.agents.interceptor import CallInterceptor, RunControls
from app.agents.library_patches import InterceptingHandler, install_patches
from app.agents.limits import Limits, Verdict
from app.agents.model_calls import ModelCalls, iteration_of
from app.agents.node_outputs import messages_in, output_of
from app.agents.node_retries import Policies
from app.agents.pending_model_call import PendingModelCall, asking, bound_tools
from app.agents.tool_calls import ToolCalls
from app.agents.tool_guards import ToolGuards
from app.agents.turns import TurnCounter
from app.runs.model import CallOutcome, Limit
from app.runs.ports import AgentCall

# What AgentExecutor runs in place of a tool when a turn was unusable or named no known tool.
PARSE_ERROR_TOOL = "_Exception"
UNKNOWN_TOOL = "invalid_tool"
_SILENT = "nostream"

P = ParamSpec("P")


def _guarded(callback: Callable[P, None]) -> Callable[P, None]:
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


class RunHandler(InterceptingHandler):
    """One for each run.

    `tools` and `output_tools` are the names the agent may call. Without `guards` it only watches.
    `limit_nodes` are the nodes by which a library's own limit speaks, and `library_limit` is what
    one said. `waiting` are the agents that stopped to ask a human.
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
        self.about = {"run_id": call.run_id, "agent": agent}
        self.clock = clock
        self.tree = CallTree(agent)
        self.library_limit: list[BaseMessage] = []
        self._limit_nodes = limit_nodes
        self.tool_calls = ToolCalls(call, self.about, clock, self.tree)
        self.turns = TurnCounter(
            self.tree, call.emit, self.about, clock, tools, output_tools, self.tool_calls.reject
        )
        self.turns.go_on_from(call.iterations)
        self.models = ModelCalls(call, self.about, clock, refuses=guards is not None)
        self.limits = Limits(
            call, self.about, clock, self.tree, self.turns, refuses=guards is not None
        )
        self.calls = RunControls(self.turns, self.limits, self.models, guards, policies or {})
        self.waiting = self.calls.waiting

    def around(self, parent_id: UUID | None) -> CallInterceptor:
        """What stands around a call that is made inside that chain or tool call."""
        return CallInterceptor(self.calls, self.tree.place(parent_id))

    @_guarded
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
        """A chain begins: the run of an agent, a step of it, or something in between."""
        branch = self.tree.begin(run_id, parent_run_id, name, tags or (), metadata or {}, inputs)
        if branch is not None and self.turns.is_unseen(branch):
            self.limits.step_begins(branch)
            self.turns.step_begins(branch)

    @_guarded
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A chain ended: turns are counted at the end of the step that made them."""
        ended = self.tree.end(run_id)
        if isinstance(ended, Branch):
            self.turns.branch_ended(ended, outputs)
            if self.limits.last_words is not None:
                self.limits.restate(messages_in(outputs))
            if ended.node in self._limit_nodes and enclosing_tool(ended) is None:
                self.library_limit += (m for m in messages_in(outputs) if isinstance(m, AIMessage))
            ended.said = ended.inputs = None  # what was said may be long
        elif isinstance(ended, AgentRun):
            self._agent_ended(ended, CallOutcome.COMPLETED)

    def release(self) -> None:
        """The run is over: hold nothing of what was said in it."""
        self.turns.release()
        self.models.latest = None
        self.models.open.clear()
        self.limits.last_words = None
        self.library_limit.clear()

    @_guarded
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A chain raised: it failed, asks a human, or handed over to another agent."""
        ended = self.tree.end(run_id)
        if isinstance(ended, Branch):
            ended.agent.waits = ended.agent.waits or isinstance(error, GraphInterrupt)
            ended.agent.failed[ended.key] = (ended.attempts, ended.failure)
            given = output_of(error)
            if given is not None:
                self.turns.branch_ended(ended, given)
        elif isinstance(ended, AgentRun):
            self._agent_failed(ended, error)

    def _agent_failed(self, agent: AgentRun, error: BaseException) -> None:
        if not isinstance(error, asyncio.CancelledError):
            handed_over = output_of(error) is not None
            self._agent_ended(agent, CallOutcome.COMPLETED if handed_over else CallOutcome.FAILED)
        elif not self.call.stopping():  # else the end of the run closes what is open
            self._agent_ended(agent, CallOutcome.CANCELLED)

    def _agent_ended(self, agent: AgentRun, outcome: CallOutcome) -> None:
        agent.said = agent.last_said = None
        if agent.waits:
            self.waiting.add(agent.name)
            outcome = CallOutcome.INTERRUPTED
        else:
            self.waiting.discard(agent.name)
        self.tool_calls.agent_ended(agent, outcome)

    @_guarded
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
        """An agent, or a helper of one, asks a chat model."""
        about = metadata or {}
        call = asking.get()
        if call is None or call.call_ids:  # it was not called by the methods that we stand around
            given = {**(invocation_params or {}), **(options or {})}
            call = self._asking(parent_run_id, given)
        said = messages[0] if messages else ()
        self._model_starts(run_id, call, said, about, silent=_SILENT in (tags or ()))

    @_guarded
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
        """An agent asks a model that completes text."""
        call = self._asking(parent_run_id, {})
        said = [HumanMessage(text) for text in prompts[:1]]
        self._model_starts(run_id, call, said, metadata or {}, silent=_SILENT in (tags or ()))

    def _asking(self, parent_id: UUID | None, options: dict[str, Any]) -> PendingModelCall:
        """A call that nothing of ours stands around: at the limit it is refused."""
        call = PendingModelCall(None, bound_tools(options), options, self.tree.place(parent_id))
        if self.calls.ask(call) is not Verdict.MAKE:
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
        self.limits.made(call)
        parent_id = self.tool_calls.parent_of_calls(place)
        iteration = iteration_of(place, self.turns.iterations)
        self.models.start(run_id, call, messages, metadata, parent_id, iteration, silent=silent)

    @_guarded
    def on_llm_new_token(self, token: Any, *, run_id: UUID, chunk: Any = None, **_: Any) -> None:
        """A streamed model call gave a token."""
        self.models.token(run_id, chunk)

    @_guarded
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """A model answered."""
        ended = self.models.end(run_id, response)
        if ended is not None and ended.reply is not None:
            call = ended.asking
            about = {"helper": call.helper, "last": call.last}
            self.turns.answered(ended.reply, call.tools, ended.place, **about)

    @_guarded
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A model raised."""
        self.models.fail(run_id, error)

    @_guarded
    def on_agent_action(
        self, action: Any, *, run_id: UUID, metadata: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """An AgentExecutor acts on a turn of its model."""
        agent = self.tree.agent(run_id, metadata or {})
        agent.acts = True
        self.turns.acted_on(agent, action)

    @_guarded
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
        """A tool begins to work, perhaps on another thread."""
        name = str((serialized or {}).get("name") or "unknown")
        place = self.tree.place(parent_run_id)
        if name == PARSE_ERROR_TOOL:
            self.turns.unusable(enclosing_agent(place) or place)
        if name in (PARSE_ERROR_TOOL, UNKNOWN_TOOL):
            return
        self.turns.tool_begins(place, name, tool_call_id)
        arguments = inputs if inputs is not None else input_str
        iteration = iteration_of(place, self.turns.iterations) - 1
        self.tool_calls.start(run_id, name, arguments, place, iteration, tool_call_id)

    @_guarded
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool gave a result."""
        self.tree.end(run_id)
        self.models.keep_result(output)
        self.tool_calls.end(run_id, output)

    @_guarded
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool raised."""
        self.tree.end(run_id)
        self.tool_calls.fail(run_id, error)
