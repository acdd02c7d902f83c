"""Tokens that a provider reports are read as whole numbers, or not at all."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage

from app.agents.models import model_responses
from app.runs.model import NO_USAGE, Usage

WHOLE: dict[str, Any] = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


def reported(usage: dict[str, Any]) -> Any:
    """A message with this usage, unchecked as a client may build it."""
    return AIMessage("said").model_copy(update={"usage_metadata": usage})


def test_usage_is_read() -> None:
    """Every count that we report is read; a missing one, or None, is 0."""
    details = {
        "input_token_details": {"cache_read": 3, "cache_creation": 2, "audio": None},
        "output_token_details": {"reasoning": 4},
    }
    assert model_responses.usage(reported({**WHOLE, **details})) == Usage(10, 5, 3, 2, 4)
    assert model_responses.usage(reported({**WHOLE, "output_tokens": None})) == Usage(10)
    assert model_responses.usage(AIMessage("said")) == NO_USAGE
    assert model_responses.usage(None) == NO_USAGE


@pytest.mark.parametrize("wrong", ["ten", "", 1.5, 0.0, -1, 10**13, [1], {}])
@pytest.mark.parametrize("key", ["input_tokens", "output_tokens", "total_tokens"])
def test_wrong_count_is_refused(key: str, wrong: Any) -> None:
    """A count that is no whole number, negative, or absurdly large raises TypeError."""
    with pytest.raises(TypeError, match="whole numbers"):
        model_responses.usage(reported({**WHOLE, key: wrong}))
