"""Draws small plans by number: the same number is the same plan, on every machine.

What cannot be written in LangChain is not drawn, so no plan is thrown away. Plans are drawn with
`random` and not with hypothesis: of six plans that it draws, five are near copies of the first.
"""

import itertools
from collections.abc import Iterator
from random import Random
from typing import TypeAlias

from tests.property import oracle
from tests.property.plan import (
    Agent,
    Ask,
    At,
    By,
    Call,
    Checks,
    Cure,
    Fans,
    Helper,
    How,
    Made,
    Plan,
    Raw,
    Says,
    Step,
    Steps,
    ToolKind,
    Trouble,
    Turn,
    Works,
)

Names: TypeAlias = Iterator[int]
_COMPILED = (Made.CREATED, Made.GRAPH)
_CURES = {
    Made.CREATED: (Cure.RETRY, Cure.FALLBACK, Cure.TWICE),
    Made.GRAPH: (Cure.RETRY, Cure.FALLBACK, Cure.POLICY, Cure.LATE),
    Made.LOOP: (Cure.RETRY, Cure.FALLBACK),
    Made.EXECUTOR: (Cure.RETRY, Cure.FALLBACK),
}
_HOOKS = tuple(at for at in At if at not in (At.BESIDE, At.BETWEEN))
_PLACES = {Made.CREATED: _HOOKS, Made.GRAPH: (At.BESIDE, At.BETWEEN)}
_RAISES = ToolKind.RAISES
_PLAIN_TOOLS = (ToolKind.LOOKS, ToolKind.LOOKS, _RAISES, ToolKind.UNKNOWN, ToolKind.MUSES)


def plan_of(number: int) -> Plan:
    """The plan of that number. One in four is an agent alone, of any kind that can be served."""
    draw, names = Random(number), itertools.count(1)
    if _one_in(draw, 4):
        made = draw.choice((Made.CREATED, Made.GRAPH, Made.EXECUTOR))
        steps: Steps = (Works(_agent(draw, names, made, bare=True)),)
    else:
        steps = _steps(draw, names, most=3, fans=2)
    limit = None
    if not _one_in(draw, 3):  # near to what it takes, where limits are interesting
        most = oracle.depth(steps, oracle.all_of_them)
        limit = min(max(most + draw.randint(-2, 2), 1), oracle.DEFAULT_LIMIT)
    return Plan(steps, limit, pace=number)


def _one_in(draw: Random, number: int) -> bool:
    return draw.randrange(number) == 0


def _calls(draw: Random, names: Names, *, deep: bool, made: Made | None = None) -> tuple[Call, ...]:
    """The calls of a turn.

    A function that loops is seen to take a turn when a tool works: one does. What an executor's
    tool raises inside a node, that node raises, as with the library alone.
    """
    kinds = [kind for kind in _PLAIN_TOOLS if made is not Made.EXECUTOR or kind is not _RAISES]
    calls = [Call()] if made is Made.LOOP else []
    for _ in range(draw.randint(1 - len(calls), 3 - len(calls))):
        if deep and _one_in(draw, 6):
            agent = _agent(draw, names, draw.choice(tuple(Made)), deep=False)
            calls.append(Call(ToolKind.ASKS, agent))
        else:
            calls.append(Call(draw.choice(kinds)))
    draw.shuffle(calls)
    return tuple(calls)


def _helper(draw: Random, names: Names, places: tuple[At, ...] = (At.BESIDE,)) -> Helper:
    ask, at = draw.choice(tuple(Ask)), draw.choice(places)
    return Helper(f"h{next(names)}", ask, at)


def _agent(
    draw: Random, names: Names, made: Made, *, deep: bool = True, bare: bool = False
) -> Agent:
    name = f"a{next(names)}"
    turns = []
    for _ in range(draw.randint(0, 3)):
        is_draft = made is Made.CREATED and _one_in(draw, 10)
        calls = () if is_draft else _calls(draw, names, deep=deep, made=None if bare else made)
        turns.append(Turn(calls, speaks=_one_in(draw, 3)))
    trouble = helper = None
    if _one_in(draw, 3):
        cure = draw.choice(_CURES[made])
        times = draw.randint(1, 2) if cure not in (Cure.FALLBACK, Cure.TWICE) else 1
        trouble = Trouble(draw.randint(0, len(turns)), cure, times, _one_in(draw, 3))
    if _one_in(draw, 3):
        helper = _helper(draw, names, _PLACES.get(made, (At.BESIDE,)))
    sync = made is not Made.EXECUTOR and _one_in(draw, 4)
    return Agent(name, tuple(turns), made, trouble, helper, sync, _one_in(draw, 3))


def _works(draw: Random, names: Names, *, inline: bool) -> Works:
    ways = (How.NODE, How.CALLED, How.INLINE) if inline else (How.NODE, How.CALLED)
    how = draw.choice(ways)
    if how is How.INLINE:
        return Works(_agent(draw, names, Made.GRAPH), how)
    if how is How.NODE:
        return Works(_agent(draw, names, draw.choice(_COMPILED)), how)
    relapses = draw.randint(1, 2) if _one_in(draw, 5) else 0
    return Works(_agent(draw, names, draw.choice(tuple(Made))), how, relapses)


def _steps(draw: Random, names: Names, *, most: int, fans: int, lane: bool = False) -> Steps:
    steps: list[Step] = []
    for _ in range(draw.randint(0, most - 1)):
        kind = draw.randint(0, 9)
        if kind < 5 or (lane and kind < 9):
            steps.append(_works(draw, names, inline=not lane))
        elif kind < 7 and fans:
            steps.append(_fans(draw, names, fans - 1))
        elif kind < 8:
            steps.append(Raw(f"r{next(names)}", _calls(draw, names, deep=True)))
        else:
            steps.append(Checks(_helper(draw, names)))
    if fans and _one_in(draw, 4 if fans > 1 else 8):
        steps.append(_fans(draw, names, fans - 1))
    elif _one_in(draw, 8):
        steps.append(Says(f"s{next(names)}"))
    else:
        steps.append(_works(draw, names, inline=not lane))
    return tuple(steps)


def _fans(draw: Random, names: Names, inner: int) -> Fans:
    by, name = draw.choice(tuple(By)), f"f{next(names)}"
    if by is By.MAPS:
        writer = Works(Agent(f"a{next(names)}", made=Made.GRAPH), How.INLINE)
        return Fans(name, ((writer,),), by, draw.randint(2, 3))
    number = 1 if by is By.COPIES else draw.randint(2, 3)
    lane = by is By.LANES
    inner = 0 if lane else inner
    branches = tuple(_steps(draw, names, most=2, fans=inner, lane=lane) for _ in range(number))
    return Fans(name, branches, by, draw.randint(2, 3) if by is By.COPIES else 1)
