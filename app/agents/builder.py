"""Builds agents for the service: with a strict model, bounded retries and limits."""

from collections.abc import Callable, Sequence
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.tools import BaseTool
from langgraph.graph.state import CompiledStateGraph

from app.agents.models.retry import RetryModel
from app.runs.model import EarlyStopping

# Metadata keys by which an agent passes its own limits to the service.
MAX_ITERATIONS, EARLY_STOPPING = "watchkeeper_max_iterations", "watchkeeper_early_stopping"
ATTEMPTS = "watchkeeper_attempts"


def build_agent(
    model: str | BaseChatModel,
    tools: Sequence[BaseTool | Callable[..., Any]],
    prompt: str | None = None,
    *,
    max_iterations: int | None = None,
    early_stopping: EarlyStopping | str | None = None,
    attempts: int = 3,
    middleware: Sequence[AgentMiddleware[Any, Any, Any]] = (),
    **options: Any,
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """Return an agent of `create_agent`, ready to be served.

    Its input is a dict with `messages`; its output is the state, whose last message is the answer.

    `model` is a chat model, or the name of a model of OpenAI or a compatible endpoint. `tools` are
    LangChain tools or functions with a docstring. `prompt` is the system message. A model call
    that fails with a transient error is retried: at most `attempts` calls, within the run's
    deadline. `max_iterations` limits the agent's own turns that call tools. `early_stopping`
    selects who writes the answer there: "generate" or "force". Without them the service's limits
    apply. `middleware` comes before the retries. `options` go to `create_agent`.

    Raises ValueError for a limit below 1, an unknown `early_stopping` and the name of another
    provider, and what OpenAI's client raises without `OPENAI_API_KEY`.
    """
    if max_iterations is not None and max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, not {max_iterations}")
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts}")
    graph = create_agent(
        _chat_model(model) if isinstance(model, str) else model,
        list(tools),
        system_prompt=prompt,
        middleware=[*middleware, RetryModel(attempts)],
        **options,
    )
    own: dict[str, Any] = {ATTEMPTS: attempts}
    if max_iterations is not None:
        own[MAX_ITERATIONS] = max_iterations
    if early_stopping is not None:
        own[EARLY_STOPPING] = EarlyStopping(early_stopping).value
    return graph.with_config(metadata=own)


def _chat_model(name: str) -> BaseChatModel:
    from app.agents.models.openai import chat_openai  # noqa: PLC0415 - slow to load, and often not used

    provider, colon, model = name.rpartition(":")
    if colon and provider != "openai":
        raise ValueError(f"{name!r} is of another provider: build its chat model and pass that")
    return chat_openai(model)
