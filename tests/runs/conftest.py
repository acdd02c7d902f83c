"""Gives the marked tests of this folder an event loop with virtual time."""

from collections.abc import Mapping
from typing import Any

import pytest

from tests.runs import virtual_time


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Any]:
    """The loop of each test."""
    marked, threads = (item.get_closest_marker(name) for name in ("virtual_time", "threads"))
    return virtual_time.factories(marked is not None and threads is None)
