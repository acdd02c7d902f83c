"""What the handler refuses, raised through LangChain into the agent that asked for it."""

from langchain_core.exceptions import ModelAPIError


class CeilingReached(Exception):
    """The run has made every model call that it may make, sub-agents and retries included."""


class IncompleteAnswer(ModelAPIError):
    """The model's answer is broken or was cut; asking again may help."""


class FilteredAnswer(IncompleteAnswer):
    """The provider's filter cut the model's answer; asking again will not help."""

    is_retryable = False
