"""The last turn at the limit: an answer without calls."""

from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk

from app.agents.handler import last_turn
from app.agents.handler.pending_model_call import bound_tools, requires_tool, without_tools

LOOK: Any = {"name": "look", "args": {}, "id": "1", "type": "tool_call"}
SHAPE: Any = {"name": "Shape", "args": {}, "id": "2", "type": "tool_call"}
USE = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
# One tool in the forms of several providers.
FORMS: dict[str, Any] = {
    "openai": {"type": "function", "function": {"name": "look", "parameters": {}}},
    "plain": {"name": "look", "input_schema": {}},
    "google": {"function_declarations": [{"name": "look"}]},
    "bedrock": {"toolSpec": {"name": "look"}},
    "name": "look",
}


def test_reply_keeps_its_text_only() -> None:
    """A reply keeps its text, wherever its provider repeats the calls."""
    reply = AIMessage(
        [{"type": "text", "text": "I know."}, USE],
        tool_calls=[LOOK],
        additional_kwargs={"tool_calls": [{}], "other": 1},
    )
    shortened = last_turn.cut(reply)
    assert (shortened.text, shortened.tool_calls, shortened.content) == (
        "I know.", [], [{"type": "text", "text": "I know."}],
    )  # fmt: skip
    assert shortened.additional_kwargs == {"other": 1}
    assert reply.tool_calls, "the model's own message stays as it is"


def test_chunk_keeps_its_text_only() -> None:
    """A chunk has no call either."""
    part: Any = {"name": "look", "args": "{}", "id": "1", "index": 0, "type": "tool_call_chunk"}
    shortened = last_turn.cut(AIMessageChunk(content="I ", tool_call_chunks=[part]))
    assert (shortened.text, shortened.tool_calls, shortened.tool_call_chunks) == ("I ", [], [])
    assert (shortened + AIMessageChunk(content="know.")).tool_calls == []


def test_output_call_stays() -> None:
    """The call that gives the agent's output stays."""
    shortened = last_turn.cut(AIMessage("", tool_calls=[LOOK, SHAPE]), frozenset({"Shape"}))
    assert shortened.tool_calls == [SHAPE]
    assert not last_turn.is_empty(shortened)


@pytest.mark.parametrize("form", FORMS)
def test_tools_are_removed_in_every_form(form: str) -> None:
    """In every form a tool is known by its name and removed with all options about tools."""
    options = {"tools": [FORMS[form]], "tool_choice": "any", "temperature": 0}
    assert bound_tools(options) == {"look"}
    assert without_tools(options, frozenset()) == {"temperature": 0}
    assert without_tools(options, frozenset({"look"})) == options


@pytest.mark.parametrize(
    ("choice", "demands"), [(None, False), ("auto", False), ("none", False), ("any", True)]
)
def test_only_a_required_call_demands_a_tool(choice: Any, demands: bool) -> None:
    """Only `tool_choice` that requires a call demands a tool."""
    assert requires_tool({"tool_choice": choice}) is demands


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("It is 4.", "It is 4."),
        ("Thought: done\nFinal Answer: 4", "4"),
        ("Thought: more\nAction: look\nAction Input: 1", ""),
    ],
)
def test_answer_in_words_is_extracted(text: str, answer: str) -> None:
    """Models that call tools in words mark their answer in words."""
    assert last_turn.final_text(text) == answer
