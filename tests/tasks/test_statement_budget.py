"""A background run sends its store no more statements and transactions than its budget has."""

import pytest

from bench import statements
from bench.statements import Cost, Statement, by_transaction
from tests.parts.postgres import Shared
from tests.tasks.background import ON_FILE, url_in

pytestmark = pytest.mark.timeout(300)  # it starts a process and waits until it is idle

# For a run of five tools. They are a little above what was measured.
BUDGET = Cost(160, 45) if ON_FILE else Cost(200, 66)
# Less would mean that statements escape the count.
LEAST = Cost(30, 3)


@pytest.fixture(scope="module")
def cost(tmp_path_factory: pytest.TempPathFactory) -> Cost:
    """What one run costs, measured once."""
    return statements.of_run(url_in(tmp_path_factory.mktemp("store")), Shared.server)


def test_run_keeps_to_its_budget_of_statements(cost: Cost) -> None:
    """A run of five tools sends no more statements than its budget has."""
    assert LEAST.statements < cost.statements <= BUDGET.statements


def test_run_keeps_to_its_budget_of_transactions(cost: Cost) -> None:
    """A run of five tools commits no more transactions than its budget has."""
    assert LEAST.transactions < cost.transactions <= BUDGET.transactions


def test_statements_of_a_transaction_are_one_group() -> None:
    """A group has a transaction's statements, and the ping of its session before it."""
    ping, begin, other = Statement("1/1", ";"), Statement("1/2", "BEGIN"), Statement("2/1", "BEGIN")
    commit = Statement("1/2", "COMMIT")
    assert by_transaction([ping, other, begin, commit]) == [[other], [ping, begin, commit]]


def test_statements_outside_of_transactions_are_groups_of_their_own() -> None:
    """SQLite reads without a transaction: each such statement is a group."""
    read = Statement(None, "SELECT ?")
    assert by_transaction([read, read]) == [[read], [read]]
