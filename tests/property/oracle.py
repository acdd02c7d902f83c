"""Counts a plan by hand: its longest chain of turns, its tool calls, its answer, its outcome.

The rules are those of the contract; nothing here knows how the product finds out. Where they
leave room, the oracle says between which bounds a count lies.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from tests.property.compiler import copied, said_by
from tests.property.ledger import Ledger, Whose
from tests.property.model import answer, concluded, draft
from tests.property.plan import (
    Agent,
    Ask,
    At,
    By,
    Checks,
    Fans,
    Helper,
    Made,
    Plan,
    Raw,
    Says,
    Steps,
    ToolKind,
    Turn,
    Works,
    in_tools,
    within,
)

DEFAULT_LIMIT = 10
# How many of its turns an agent takes that could take so many and begins at that depth.
Take = Callable[[Whose, int, int], int]


@dataclass(frozen=True)
class Worker:
    """An agent of the chain, or a node that asks without a model, in one copy of its branch."""

    whose: Whose
    turns: tuple[Turn, ...]
    runs: int = 1  # so often its node is tried
    agent: Agent | None = None
    checks: int = 0  # calls of a helper that is a node


def limit_of(plan: Plan) -> int:
    """The limit that holds."""
    return plan.limit or DEFAULT_LIMIT


def workers(steps: Steps, copy: str = "") -> Iterator[Worker]:
    """Everybody whose turns are the run's: those of agents inside tools are not."""
    for step in steps:
        if isinstance(step, Works):
            agent = step.agent
            yield Worker(Whose(agent.name, copy), agent.turns, step.relapses + 1, agent)
        elif isinstance(step, Raw):
            yield Worker(Whose(step.name, copy), (Turn(step.calls),))
        elif isinstance(step, Checks):
            yield Worker(Whose(step.helper.name, copy), (), checks=1)
        elif isinstance(step, Fans):
            for number in _copies(step, copy):
                for branch in step.branches:
                    yield from workers(branch, number)


def depth(steps: Steps, take: Take, start: int = 0, copy: str = "", *, wide: bool = False) -> int:
    """The longest chain of turns one after the other, from a start.

    Two kinds of branch leave room: agents that one function asks at the same time count side by
    side or, where nobody can see that, one after the other (`wide`); lanes of one graph go in
    step, so that a turn of one may come after a later turn of another.
    """
    for step in steps:
        if isinstance(step, Works):
            start += take(Whose(step.agent.name, copy), len(step.agent.turns), start)
        elif isinstance(step, Raw):
            start += take(Whose(step.name, copy), 1, start)
        elif isinstance(step, Fans):
            start = _fanned(step, take, start, copy, wide=wide)
    return start


def _fanned(fans: Fans, take: Take, start: int, copy: str, *, wide: bool) -> int:
    if wide and fans.by is By.LANES:
        for row in zip_longest(*fans.branches):
            start = max(depth((s,) if s else (), take, start, copy, wide=wide) for s in row)
        return start
    ends = [
        depth(branch, take, start, number, wide=wide)
        for number in _copies(fans, copy)
        for branch in fans.branches
    ]
    if wide and fans.by is By.GATHER:
        return start + sum(end - start for end in ends)
    return max(ends)


def _copies(fans: Fans, copy: str) -> Sequence[str]:
    if fans.by not in (By.COPIES, By.MAPS):
        return (copy,)
    return [copied(copy, number) for number in range(fans.copies)]


def all_of_them(whose: Whose, wanted: int, start: int) -> int:
    """Every turn of the plan."""
    return wanted


def within_limit(limit: int) -> Take:
    """As many turns as the limit leaves: each branch counts for itself."""
    return lambda whose, wanted, start: min(wanted, max(0, limit - start))


def as_seen(ledger: Ledger, *, worked: bool = False) -> Take:
    """As many turns as the far side saw, or saw working."""
    return lambda whose, wanted, start: ledger.turns_of(whose, worked=worked)


@dataclass(frozen=True)
class Forecast:
    """What is right for a plan.

    `tool_calls`, `rejected` and `answers` are None where the rules leave too much room. An
    `exact` run has the same counts at any pace.
    """

    fewest: int
    most: int
    outcomes: frozenset[str]
    tool_calls: int | None = None
    rejected: int | None = None
    answers: frozenset[str] | None = None
    exact: bool = False
    errors: frozenset[str] = frozenset()


def completed(plan: Plan) -> Forecast:
    """What is right for a plan that nothing cuts."""
    shortest = depth(plan.steps, all_of_them)
    widest = depth(plan.steps, all_of_them, wide=True)
    taken = list(_taken(plan.steps, all_of_them, 0, ""))
    answers = frozenset({last_words(plan.steps)})
    return Forecast(shortest, widest, frozenset({"completed"}), *_calls(taken), answers, True)


def forecast(plan: Plan) -> Forecast:
    """What is right for a plan under its limit."""
    limit, whole = limit_of(plan), completed(plan)
    take = within_limit(limit) if whole.fewest == whole.most else all_of_them
    taken = list(_taken(plan.steps, take, 0, ""))
    either = frozenset({"completed", "iteration_limit"})
    calls = [_most_calls(*one) for one in taken]
    if max(sum(made) for made in zip((0, 0), *calls, strict=True)) >= ceiling(limit) - 1:
        # The ceiling of model calls may cut it anywhere: only bounds are promised. It may cut an
        # agent's retries too, and the last call of all may then fail.
        down = any(worker.agent and worker.agent.trouble for worker, _ in taken)
        errors = frozenset({"model_failed"} if down else ())
        return Forecast(0, min(limit, whole.most), either, errors=errors)
    if whole.most < limit:
        return whole
    cut = frozenset({"iteration_limit"})
    if whole.fewest != whole.most:
        # Those side by side may be stopped, or not: at most at the limit.
        outcomes = either if whole.fewest < limit else cut
        return Forecast(min(whole.fewest, limit), limit, outcomes)
    # If no model would have been asked beyond the limit, it may end by itself.
    outcomes = cut if _asks_again(plan.steps, limit) else either
    conclusions = _conclusions(plan, limit)
    if any(worker.runs > 1 for worker, _ in taken):
        # What an attempt that starts at the limit may still do is not promised.
        return Forecast(limit, limit, outcomes, answers=conclusions, exact=True)
    return Forecast(limit, limit, outcomes, *_calls(taken), conclusions, True, _errors(plan, limit))


def _errors(plan: Plan, limit: int) -> frozenset[str]:
    """An executor is asked for its last words from outside, where its own retries do not reach."""
    agent = plan.bare
    trouble = agent.trouble if agent is not None and agent.made is Made.EXECUTOR else None
    return frozenset({"model_failed"} if trouble and trouble.turn == limit else ())


def _taken(steps: Steps, take: Take, start: int, copy: str) -> Iterator[tuple[Worker, int]]:
    for step in steps:
        if isinstance(step, Fans):
            for number in _copies(step, copy):
                for branch in step.branches:
                    yield from _taken(branch, take, start, number)
        else:
            for worker in workers((step,), copy):
                yield worker, take(worker.whose, len(worker.turns), start)
        start = depth((step,), take, start, copy)


def _calls(taken: Sequence[tuple[Worker, int]]) -> tuple[int, int]:
    """Tool calls and rejected ones of the turns taken; those of a node tried again, each time."""
    ran = rejected = 0
    for worker, turns in taken:
        for turn in worker.turns[:turns]:
            runs = sum(call.runs for call in turn.calls)
            ran += runs * worker.runs
            rejected += (len(turn.calls) - runs) * worker.runs
    return ran, rejected


def _asks_again(steps: Steps, limit: int) -> bool:
    """Whether an agent is asked once the limit is reached. Every agent speaks after its turns."""
    start = 0
    for step in steps:
        end = depth((step,), within_limit(limit), start)
        if isinstance(step, Works) and end >= limit:
            return True
        if isinstance(step, Fans) and end >= limit:
            return True  # a branch that reached it ends with an agent, or with a sentence
        start = end
    return False


def last_words(steps: Steps) -> str:
    """The last text of a plan."""
    last = steps[-1]
    if isinstance(last, Works):
        return answer(last.agent)
    if isinstance(last, Says):
        return said_by(last.name)
    assert isinstance(last, Fans)
    numbers = _copies(last, "")
    return "; ".join(last_words(branch) for _ in numbers for branch in last.branches)


def _conclusions(plan: Plan, limit: int) -> frozenset[str] | None:
    """What a plan may say at its limit; None where several branches may have the last word."""
    if any(isinstance(step, Fans) for step in plan.steps):
        return None
    start, words = 0, set[str]()
    for step in plan.steps:
        room = limit - start
        if isinstance(step, Says) and room == 0:
            words.add(said_by(step.name))  # a sentence of the graph's own is nobody's turn
        elif isinstance(step, Raw):
            start += min(room, 1)
        elif isinstance(step, Checks) and not words and _passes_for_a_turn(step.helper, room):
            return None
        elif isinstance(step, Works) and not words:
            if _passes_for_a_turn(step.agent.helper, room):
                return None
            start += min(room, len(step.agent.turns))
            if start == limit:
                words.add(_next_words(step.agent, room))
    return frozenset(words)


def _passes_for_a_turn(helper: Helper | None, room: int) -> bool:
    """Whether a helper's call and the next turn are indistinguishable at the limit.

    So it is where a node is executed for the first time then, and asks without any sign.
    """
    if helper is None or helper.ask is not Ask.PLAIN:
        return False
    return room == 0 if helper.at in (At.BESIDE, At.WRAP) else room <= 1 and helper.at is At.BETWEEN


def _next_words(agent: Agent, done: int) -> str:
    """The text of its model without tools, after so many turns."""
    if done == len(agent.turns):
        return answer(agent)
    if agent.turns[done].calls:
        return concluded(agent)
    return draft(Whose(agent.name), done)


def ceiling(limit: int) -> int:
    """So many calls of agents, sub-agents and retries included, and so many of helpers."""
    return 4 * (limit + 1)


def _most_calls(worker: Worker, turns: int) -> tuple[int, int]:
    """The most calls that so many turns take: of agents, and of helpers."""
    made, helped = _inner_calls(worker.agent, worker.turns[:turns])
    return made * worker.runs, (helped + worker.checks) * worker.runs


def _inner_calls(agent: Agent | None, turns: Sequence[Turn]) -> tuple[int, int]:
    """Of an agent, with those of the agents that its tools ask."""
    made = helped = 0
    if agent is not None:
        made = len(turns) + 1 + (agent.trouble.times if agent.trouble else 0)
        helped = (made + sum(len(turn.calls) for turn in turns)) if agent.helper else 0
    for call in (call for turn in turns for call in turn.calls):
        if call.agent is not None:
            inner = _inner_calls(call.agent, call.agent.turns)
            made, helped = made + inner[0], helped + inner[1]
        if call.kind is ToolKind.MUSES:
            made, helped = made + 1, helped + 1  # a tool that asks a model: either
    return made, helped


def gathers(plan: Plan) -> bool:
    """Whether one function asks several agents at the same time."""
    return any(isinstance(step, Fans) and step.by is By.GATHER for step in within(plan.steps))


# Where a model may be asked that is known for a helper only when its node ends.
_SHOWN_AT_THE_END = (At.BESIDE, At.WRAP, At.BETWEEN)


def silent(plan: Plan) -> set[str]:
    """Names of those who never speak as the agent asked: helpers in hooks, agents in tools.

    The words of one that is asked where the agent is asked may come, and be taken back: whose
    they are shows when the node ends.
    """
    found = {w.agent.helper for w in workers(plan.steps) if w.agent and w.agent.helper}
    names = {helper.name for helper in found if helper.at not in _SHOWN_AT_THE_END}
    for turn in (turn for worker in workers(plan.steps) for turn in worker.turns):
        names |= {agent.name for agent in in_tools(turn.calls)}
    return names
