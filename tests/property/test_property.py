"""An oracle checks the counts of random small graphs of agents, in every mode.

Each plan is asked twice for its answer, streamed and in the background, at four paces. A failure
says the number of its plan, which is the same on every machine: `PLAN=17 pytest tests/property`.
The long form (`SOAK=1`) plays thousands, and makes each plan that fails as small as it can.
"""

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.property.drawing import plan_of
from tests.property.plan import Plan
from tests.property.shrinking import short, smallest
from tests.property.stage import Stage, staged
from tests.property.verdict import Wrong, judge
from tests.streams.reading import SOAK

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUMBERS = range(100) if SOAK else range(40)
BATCHES = range(40) if SOAK else range(1)
if only := os.environ.get("PLAN"):
    NUMBERS, BATCHES = range(int(only), int(only) + 1), range(1)


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=BATCHES)
async def batch(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[int, Stage]]:
    """A service for so many plans: what it keeps of each would slow down thousands."""
    async with staged(tmp_path_factory.mktemp("store")) as stage:
        yield request.param * len(NUMBERS), stage


@pytest.mark.parametrize("number", NUMBERS)
async def test_plan(batch: tuple[int, Stage], number: int) -> None:
    """Counts, text and outcome of a plan are those of the oracle in every signal."""
    first, stage = batch
    plan = plan_of(first + number)
    wrong = await verdict(stage, plan)
    if wrong and (SOAK or only):
        plan = await smallest(plan, lambda other: verdict(stage, other))
        wrong = await verdict(stage, plan) or f"this time it held; before, {wrong}"
    if wrong:
        pytest.fail(f"plan {first + number}: {short(plan)}\n{wrong}", pytrace=False)


async def verdict(stage: Stage, plan: Plan) -> str:
    """What is wrong of a plan, at its pace at this moment; nothing if it holds."""
    try:
        judge(plan, await stage.play(plan))
    except Wrong as wrong:
        return str(wrong)
    return ""
