"""Exceptions that the handler raises through LangChain into the agent."""

from langchain_core.exceptions import ModelAPIError


class CeilingReached(Exception):
    """The run has used all its model calls, including those of sub-agents and retries."""


class IncompleteAnswer(ModelAPIError):
    """The model's answer is incomplete or invalid; a retry may help."""


class FilteredAnswer(IncompleteAnswer):
    """The provider's filter cut the model's answer; a retry will not help."""

    is_retryable = False
