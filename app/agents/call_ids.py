"""Gives an id to every tool call of a message: its result is matched to it by that."""

from uuid import uuid4

from langchain_core.messages import AIMessage


def complete(message: AIMessage) -> None:
    """Some models send none, or an empty one; LangGraph then fails after the tool has run."""
    for call in message.tool_calls:
        if not call["id"]:
            call["id"] = f"call_{uuid4().hex}"
