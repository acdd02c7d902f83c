"""Messages that providers' real clients make of their responses are read correctly."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.tools import tool
from pydantic import BaseModel

from app.agents import error_classification
from app.agents.errors import FilteredAnswer, IncompleteAnswer
from app.agents.models import finish_reasons, model_responses
from app.agents.models.finish_reasons import FinishKind
from app.agents.models.incomplete_answers import StreamedArguments, raise_if_incomplete
from app.agents.models.message_content import blocks_of, refusal_of
from app.agents.models.openai import chat_openai
from tests.ecosystem import anthropic_wire, google_wire, ollama_wire, openai_wire, responses_wire
from tests.ecosystem.wire import IMAGE, Turn, serving

Client = Callable[..., AbstractAsyncContextManager[Any]]
CLIENTS: dict[str, Client] = {
    "anthropic": anthropic_wire.model,
    "google": google_wire.model,
    "ollama": ollama_wire.model,
    "openai": openai_wire.model,
    "responses": responses_wire.model,
}
WAYS = [(client, streamed) for client in CLIENTS for streamed in (False, True)]
ASKS = [("look", {"order": "77"}), ("look", {"order": "78"})]
HALF = "Half of a sent"
NO = "I will not help with that."
# The words with which each says that a message is not whole.
CUT: dict[str, list[str]] = {
    "anthropic": ["max_tokens", "model_context_window_exceeded", "pause_turn"],
    "google": ["MAX_TOKENS", "OTHER", "MALFORMED_FUNCTION_CALL", "NO_IMAGE"],
    "ollama": ["length", "unload"],
    "openai": ["length"],
    "responses": ["max_output_tokens"],
}
FILTERED: dict[str, list[str]] = {
    "anthropic": ["refusal"],
    "google": [
        "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII",
        "IMAGE_SAFETY",
    ],
    "ollama": [],
    "openai": ["content_filter"],
    "responses": ["content_filter"],
}  # fmt: skip


class Order(BaseModel):
    number: int


@tool
def look(order: str) -> str:
    """Look at an order."""
    return order


async def ask(client: Any, *, streamed: bool) -> tuple[AIMessage, StreamedArguments | None]:
    """The client's message of the next turn, and the arguments as they were streamed."""
    if not streamed:
        whole = await client.ainvoke("Where is order 77?")
        assert isinstance(whole, AIMessage)
        return whole, None
    arguments, merged = StreamedArguments(), AIMessageChunk(content="")
    pieces = [chunk async for chunk in client.astream("Where is order 77?")]
    for piece in pieces:
        arguments.add(piece)
    merged = pieces[0]
    for piece in pieces[1:]:
        merged += piece
    return merged, arguments


def refuse(client: BaseChatModel, message: AIMessage, streamed: StreamedArguments | None) -> None:
    """As the handler does: by the name that the client gives its provider."""
    raise_if_incomplete(message, str(client._get_ls_params()["ls_provider"]), streamed)


@pytest.mark.parametrize(("client", "streamed"), WAYS)
async def test_whole_answer_passes(client: str, streamed: bool) -> None:
    """A whole answer passes, with its usage and the reason that its provider gave."""
    async with CLIENTS[client](Turn("All is well.", thinking="Hm, so.")) as chat:
        message, arguments = await ask(chat, streamed=streamed)
        refuse(chat, message, arguments)
    assert (str(message.text), refusal_of(message), blocks_of(message)) == (
        "All is well.", None, None
    )  # fmt: skip
    reasons = {"anthropic": "end_turn", "google": "STOP", "responses": "completed"}
    assert model_responses.finish_reason(message) == reasons.get(client, "stop")
    usage = model_responses.usage(message)
    assert (usage.input_tokens, usage.output_tokens) == (10, 5)


@pytest.mark.parametrize(("client", "streamed"), WAYS)
async def test_whole_calls_pass(client: str, streamed: bool) -> None:
    """Whole tool calls pass, in whatever pieces their arguments came."""
    async with CLIENTS[client](Turn(calls=ASKS)) as chat:
        message, arguments = await ask(chat.bind_tools([look]), streamed=streamed)
        refuse(chat, message, arguments)
    assert [(call["name"], call["args"]) for call in message.tool_calls] == ASKS


@pytest.mark.parametrize(("client", "streamed"), WAYS)
async def test_every_word_for_a_cut_is_refused(client: str, streamed: bool) -> None:
    """Each word for a cut answer is refused; a filter's word has a class of its own."""
    kinds = {
        **dict.fromkeys(CUT[client], FinishKind.CUT),
        **dict.fromkeys(FILTERED[client], FinishKind.FILTERED),
    }
    for word, kind in kinds.items():
        turn = Turn(HALF, reason=word, refusal=NO if client == "anthropic" else "")
        async with CLIENTS[client](turn) as chat:
            message, arguments = await ask(chat, streamed=streamed)
            assert finish_reasons.of_message(message).kind is kind, word
            with pytest.raises(IncompleteAnswer) as refused:
                refuse(chat, message, arguments)
        assert isinstance(refused.value, FilteredAnswer) is (kind is FinishKind.FILTERED)
        assert model_responses.finish_reason(message) == word
        assert refusal_of(message) is None


@pytest.mark.parametrize("client", ["anthropic", "google"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_cut_of_version_1_is_refused(client: str, streamed: bool) -> None:
    """The same holds for a client that writes LangChain's own blocks, with one named refusal."""
    word = FILTERED[client][0]
    async with CLIENTS[client](Turn(HALF, reason=word), output_version="v1") as chat:
        message, arguments = await ask(chat, streamed=streamed)
        assert refusal_of(message) is None
        with pytest.raises(FilteredAnswer):
            refuse(chat, message, arguments)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("turn", [Turn(HALF, cut=True), Turn(calls=ASKS, cut=True)])
async def test_stream_without_its_last_event_is_refused(client: str, turn: Turn) -> None:
    """A stream that ends without its last event is refused, in a text and in a call."""
    async with CLIENTS[client](turn) as chat:
        message, arguments = await ask(chat.bind_tools([look]), streamed=True)
        with pytest.raises(IncompleteAnswer):
            refuse(chat, message, arguments)


@pytest.mark.parametrize("streamed", [True, False])
async def test_blocked_prompt_has_no_answer(streamed: bool) -> None:
    """A prompt that Gemini blocked has no answer, and a retry is no help."""
    for word in ("SAFETY", "BLOCKLIST", "OTHER"):
        async with google_wire.model(Turn(blocked=word)) as chat:
            message, arguments = await ask(chat, streamed=streamed)
            with pytest.raises(FilteredAnswer):
                refuse(chat, message, arguments)


@pytest.mark.parametrize("streamed", [True, False])
async def test_done_without_a_reason_is_whole(streamed: bool) -> None:
    """An older server of Ollama only reports that it is done: that is a whole answer."""
    async with ollama_wire.model(Turn("All is well.", reason="")) as chat:
        message, arguments = await ask(chat, streamed=streamed)
        refuse(chat, message, arguments)


@pytest.mark.parametrize("streamed", [True, False])
async def test_answer_that_only_loaded_the_model_is_refused(streamed: bool) -> None:
    """Ollama's client drops the end of an answer that only loaded the model; it is refused."""
    async with ollama_wire.model(Turn(HALF, reason="load")) as chat:
        message, arguments = await ask(chat, streamed=streamed)
        with pytest.raises(IncompleteAnswer):
            refuse(chat, message, arguments)


@pytest.mark.parametrize(
    ("client", "streamed"), [("openai", False), ("responses", False), ("responses", True)]
)
async def test_refusal_of_openai_has_its_text(client: str, streamed: bool) -> None:
    """A refusal that OpenAI returns as a message of its own is whole, and has its text."""
    async with CLIENTS[client](Turn(refusal=NO)) as chat:
        message, arguments = await ask(chat, streamed=streamed)
        refuse(chat, message, arguments)
    assert (refusal_of(message), str(message.text), blocks_of(message)) == (NO, "", None)


@pytest.mark.parametrize("version", ["v0", "responses/v1", "v1"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_refusal_in_each_version(version: str, streamed: bool) -> None:
    """The same holds in each form in which OpenAI's client writes its messages."""
    async with responses_wire.model(Turn(refusal=NO), output_version=version) as chat:
        message, _ = await ask(chat, streamed=streamed)
    assert refusal_of(message) == NO


async def test_our_client_reads_a_streamed_refusal() -> None:
    """Our own client reads the refusal of a stream, which the library's drops."""
    with serving(openai_wire.Completions(), [Turn(refusal=NO)]) as wire:
        chat = chat_openai("gpt-4.1-mini", base_url=f"{wire.url}/v1", api_key="not-a-secret")
        message, arguments = await ask(chat, streamed=True)
    refuse(chat, message, arguments)
    assert refusal_of(message) == NO


@pytest.mark.parametrize("client", ["google", "responses"])
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("text", ["", "Here it is."])
async def test_image_is_a_block(client: str, streamed: bool, text: str) -> None:
    """An image is a block, with text beside it or alone."""
    async with CLIENTS[client](Turn(text, image=IMAGE)) as chat:
        message, arguments = await ask(chat, streamed=streamed)
        refuse(chat, message, arguments)
    blocks = blocks_of(message)
    assert blocks is not None
    found = [{key: block[key] for key in ("type", "base64", "mime_type")} for block in blocks]
    assert found == [{"type": "image", "base64": IMAGE, "mime_type": "image/png"}]
    assert str(message.text) == text


@pytest.mark.parametrize("client", ["google", "openai"])
async def test_sound_is_a_block(client: str) -> None:
    """The sound of a model is a block."""
    async with CLIENTS[client](Turn(audio="AAAA")) as chat:
        message, _ = await ask(chat, streamed=False)
    blocks = blocks_of(message)
    assert blocks is not None
    assert [block["type"] for block in blocks] == ["audio"]
    assert blocks[0]["base64"]


@pytest.mark.parametrize("client", ["anthropic", "google", "responses"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_reasoning_alone_is_no_answer(client: str, streamed: bool) -> None:
    """A message of reasoning alone has no answer."""
    async with CLIENTS[client](Turn(thinking="Hm, so.")) as chat:
        message, _ = await ask(chat, streamed=streamed)
    assert (str(message.text), refusal_of(message), blocks_of(message)) == ("", None, None)


POLICY = "Output blocked by content filtering policy"
ERRORS: dict[str, tuple[str, Turn, bool]] = {
    "a prompt that Azure blocked": ("openai", Turn(status=400, reason="content_filter"), True),
    "the same, in Responses": ("responses", Turn(status=400, reason="content_filter"), True),
    "an answer that Anthropic blocked": ("anthropic", Turn(POLICY, status=400), True),
    "a bad request": ("openai", Turn(status=400, reason="invalid_value"), False),
    "another bad request": ("anthropic", Turn("max_tokens: too large", status=400), False),
    "too many": ("google", Turn(status=429), False),
    "a server that broke": ("ollama", Turn(status=500), False),
}


@pytest.mark.parametrize("row", ERRORS)
async def test_error_status_is_a_filters_if_named(row: str) -> None:
    """An error status is a filter's only if the provider says so."""
    client, turn, filtered = ERRORS[row]
    async with CLIENTS[client](turn) as chat:
        with pytest.raises(Exception) as raised:  # noqa: PT011 - each client has its own
            await ask(chat, streamed=False)
    assert error_classification.is_filtered(raised.value) is filtered


STRUCTURED: dict[str, tuple[Turn, bool, str | None]] = {
    "refused": (Turn(refusal=NO), False, NO),
    "filtered": (Turn('{"num', reason="content_filter"), True, None),
    "nothing": (Turn(), False, None),
}


@pytest.mark.parametrize("row", STRUCTURED)
async def test_exception_of_structured_output_is_classified(row: str) -> None:
    """The exception of a client with structured output is classified."""
    turn, filtered, refusal = STRUCTURED[row]
    async with openai_wire.model(turn) as chat:
        with pytest.raises(Exception) as raised:  # noqa: PT011 - each has its own
            await chat.with_structured_output(Order).ainvoke("Which order?")
    error = raised.value
    assert (error_classification.is_filtered(error), error_classification.refusal_in(error)) == (
        filtered,
        refusal,
    )
    assert filtered or refusal or error_classification.is_model_error(error)
