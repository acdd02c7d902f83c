"""Which model calls are turns of the agent, and how long its chain of turns is.

A call is a turn when its message leaves the node that made it, when a tool that it names runs, or
when an executor acts on it. That is known only afterwards; until then a call is presumed to be a
turn, unless it says itself that it is a helper's.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from langchain_core.messages import AIMessage, BaseMessage, ToolCall, ToolMessage

from app.agents.call_tree import (
    AgentRun,
    Branch,
    CallTree,
    Place,
    asked_by_tool,
    enclosing_agent,
    enclosing_tool,
)
from app.agents.node_outputs import gives_output, messages_in
from app.agents.pending_model_call import PendingModelCall, is_marked_helper
from app.agents.tool_context import OpenToolCall
from app.runs.events import Emit, IterationCounted

# So many steps in a row an agent may make without asking a model before each counts as a turn.
QUIET_STEPS = 25


@dataclass(slots=True, eq=False)
class ModelReply:
    """A model's answer that may become a turn."""

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

    `output_tools` are the names by which the agent asks for structured output, and `reject` takes
    the name of a tool that the agent asked for and does not have.
    """

    tree: CallTree
    emit: Emit
    about: Mapping[str, str]
    clock: Callable[[], float]
    tools: frozenset[str]
    output_tools: frozenset[str]
    reject: Callable[[str], None]
    iterations: int = 0
    # Messages that models gave, by id, and by the ids of the tool calls that they ask for.
    _said: dict[str, ModelReply] = field(default_factory=dict)
    _asked: dict[str, ModelReply] = field(default_factory=dict)
    # Messages that no model call of ours gave, by identity.
    _raw: dict[int, AIMessage] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)

    def go_on_from(self, iterations: int) -> None:
        """Begin with the turns of an earlier attempt."""
        self.iterations = self.tree.root.done = iterations

    def release(self) -> None:
        """Hold no messages any more."""
        self.tree.root.said = self.tree.root.last_said = None
        for held in (self._said, self._asked, self._raw):
            held.clear()

    def know(self, messages: Iterable[BaseMessage]) -> None:
        """These messages were there before."""
        self._known.update(message.id for message in messages if message.id)

    def reject_unknown(self, names: Iterable[str]) -> None:
        """Of these tools that the agent is to call, it may not have all."""
        wanted = [name for name in names if name not in self.output_tools]
        self._reject_unknown(self.tree.root, wanted, frozenset())

    def is_helper(self, asking: PendingModelCall, place: Place) -> bool:
        """Whether a call that begins is a helper's, as far as can be said."""
        agent, node = enclosing_agent(place), _node(place)
        if is_marked_helper(asking.options, node):
            return True
        if agent is None:
            return False
        usual = agent.usual.get(node)
        if usual is None and node in agent.asides:
            return True
        if not usual and not asking.tools:  # nothing is known of the node, nor of the call
            return False
        had = [agent.tools, self.output_tools]
        if agent is self.tree.root:
            had.append(self.tools)
        if usual:
            had.append(usual)
        return any(had) and all(map(asking.tools.isdisjoint, had))

    def is_unseen(self, branch: Branch) -> bool:
        """Whether its agent works on without asking a model of LangChain's; a tool may."""
        agent = branch.agent
        unseen = agent.quiet_steps > QUIET_STEPS or branch.node in agent.raw_nodes
        return unseen and enclosing_tool(branch) is None

    def step_begins(self, branch: Branch) -> None:
        """A node is executed unseen: without models, steps are what bounds a run."""
        if branch.agent.quiet_steps > QUIET_STEPS:
            branch.agent.quiet_steps -= 1  # once for each step, however many branches it has
            self._count(branch, 0)

    def asked(self, place: Place, *, helper: bool) -> None:
        """A model is asked; a text that the same node gave before was not the last word."""
        part: Place | None = place
        while part is not None:
            if isinstance(part, Branch):
                part.asked = True
            elif isinstance(part, AgentRun):
                part.quiet_steps = 0
            part = part.within
        if isinstance(place, Branch) and not helper and _is_sent_back(place):
            del place.agent.drafts[place.node]
            self._count(place, 0)

    def answered(
        self, message: AIMessage, tools: frozenset[str], place: Place, *, helper: bool, last: bool
    ) -> None:
        """A model answered; whether that is a turn is seen when its node ends."""
        said = ModelReply(message.tool_calls, "", tools, place, helper, last)
        if message.id:
            self._said[message.id] = said
        if helper or last:
            return
        if isinstance(place, AgentRun | Branch):
            place.said = said
        agent = enclosing_agent(place)
        if agent is not None:
            if agent.last_said is not None:
                agent.last_said.text = ""  # of many long texts the last one is held
            if not message.tool_calls:
                said.text = str(message.text)
            agent.last_said = said
        for call in message.tool_calls:
            if call["id"]:
                self._asked[call["id"]] = said

    def branch_ended(self, branch: Branch, output: Any) -> None:
        """A node ended: the messages that leave it are turns."""
        if branch.said is not None:
            branch.agent.asides.add(branch.node)  # unless a message of it leaves, as below
        messages = messages_in(output)
        given = [message for message in messages if isinstance(message, AIMessage)]
        if not given:
            return
        answered: set[str] = set()
        if len(messages) > len(given):
            answered.update(m.tool_call_id for m in messages if isinstance(m, ToolMessage))
        for message in given:
            said = self._said.get(message.id or "")
            if said is None and self._is_new(message, branch):
                said = self._made_anew(message, branch, answered)
            if said is not None and said.place is branch and not (said.helper or said.last):
                self._left_its_node(branch, said, message, answered, output)

    def _made_anew(
        self, message: AIMessage, branch: Branch, answered: set[str]
    ) -> ModelReply | None:
        """A message that the code of a node made: of what a model said there, or by itself."""
        if branch.said is not None:
            return cast(ModelReply, branch.said)
        open_calls = [call["name"] for call in message.tool_calls if call["id"] not in answered]
        if open_calls and not branch.asked:
            branch.agent.raw_nodes.add(branch.node)
            self._count(branch, len(open_calls))
            self._reject_unknown(branch, open_calls, frozenset())
        return None

    def _left_its_node(
        self,
        branch: Branch,
        said: ModelReply,
        message: AIMessage,
        answered: set[str],
        output: Any,
    ) -> None:
        branch.agent.usual.setdefault(branch.node, set()).update(said.tools)
        if not message.tool_calls:
            branch.agent.drafts[branch.node] = branch.agent.step
        elif not said.counted:
            # Calls that the node answered by itself asked for structured output.
            open_calls = [call for call in message.tool_calls if call["id"] not in answered]
            if open_calls or not gives_output(output):
                self._count_said(branch, said, [call["name"] for call in open_calls])

    def tool_begins(self, place: Place, name: str, tool_call_id: str | None) -> None:
        """A tool runs: what named it is a turn, if it is not counted as one yet."""
        agent = enclosing_agent(place)
        said = self._asked.get(tool_call_id or "")
        if said is None and agent is not None:
            said = agent.last_said
            if said is None or not _names(said, name):
                return
            agent.drafts.pop(_node(said.place), None)
        if said is None or said.counted or enclosing_tool(place) is not enclosing_tool(said.place):
            return
        names = [call["name"] for call in said.calls] or [name]
        if set(names) <= self.output_tools:
            return
        if agent is not None:
            agent.usual.setdefault(_node(said.place), set()).update(said.tools)
        self._count_said(place, said, names)

    def acted_on(self, agent: AgentRun, action: Any) -> None:
        """An executor acts on a turn: on one message, or on the last text of its model."""
        log = getattr(action, "message_log", None)
        said = self._said.get(log[-1].id or "") if log else agent.last_said
        if said is None:  # its model completes text, or was not called through LangChain
            self._count(agent, 1)
            self._reject_unknown(agent, [action.tool], frozenset())
        elif not said.counted:
            agent.usual.setdefault("", set()).update(said.tools)
            names = [call["name"] for call in said.calls] or [action.tool]
            self._count_said(agent, said, names)

    def unusable(self, place: Place) -> None:
        """A turn asked for nothing that could be done."""
        self._count(place, 0)

    def _count_said(self, place: Place, said: ModelReply, names: list[str]) -> None:
        """Count a turn that a model made."""
        said.counted = True
        # Several answers may name one call, of which one was taken.
        self._asked.update({call["id"]: said for call in said.calls if call["id"]})
        wanted = [name for name in names if name not in self.output_tools]
        self._count(place, len(wanted))
        self._reject_unknown(place, wanted, said.tools)

    def _reject_unknown(self, place: Place, names: list[str], bound: frozenset[str]) -> None:
        agent = enclosing_agent(place)
        if agent is None or enclosing_tool(place) is not None:
            return
        # What the agent itself has is known from its start; of another one, from its calls.
        own = agent is self.tree.root or not (bound or agent.tools)
        had = (bound, agent.tools, self.tools) if own else (bound, agent.tools)
        for name in names if any(had) else ():
            if not any(name in tools for tools in had):
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
                    **self.about,
                    at=self.clock(),
                    iteration=self.iterations,
                    tool_calls=tool_calls,
                )
            )

    def _is_new(self, message: AIMessage, branch: Branch) -> bool:
        """Whether this node made the message: it was not there before."""
        if message.id in self._known or id(message) in self._raw:
            return False
        if any(message is given for given in messages_in(branch.inputs)):
            return False
        self._raw[id(message)] = message
        return True


def _names(said: ModelReply, tool: str) -> bool:
    """Whether an answer names a tool: by a call, or in words where it has no calls."""
    if said.calls:
        return any(call["name"] == tool for call in said.calls)
    return tool in said.text


def _is_sent_back(branch: Branch) -> bool:
    """Whether its node gave a text in an earlier step: branches of one step do not follow it."""
    drafts = branch.agent.drafts
    return branch.node in drafts and drafts[branch.node] != branch.agent.step


def _node(place: Place) -> str:
    """The node that a call was made in; an executor has none."""
    return place.node if isinstance(place, Branch) else ""


def depth(place: Place) -> int:
    """The length of the chain of turns that leads to a place; a tool begins a chain of its own."""
    return 0 if isinstance(place, OpenToolCall) else place.depth
