"""The handler of a run that somebody reads while it goes on: it makes models stream."""

from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessageChunk

from app.agents.callback import RunHandler
from app.agents.model_calls import iteration_of, speaker
from app.runs.events import OnToken, Token
from app.runs.ports import AgentCall


class StreamingHandler(RunHandler):
    """Passes the text of models on as it comes.

    LangChain lets a model stream when a handler has the two methods below: they mark it, and pass
    on what they are given.
    """

    def on_llm_new_token(self, token: Any, *, run_id: UUID, chunk: Any = None, **told: Any) -> None:
        """A streamed model call gave a token."""
        super().on_llm_new_token(token, run_id=run_id, chunk=chunk, **told)
        opened = self.models.open.get(run_id)
        if opened is None or opened.silent or self.call.on_token is None:
            return
        message = getattr(chunk, "message", None)
        text = str(message.text) if isinstance(message, AIMessageChunk) else str(token)
        if text:
            iteration = iteration_of(opened.place, self.turns.iterations)
            self.call.on_token(Token(text, iteration, speaker(opened, self.tree.root)))

    def tap_output_aiter(self, run_id: UUID, output: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Part of the mark."""
        return output

    def tap_output_iter(self, run_id: UUID, output: Iterator[Any]) -> Iterator[Any]:
        """Part of the mark."""
        return output


def handler_for(call: AgentCall, agent: str, *names: frozenset[str], **parts: Any) -> RunHandler:
    """A handler that streams only where somebody reads; streaming costs more."""
    return (RunHandler if call.on_token is None else StreamingHandler)(call, agent, *names, **parts)


def only_sub_agents(on_token: OnToken) -> OnToken:
    """For an agent whose own text is not its answer: what others say inside its tools."""

    def said(token: Token) -> None:
        if token.sub_agent is not None:
            on_token(token)

    return said
