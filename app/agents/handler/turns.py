"""Decides which model calls are turns of the agent, and counts the longest chain of turns.

A call is a turn if its message leaves the node that made it, if a tool that it names runs, or if
an AgentExecutor acts on it. Any other call is a helper's, such as a summary that a hook asks for.
This is known only after the reply; until then an unmarked call is presumed to be a turn.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from langchain_core.messages import AIMessage, BaseMessage, ToolCall, ToolMessage

from app.agents.handler.call_tree import (
    AgentRun,
    Branch,
    CallTree,
    Place,
    asked_by_tool,
    enclosing_agent,
    enclosing_tool,
)
from app.agents.handler.node_outputs import has_output, messages_in
from app.agents.handler.pending_model_call import PendingModelCall, is_marked_helper
from app.agents.handler.tool_context import OpenToolCall
from app.runs.events import Emit, IterationCounted

# After this many consecutive steps without a model call, each step counts as a turn.
MAX_STEPS_WITHOUT_MODEL = 25


@dataclass(slots=True, eq=False)
class ModelReply:
    """A model's reply that may become a turn; `tools` are the tools bound to its call."""

    calls: list[ToolCall]
    text: str
    tools: frozenset[str]
    place: Place
    helper: bool
    last: bool = False
    counted: bool = False


@dataclass(slots=True)
class TurnCounter:
    """Counts the turns of one run.

    `tools` are the root agent's tools known at start, and `output_tools` those for structured
    output. `reject` reports the name of a tool that the agent called and does not have.
    """

    tree: CallTree
    emit: Emit
    run_fields: Mapping[str, str]
    clock: Callable[[], float]
    tools: frozenset[str]
    output_tools: frozenset[str]
    reject: Callable[[str], None]
    iterations: int = 0
    # Replies by message id, and by the ids of their tool calls.
    _replies: dict[str, ModelReply] = field(default_factory=dict)
    _replies_by_call: dict[str, ModelReply] = field(default_factory=dict)
    # Messages that node code created without a model call, by identity.
    _raw_messages: dict[int, AIMessage] = field(default_factory=dict)
    _known_ids: set[str] = field(default_factory=set)

    def resume_at(self, iterations: int) -> None:
        """Continue from the turns of an earlier attempt."""
        self.iterations = self.tree.root.turns_done = iterations

    def release(self) -> None:
        """Release all messages."""
        self.tree.root.reply = self.tree.root.last_reply = None
        for messages in (self._replies, self._replies_by_call, self._raw_messages):
            messages.clear()

    def mark_known(self, messages: Iterable[BaseMessage]) -> None:
        """Mark messages that existed before this run."""
        self._known_ids.update(message.id for message in messages if message.id)

    def reject_unknown(self, names: Iterable[str]) -> None:
        """Report each of these tools that the root agent does not have."""
        names_to_check = [name for name in names if name not in self.output_tools]
        self._reject_unknown(self.tree.root, names_to_check, frozenset())

    def is_helper(self, model_call: PendingModelCall, place: Place) -> bool:
        """Whether a call that starts is presumed to be a helper's."""
        agent, node = enclosing_agent(place), _node(place)
        if is_marked_helper(model_call.options, node):
            return True
        if agent is None:
            return False
        usual = agent.usual_tools.get(node)
        if usual is None and node in agent.internal_nodes:
            return True
        if not usual and not model_call.tools:  # no tools are known to compare
            return False
        known = [agent.tools, self.output_tools]
        if agent is self.tree.root:
            known.append(self.tools)
        if usual:
            known.append(usual)
        return any(known) and all(map(model_call.tools.isdisjoint, known))

    def runs_without_model(self, branch: Branch) -> bool:
        """Whether its agent takes turns without LangChain model calls; never so inside a tool."""
        agent = branch.agent
        if enclosing_tool(branch) is not None:
            return False
        return agent.steps_without_model > MAX_STEPS_WITHOUT_MODEL or branch.node in agent.raw_nodes

    def step_begins(self, branch: Branch) -> None:
        """A node without model calls starts: after too many such steps, each counts as a turn."""
        if branch.agent.steps_without_model > MAX_STEPS_WITHOUT_MODEL:
            branch.agent.steps_without_model -= 1  # parallel branches count once
            self._count(branch, 0)

    def model_call_started(self, place: Place, *, helper: bool) -> None:
        """A model call starts. If its node returned a text in an earlier step, that was a turn."""
        part: Place | None = place
        while part is not None:
            if isinstance(part, Branch):
                part.called_model = True
            elif isinstance(part, AgentRun):
                part.steps_without_model = 0
            part = part.within
        if isinstance(place, Branch) and not helper and _repeats_draft(place):
            del place.agent.drafts[place.node]
            self._count(place, 0)

    def model_replied(
        self, message: AIMessage, tools: frozenset[str], place: Place, *, helper: bool, last: bool
    ) -> None:
        """A model replied. The end of its node shows whether the reply is a turn."""
        reply = ModelReply(message.tool_calls, "", tools, place, helper, last)
        if message.id:
            self._replies[message.id] = reply
        if helper or last:
            return
        if isinstance(place, AgentRun | Branch):
            place.reply = reply
        agent = enclosing_agent(place)
        if agent is not None:
            if agent.last_reply is not None:
                agent.last_reply.text = ""  # keep only the latest long text
            if not message.tool_calls:
                reply.text = str(message.text)
            agent.last_reply = reply
        for call in message.tool_calls:
            if call["id"]:
                self._replies_by_call[call["id"]] = reply

    def branch_ended(self, branch: Branch, output: Any) -> None:
        """A node ended. The messages that leave it are turns."""
        if branch.reply is not None:
            # `is_helper` ignores this once a message leaves the node: it then has usual tools.
            branch.agent.internal_nodes.add(branch.node)
        messages = messages_in(output)
        ai_messages = [message for message in messages if isinstance(message, AIMessage)]
        if not ai_messages:
            return
        answered: set[str] = set()
        if len(messages) > len(ai_messages):
            answered.update(m.tool_call_id for m in messages if isinstance(m, ToolMessage))
        for message in ai_messages:
            reply = self._replies.get(message.id or "")
            if reply is None and self._is_new(message, branch):
                reply = self._reply_behind(message, branch, answered)
            if reply is not None and reply.place is branch and not (reply.helper or reply.last):
                self._message_left_node(branch, reply, message, answered, output)

    def _reply_behind(
        self, message: AIMessage, branch: Branch, answered: set[str]
    ) -> ModelReply | None:
        """Return the reply that node code rewrote. Without any model call, count the turn here."""
        if branch.reply is not None:
            return cast(ModelReply, branch.reply)
        open_calls = [call["name"] for call in message.tool_calls if call["id"] not in answered]
        if open_calls and not branch.called_model:
            branch.agent.raw_nodes.add(branch.node)
            self._count(branch, len(open_calls))
            self._reject_unknown(branch, open_calls, frozenset())
        return None

    def _message_left_node(
        self,
        branch: Branch,
        reply: ModelReply,
        message: AIMessage,
        answered: set[str],
        output: Any,
    ) -> None:
        branch.agent.usual_tools.setdefault(branch.node, set()).update(reply.tools)
        if not message.tool_calls:
            branch.agent.drafts[branch.node] = branch.agent.step
        elif not reply.counted:
            # Not a turn: the node itself answers all calls and returns structured output.
            open_calls = [call for call in message.tool_calls if call["id"] not in answered]
            if open_calls or not has_output(output):
                self._count_reply(branch, reply, [call["name"] for call in open_calls])

    def tool_begins(self, place: Place, name: str, tool_call_id: str | None) -> None:
        """A tool starts: the reply that named it is a turn. Count it once."""
        agent = enclosing_agent(place)
        reply = self._replies_by_call.get(tool_call_id or "")
        if reply is None and agent is not None:
            reply = agent.last_reply
            if reply is None or not _names(reply, name):
                return
            agent.drafts.pop(_node(reply.place), None)
        if (
            reply is None
            or reply.counted
            or enclosing_tool(place) is not enclosing_tool(reply.place)
        ):
            return
        names = [call["name"] for call in reply.calls] or [name]
        if set(names) <= self.output_tools:
            return
        if agent is not None:
            agent.usual_tools.setdefault(_node(reply.place), set()).update(reply.tools)
        self._count_reply(place, reply, names)

    def executor_acted(self, agent: AgentRun, action: Any) -> None:
        """An AgentExecutor acts: count the reply that asked for the action as a turn."""
        log = getattr(action, "message_log", None)
        reply = self._replies.get(log[-1].id or "") if log else agent.last_reply
        if reply is None:  # a text completion model, or a call outside LangChain
            self._count(agent, 1)
            self._reject_unknown(agent, [action.tool], frozenset())
        elif not reply.counted:
            agent.usual_tools.setdefault("", set()).update(reply.tools)
            names = [call["name"] for call in reply.calls] or [action.tool]
            self._count_reply(agent, reply, names)

    def unusable_turn(self, place: Place) -> None:
        """Count a turn whose reply could not be parsed."""
        self._count(place, 0)

    def _count_reply(self, place: Place, reply: ModelReply, names: list[str]) -> None:
        """Count a reply as a turn."""
        reply.counted = True
        # Several replies may have the same tool call: only this one counts for it.
        self._replies_by_call.update({call["id"]: reply for call in reply.calls if call["id"]})
        names_to_check = [name for name in names if name not in self.output_tools]
        self._count(place, len(names_to_check))
        self._reject_unknown(place, names_to_check, reply.tools)

    def _reject_unknown(self, place: Place, names: list[str], bound: frozenset[str]) -> None:
        agent = enclosing_agent(place)
        if agent is None or enclosing_tool(place) is not None:
            return
        # The tools of the root agent are known at start; those of others only from their calls.
        own = agent is self.tree.root or not (bound or agent.tools)
        known = (bound, agent.tools, self.tools) if own else (bound, agent.tools)
        for name in names if any(known) else ():
            if not any(name in tools for tools in known):
                self.reject(name)

    def _count(self, place: Place, tool_calls: int) -> None:
        if isinstance(place, OpenToolCall):
            return
        place.add_turn()
        if enclosing_tool(place) is not None:
            agent = asked_by_tool(place)
            if agent is not None and agent.sub_agent is not None:
                tally = agent.sub_agent.tally
                tally.iterations = max(tally.iterations, place.depth)
        elif place.depth > self.iterations:
            self.iterations = place.depth
            self.emit(
                IterationCounted(
                    **self.run_fields,
                    at=self.clock(),
                    iteration=self.iterations,
                    tool_calls=tool_calls,
                )
            )

    def _is_new(self, message: AIMessage, branch: Branch) -> bool:
        """Whether this node created the message. True only once for each message."""
        if message.id in self._known_ids or id(message) in self._raw_messages:
            return False
        if any(message is known for known in messages_in(branch.inputs)):
            return False
        self._raw_messages[id(message)] = message
        return True


def _names(reply: ModelReply, tool: str) -> bool:
    """Whether a reply names a tool: in a call, or in its text if it has no calls."""
    if reply.calls:
        return any(call["name"] == tool for call in reply.calls)
    return tool in reply.text


def _repeats_draft(branch: Branch) -> bool:
    """Whether its node returned a text in an earlier step. Parallel branches do not count."""
    drafts = branch.agent.drafts
    return branch.node in drafts and drafts[branch.node] != branch.agent.step


def _node(place: Place) -> str:
    """Return the node that made a call; empty for an executor."""
    return place.node if isinstance(place, Branch) else ""


def depth(place: Place) -> int:
    """Return the length of the chain of turns to a place. A tool starts its own chain."""
    return 0 if isinstance(place, OpenToolCall) else place.depth
