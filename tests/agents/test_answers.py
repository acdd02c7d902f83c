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
def test_answers(name: str) -> None:
    """The last message that speaks to whoever asked is the answer."""
    messages, text = ANSWERS[name]
    answer = answer_in(messages, {}, NAMES)
    assert (answer.text, answer.output, answer.refused, answer.limit) == (text, None, False, None)


@pytest.mark.parametrize("name", NONE)
def test_no_answers(name: str) -> None:
    """Neither the question, nor a row, nor the text of calls that were not made is one."""
    with pytest.raises(NoAnswer):
        answer_in(NONE[name], {}, NAMES)


@pytest.mark.parametrize("text", ["", "  ", "Model call failed after 3 attempts with OSError: x"])
def test_a_model_that_says_nothing(text: str) -> None:
    """An empty message is the model's failure, and so is what a retry says in its place."""
    with pytest.raises(ModelFailed):
        answer_in([AIMessage(text)], {}, NAMES)


def test_a_refusal() -> None:
    """A refusal that the provider marks is an answer that is marked."""
    answer = answer_in([AIMessage("", additional_kwargs={"refusal": "No."})], {}, NAMES)
    assert (answer.text, answer.refused) == ("No.", True)


def test_blocks() -> None:
    """Blocks without text are an answer; they are its output."""
    answer = answer_in([AIMessage([PICTURE])], {}, NAMES)
    assert (answer.text, answer.output) == ("", [PICTURE])
    answer = answer_in(
        [ASKED, row("", "draw").model_copy(update={"content": [PICTURE]})], {}, NAMES
    )
    assert answer.output == [PICTURE]


def test_structured_output() -> None:
    """The message of an output tool speaks only where there is output."""
    messages: list[BaseMessage] = [
        AIMessage("", tool_calls=[{**CALL, "name": "Shape"}]),
        row("Thanks!", "Shape"),
    ]
    answer = answer_in(messages, {"structured_response": {"sides": 3}}, NAMES)
    assert (answer.text, answer.output) == ("Thanks!", {"sides": 3})
    with pytest.raises(NoAnswer):
        answer_in(messages, {}, NAMES)


def test_other_keys() -> None:
    """A graph that answers in other keys has them as output; one text is its words too."""
    answer = answer_in([], {"report": "Long."}, NAMES)
    assert (answer.text, answer.output) == ("Long.", {"report": "Long."})
    answer = answer_in([], {"report": "Long.", "pages": 3}, NAMES)
    assert (answer.text, answer.output) == ("", {"report": "Long.", "pages": 3})


def test_new_messages() -> None:
    """Messages of an earlier question are not new, wherever they stand."""
    old, asked, new = AIMessage("Old.", id="1"), HumanMessage("?", id="run"), AIMessage("New.")
    assert new_messages([old, asked, new], {"1"}, "run") == [new]
    assert new_messages([old, new], {"1"}, "run") == [new]
    assert new_messages([asked, old], {"1"}, "run") == []


@pytest.mark.parametrize("value", [None, "text", [{"nobody": "knows"}], [1]])
def test_no_messages(value: Any) -> None:
    """What holds no messages has none."""
    assert as_messages(value) == []


def test_dicts_are_messages() -> None:
    """Messages as a provider's client has them are messages."""
    (message,) = as_messages([{"role": "assistant", "content": "It is 4."}])
    assert answer_in([message], {}, NAMES).text == "It is 4."
