"""Agents over real clients whose provider filters, refuses, or answers in blocks."""

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy
from pydantic import BaseModel

from app.agents.models.openai import chat_openai
from tests.ecosystem import openai_wire
from tests.ecosystem.test_wire_answers import ASKS, HALF, end
from tests.ecosystem.test_wire_answers import serving as agents_over
from tests.ecosystem.test_wires import CLIENTS, FILTERED, NO, POLICY
from tests.ecosystem.wire import IMAGE, Turn, serving
from tests.service import served

FILTERS = [client for client in CLIENTS if FILTERED[client]]
# OpenAI's client for chat completions drops the refusal of a stream, so it is asked for a whole.
REFUSERS = [("openai", False), ("responses", False), ("responses", True)]


class Order(BaseModel):
    number: int


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("client", FILTERS)
async def test_filtered_answer_is_model_failed(client: str, streamed: bool) -> None:
    """An answer that a filter cut is the model's failure, and is not retryable."""
    names = {word.lower().replace("_", "-"): word for word in FILTERED[client]}
    runs = {name: [ASKS, Turn(HALF, reason=word)] for name, word in names.items()}
    async with agents_over(client, runs) as service:
        ended = {name: await end(service, name, streamed=streamed) for name in runs}
        service.books_balance()
    ends = {name: (run.get("code"), run.get("retryable")) for name, run in ended.items()}
    assert ends == dict.fromkeys(runs, ("model_failed", False))
    assert len({run["detail"] for run in ended.values()}) == 1
    assert "filter" in next(iter(ended.values()))["detail"]


@pytest.mark.parametrize(
    ("client", "turn"),
    [
        ("google", Turn(blocked="SAFETY")),
        ("openai", Turn(status=400, reason="content_filter")),
        ("anthropic", Turn(POLICY, status=400)),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_filtered_prompt_is_model_failed(client: str, turn: Turn, streamed: bool) -> None:
    """The same holds if a filter stops the prompt, or the provider answers with an error."""
    async with agents_over(client, {"a": [turn]}) as service:
        ended = await end(service, "a", streamed=streamed)
    assert (ended.get("code"), ended.get("retryable")) == ("model_failed", False)


@pytest.mark.parametrize(("client", "streamed"), REFUSERS)
async def test_refusal_is_the_answer(client: str, streamed: bool) -> None:
    """A refusal of the provider is the answer, even after a tool call."""
    runs = {"once": [Turn(refusal=NO)], "later": [ASKS, Turn(refusal=NO)]}
    async with agents_over(client, runs) as service:
        ended = {name: await end(service, name, streamed=streamed) for name in runs}
        finished = {name: service.end_of(run["run_id"]) for name, run in ended.items()}
        service.books_balance()
    for name, run in ended.items():
        assert (run["outcome"], run.get("answer")) == ("completed", NO), name
        assert (run["refused"], finished[name].refused) == (True, True), name


async def test_our_client_reads_the_refusal_of_a_stream() -> None:
    """Our own client for chat completions reads the refusal of a stream."""
    with serving(openai_wire.Completions(), [Turn(refusal=NO)]) as wire:
        chat = chat_openai("gpt-4.1-mini", base_url=f"{wire.url}/v1", api_key="not-a-secret")
        async with served({"a": create_agent(chat, [])}) as service:
            ended = await end(service, "a", streamed=True)
    assert (ended["outcome"], ended.get("answer"), ended.get("refused")) == ("completed", NO, True)


@pytest.mark.parametrize(("client", "streamed"), REFUSERS)
async def test_refusal_of_structured_output_is_the_answer(client: str, streamed: bool) -> None:
    """A refusal is the answer even if structured output was asked for."""
    async with CLIENTS[client](Turn(refusal=NO)) as chat:
        agent = create_agent(chat, [], response_format=ProviderStrategy(Order))
        async with served({"a": agent}) as service:
            ended = await end(service, "a", streamed=streamed)
    assert (ended["outcome"], ended.get("answer"), ended.get("refused")) == ("completed", NO, True)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("client", ["google", "responses"])
async def test_image_is_output(client: str, streamed: bool) -> None:
    """An answer of an image alone is its `output`; text beside it is the `answer`."""
    runs = {"alone": [Turn(image=IMAGE)], "beside": [Turn("Here it is.", image=IMAGE)]}
    async with agents_over(client, runs) as service:
        ended = {name: await end(service, name, streamed=streamed) for name in runs}
        service.books_balance()
    texts = {name: (run["outcome"], run.get("answer")) for name, run in ended.items()}
    assert texts == {"alone": ("completed", ""), "beside": ("completed", "Here it is.")}
    for run in ended.values():
        assert [_image(block) for block in run["output"]] == [("image", IMAGE, "image/png")]


def _image(block: dict[str, Any]) -> tuple[Any, Any, Any]:
    return block.get("type"), block.get("base64"), block.get("mime_type")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("client", ["anthropic", "google", "responses"])
async def test_reasoning_alone_is_no_answer(client: str, streamed: bool) -> None:
    """Reasoning alone is no answer."""
    async with agents_over(client, {"a": [Turn(thinking="Hm, so.")]}) as service:
        ended = await end(service, "a", streamed=streamed)
    assert (ended["outcome"], ended.get("code")) == ("failed", "model_failed")
