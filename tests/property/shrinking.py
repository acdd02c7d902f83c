"""Makes a plan that fails smaller, a little at a time, for as long as it fails."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any

from tests.property.plan import Fans, Plan, Says, Works

# Each is a few runs.
_MOST_TRIES = 200


async def smallest(plan: Plan, fails: Callable[[Plan], Awaitable[object]]) -> Plan:
    """The smallest plan that was found to fail."""
    tries = 0
    found = True
    while found:
        found = False
        for other in smaller(plan):
            tries += 1
            if tries > _MOST_TRIES:
                return plan
            if await fails(other):
                plan, found = other, True
                break
    return plan


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
            if value == default or field.name in ("name", "kind", "how", "made", "by", "at"):
                continue
            if field.name in ("trouble", "helper", "relapses", "sync", "named", "speaks"):
                yield replace(thing, **{field.name: default})
            elif not isinstance(value, Enum):
                yield from (replace(thing, **{field.name: less}) for less in _less(value))


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
        said = [
            f"{field.name}={short(getattr(thing, field.name))}"
            for field in fields(thing)
            if getattr(thing, field.name) != field.default
        ]
        return f"{type(thing).__name__}({', '.join(said)})"
    return repr(thing)
