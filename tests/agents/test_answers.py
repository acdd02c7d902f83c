"""What an agent's answer is, message by message."""

from typing import Any

import pytest
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from app.agents.answers import AnswerTools, answer_in, as_messages, new_messages
from app.runs.errors import ModelFailed, NoAnswer

NAMES = AnswerTools(output_tools=frozenset({"Shape"}), direct_tools=frozenset({"draw"}))
CALL: Any = {"name": "look", "args": {}, "id": "c", "type": "tool_call"}
PICTURE = {"type": "image", "base64": "AAAA", "mime_type": "image/png"}
ASKED = AIMessage("Let me look.", tool_calls=[CALL])


def row(text: str, name: str = "look", **more: Any) -> ToolMessage:
    """What a tool gave."""
    return ToolMessage(text, name=name, tool_call_id="c", **more)


ANSWERS: dict[str, tuple[list[BaseMessage], str]] = {
    "text": ([AIMessage("It is 4.")], "It is 4."),
    "before a note": ([AIMessage("It is 4."), SystemMessage("summary")], "It is 4."),
    "before a person": ([AIMessage("It is 4."), HumanMessage("Shall I go on?")], "It is 4."),
    "before a row": ([AIMessage("It is 4."), row("raw")], "It is 4."),
    "after tools": ([ASKED, row("4"), AIMessage("It is 4.")], "It is 4."),
    "direct tool": ([ASKED, row("drawn", "draw")], "drawn"),
    "named agent": ([HumanMessage("From the desk: 4.", name="desk")], "From the desk: 4."),
    "chat role": ([ChatMessage(content="It is 4.", role="assistant")], "It is 4."),
}
NONE: dict[str, list[BaseMessage]] = {
    "nothing": [],
    "a person": [HumanMessage("Shall I go on?")],
    "an instruction": [SystemMessage("internal")],
    "a row": [ASKED, row("raw row")],
    "open calls": [AIMessage("Let me check that.", tool_calls=[CALL])],
    "a failed direct tool": [ASKED, row("Tool draw failed", "draw", status="error")],
    "an answer before open calls": [AIMessage("It is 4."), ASKED],
}


@pytest.mark.parametrize("name", ANSWERS)
def test_last_message_to_the_caller_is_the_answer(name: str) -> None:
    """The last message that addresses the caller is the answer."""
    messages, text = ANSWERS[name]
    answer = answer_in(messages, {}, NAMES)
    assert (answer.text, answer.output, answer.refused, answer.limit) == (text, None, False, None)


@pytest.mark.parametrize("name", NONE)
def test_other_messages_are_no_answer(name: str) -> None:
    """No question, tool result or text of unmade calls is an answer."""
    with pytest.raises(NoAnswer):
        answer_in(NONE[name], {}, NAMES)


@pytest.mark.parametrize("text", ["", "  ", "Model call failed after 3 attempts with OSError: x"])
def test_empty_message_is_a_model_failure(text: str) -> None:
    """An empty message is the model's failure, and so is the text of a retry in its place."""
    with pytest.raises(ModelFailed):
        answer_in([AIMessage(text)], {}, NAMES)


def test_marked_refusal_is_a_refused_answer() -> None:
    """A refusal that the provider marks is an answer marked as refused."""
    answer = answer_in([AIMessage("", additional_kwargs={"refusal": "No."})], {}, NAMES)
    assert (answer.text, answer.refused) == ("No.", True)


def test_blocks_without_text_are_output() -> None:
    """Blocks without text are an answer; they are its output."""
    answer = answer_in([AIMessage([PICTURE])], {}, NAMES)
    assert (answer.text, answer.output) == ("", [PICTURE])
    answer = answer_in(
        [ASKED, row("", "draw").model_copy(update={"content": [PICTURE]})], {}, NAMES
    )
    assert answer.output == [PICTURE]


def test_message_of_an_output_tool_needs_output() -> None:
    """The message of an output tool is an answer only if there is output."""
    messages: list[BaseMessage] = [
        AIMessage("", tool_calls=[{**CALL, "name": "Shape"}]),
        row("Thanks!", "Shape"),
    ]
    answer = answer_in(messages, {"structured_response": {"sides": 3}}, NAMES)
    assert (answer.text, answer.output) == ("Thanks!", {"sides": 3})
    with pytest.raises(NoAnswer):
        answer_in(messages, {}, NAMES)


def test_answer_in_other_keys_is_output() -> None:
    """A graph that answers in other keys has them as output; a single text is its answer too."""
    answer = answer_in([], {"report": "Long."}, NAMES)
    assert (answer.text, answer.output) == ("Long.", {"report": "Long."})
    answer = answer_in([], {"report": "Long.", "pages": 3}, NAMES)
    assert (answer.text, answer.output) == ("", {"report": "Long.", "pages": 3})


def test_earlier_messages_are_not_new() -> None:
    """Messages of an earlier question are not new, wherever they are."""
    old, question, new = AIMessage("Old.", id="1"), HumanMessage("?", id="run"), AIMessage("New.")
    assert new_messages([old, question, new], {"1"}, "run") == [new]
    assert new_messages([old, new], {"1"}, "run") == [new]
    assert new_messages([question, old], {"1"}, "run") == []


@pytest.mark.parametrize("value", [None, "text", [{"nobody": "knows"}], [1]])
def test_value_without_messages_has_none(value: Any) -> None:
    """A value without messages has none."""
    assert as_messages(value) == []


def test_dicts_are_messages() -> None:
    """Dicts in the form of a provider's client are messages."""
    (message,) = as_messages([{"role": "assistant", "content": "It is 4."}])
    assert answer_in([message], {}, NAMES).text == "It is 4."
