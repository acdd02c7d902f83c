"""Finds LangChain settings that print prompts or send them elsewhere, to log them at start."""

import os
from collections.abc import Iterator, Mapping

from langchain_core.globals import get_debug, get_verbose

from app.runs.ports import Agent

_TRACING = (
    "LANGSMITH_TRACING",
    "LANGSMITH_TRACING_V2",
    "LANGCHAIN_TRACING",
    "LANGCHAIN_TRACING_V2",
)


def switches(agents: Mapping[str, Agent]) -> Iterator[str]:
    """Yield a sentence for each setting that prints or sends prompts and answers."""
    if get_debug():
        yield "langchain debug (set_debug) prints prompts and answers"
    if get_verbose():
        yield "langchain verbose (set_verbose) prints prompts and answers"
    for name, agent in agents.items():
        if agent.info.verbose:
            yield f"agent {name} is verbose and prints what it does"
    for name in _TRACING:
        if os.environ.get(name, "").lower() in ("true", "1", "yes"):
            yield f"{name} sends prompts and answers to LangSmith"
