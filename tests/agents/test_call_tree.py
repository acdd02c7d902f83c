"""The tree of a run: the position of calls, and the sum of turns."""

from typing import Any
from uuid import UUID, uuid4

from app.agents.handler.call_tree import (
    AgentRun,
    Branch,
    CallTree,
    asked_by_tool,
    enclosing_agent,
    enclosing_tool,
)
from app.agents.handler.tool_context import OpenToolCall


class Run:
    """A run written by hand: graphs, steps and tools, as LangChain calls back."""

    def __init__(self) -> None:
        self.tree = CallTree("a")
        self.root = self.chain(None)

    def chain(self, parent: UUID | None, name: str = "LangGraph") -> UUID:
        run_id = uuid4()
        self.tree.begin(run_id, parent, name, (), {}, None)
        return run_id

    def step(self, graph: UUID, number: int, node: str = "model") -> tuple[UUID, Branch]:
        run_id = uuid4()
        metadata: dict[str, Any] = {"langgraph_node": node, "langgraph_checkpoint_ns": f"{run_id}"}
        tags = [f"graph:step:{number}"]
        branch = self.tree.begin(run_id, graph, node, tags, metadata, None)
        assert branch is not None
        return run_id, branch

    def turn(self, graph: UUID, number: int) -> None:
        run_id, branch = self.step(graph, number)
        branch.add_turn()
        self.tree.end(run_id)


def test_steps_add_up() -> None:
    """Turns of one step after the other form a chain."""
    run = Run()
    for number in range(1, 4):
        run.turn(run.root, number)
    assert run.tree.root.depth == 3


def test_branches_count_as_the_longest() -> None:
    """Branches of one step count side by side, in whichever order they end."""
    run = Run()
    (one, a), (two, b) = run.step(run.root, 1), run.step(run.root, 1)
    a.add_turn()
    b.add_turn()
    b.add_turn()
    run.tree.end(two)
    run.tree.end(one)
    assert run.tree.root.depth == 2
    assert run.step(run.root, 2)[1].depth == 2


def test_agent_as_a_node_continues_the_chain() -> None:
    """An agent that is a node continues the chain; the next step starts after it."""
    run = Run()
    run.turn(run.root, 1)
    node, branch = run.step(run.root, 2)
    inner = run.chain(node)
    run.turn(inner, 1)
    run.turn(inner, 2)
    assert (branch.depth, run.step(inner, 3)[1].depth) == (1, 3)
    run.tree.end(inner)
    assert branch.depth == 3
    run.tree.end(node)
    assert run.step(run.root, 3)[1].depth == 3


def test_parallel_agents_of_a_node_count_as_the_longest() -> None:
    """Agents that one node asks at the same time count as the longest, else one after the other."""
    run = Run()
    node, branch = run.step(run.root, 1)
    both = [run.chain(node), run.chain(node)]
    for inner in both:
        run.turn(inner, 1)
    run.turn(both[1], 2)
    for inner in both:
        run.tree.end(inner)
    assert branch.depth == 2
    later = run.chain(node)
    run.turn(later, 1)
    run.tree.end(later)
    assert branch.depth == 3


def test_agent_inside_a_tool_has_its_own_chain() -> None:
    """An agent that a tool asks has its own chain, and is found from within."""
    run = Run()
    run.turn(run.root, 1)
    node, branch = run.step(run.root, 2, "tools")
    tool = OpenToolCall("t", "ask", None, branch, None, 0.0)
    called = uuid4()
    run.tree.tool_begins(called, tool)
    assert run.tree.place(called) is tool
    assert (enclosing_tool(tool), enclosing_agent(tool), asked_by_tool(tool)) == (tool, None, None)
    agent = run.chain(called, "helper")
    step, inner = run.step(agent, 1)
    inner.add_turn()
    assert inner.depth == 1
    assert (enclosing_tool(inner), asked_by_tool(inner)) == (tool, inner.agent)
    assert (inner.agent.name, enclosing_tool(branch)) == ("helper", None)
    for ended in (step, agent, called, node):
        run.tree.end(ended)
    assert run.tree.root.depth == 1


def test_ended_calls_leave_the_tree() -> None:
    """An ended call leaves the tree: a long run stores no more than a short one."""
    run = Run()
    for number in range(1, 200):
        node, _ = run.step(run.root, number)
        inner = run.chain(node)
        run.turn(inner, 1)
        run.tree.end(inner)
        run.tree.end(node)
    assert list(run.tree._places) == [run.root]


def test_other_chains_are_transparent() -> None:
    """Any other chain is where the chain around it is; an unknown one is at the root."""
    run = Run()
    node, branch = run.step(run.root, 1)
    sequence = run.chain(run.chain(node, "RunnableSequence"), "Prompt")
    assert run.tree.place(sequence) is branch
    assert isinstance(run.tree.place(uuid4()), AgentRun)
    assert run.tree.place(None) is run.tree.root
