"""A machine that is busy, or pauses for two seconds, changes no result of a test."""

from collections.abc import Iterator

import pytest

from tests.tasks.long_timeouts import extend_timeouts

# This one holds the service to the times in which it answers.
IN_TIME = {"test_silent_store"}


@pytest.fixture(autouse=True, scope="module")
def patience(request: pytest.FixtureRequest) -> Iterator[None]:
    """A service in the test's own process has time for what it does."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.stem not in IN_TIME:
            extend_timeouts(patch)
        yield
