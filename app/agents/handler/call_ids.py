"""Adds missing ids to tool calls: LangGraph matches results to calls by id."""

from uuid import uuid4

from langchain_core.messages import AIMessage


def complete(message: AIMessage) -> None:
    """Add an id where the model sent none: LangGraph would fail after the tool has run."""
    for call in message.tool_calls:
        if not call["id"]:
            call["id"] = f"call_{uuid4().hex}"
