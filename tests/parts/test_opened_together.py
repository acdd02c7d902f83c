"""Two servers open one new store at the same moment."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.agents import Plan
from tests.chaos.fleet import Fleet, fleet
from tests.parts.polling import ended, submitted
from tests.parts.postgres import cluster

_TIMES = 3


@pytest.fixture(params=["sqlite", "postgres"])
def fresh(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[Fleet, Callable[[], None]]]:
    """Servers that are not started, and what makes their store new again."""
    store = tmp_path / "store"
    with ExitStack() as parts:
        if request.param == "sqlite":
            url = f"sqlite:///{store / 'store.sqlite'}"

            def renew() -> None:
                shutil.rmtree(store, ignore_errors=True)

        else:
            server = parts.enter_context(cluster())
            url = server.fresh("shared")

            def renew() -> None:
                server.renew("shared")

        yield parts.enter_context(fleet(tmp_path, url)), renew


def test_two_servers_start_together(fresh: tuple[Fleet, Callable[[], None]]) -> None:
    """Both start, and each accepts runs and reports the other's, again and again."""
    ships, renew = fresh
    for turn in range(_TIMES):
        ships.start_all()
        one, other = ships.ports
        for port, elsewhere in ((one, other), (other, one)):
            plan = Plan(f"{turn} {port}")
            task = ended(elsewhere, submitted(port, plan.question))
            assert task["result"]["answer"] == plan.answer
        for port in ships.ports:
            ships.kill(port)
        renew()
