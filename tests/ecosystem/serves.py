"""What a test shows of the ecosystem, declared beside it, for the table in docs/agents.md."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

T = TypeVar("T", bound=Callable[..., Any])


def serves(package: str, part: str, how: str) -> Callable[[T], T]:
    """The test shows that this part of a package is served, and how."""
    mark: Callable[[T], T] = pytest.mark.serves(package, part, how)
    return mark
