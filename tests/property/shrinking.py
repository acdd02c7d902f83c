"""Makes a plan that fails smaller, a little at a time, for as long as it fails."""

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from enum import Enum
from typing import Any

from tests.property.plan import Fans, Plan, Says, Works

# Each is a few runs.
_MOST_TRIES = 200
_DROPPED = ("trouble", "helper", "relapses", "sync", "named", "speaks", "times", "halfway", "turns")


async def smallest(plan: Plan, wrong: Callable[[Plan], Awaitable[str]]) -> Plan:
    """The smallest plan that was found of which the same is wrong."""
    first = _kind(await wrong(plan))
    tries, found = 0, True
    while found:
        found = False
        for other in smaller(plan):
            tries += 1
            if tries > _MOST_TRIES:
                return plan
            if _kind(await wrong(other)) == first:
                plan, found = other, True
                break
    return plan


def _kind(wrong: str) -> str:
    """What is wrong, without the numbers: of the first thing that was found after the forecast."""
    lines = wrong.splitlines()[1:2]
    return re.split(r"[\d'{(]", lines[0])[0] if lines else wrong


def smaller(plan: Plan) -> Iterator[Plan]:
    """Every plan that is this one with one thing less."""
    for steps in _less(plan.steps):
        if _speaks(steps):
            yield replace(plan, steps=steps)
    if plan.limit is not None:
        yield replace(plan, limit=None)


def _less(thing: Any) -> Iterator[Any]:
    """This with one thing less: an item of a tuple, or a field set to what it is by default."""
    if isinstance(thing, tuple):
        for number, item in enumerate(thing):
            before, after = thing[:number], thing[number + 1 :]
            yield (*before, *after)
            if isinstance(item, Fans):
                for branch in item.branches:
                    yield (*before, *branch, *after)
            yield from ((*before, other, *after) for other in _less(item))
    elif is_dataclass(thing) and not isinstance(thing, type):
        for field in fields(thing):
            value = getattr(thing, field.name)
            default: Any = field.default
            if value == default or isinstance(value, Enum | str):
                continue
            if default is not MISSING and field.name in _DROPPED:
                yield replace(thing, **{field.name: default})
            else:
                others = _less(value)
                yield from (replace(thing, **{field.name: o}) for o in others if o or not value)


def _speaks(steps: Sequence[Any]) -> bool:
    """Whether it is a plan still: somebody speaks last, in each branch, and turns are as drawn."""
    if not steps or not isinstance(steps[-1], Works | Says | Fans):
        return False
    for step in steps:
        if isinstance(step, Fans) and not (step.branches and all(map(_speaks, step.branches))):
            return False
    return True


def short(thing: Any) -> str:
    """A plan in few words, without what is so by default; it can be read as Python."""
    if isinstance(thing, Enum):
        return f"{type(thing).__name__}.{thing.name}"
    if isinstance(thing, tuple):
        return f"({', '.join(map(short, thing))}{',' if len(thing) == 1 else ''})"
    if is_dataclass(thing) and not isinstance(thing, type):
        changed = [
            f"{field.name}={short(getattr(thing, field.name))}"
            for field in fields(thing)
            if getattr(thing, field.name) != field.default
        ]
        return f"{type(thing).__name__}({', '.join(changed)})"
    return repr(thing)
