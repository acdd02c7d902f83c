"""The handler of a streamed run: it makes models stream and passes tokens on."""

from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

from langchain_core.messages import AIMessageChunk

from app.agents.handler.callback import RunHandler
from app.agents.handler.model_calls import agent_name, iteration_of
from app.runs.events import OnToken, Token
from app.runs.ports import AgentCall


class StreamingHandler(RunHandler):
    """Passes tokens of models to the run's `on_token`.

    LangChain streams a model if a handler has the two `tap_output` methods. Both return their
    input.
    """

    def on_llm_new_token(
        self, token: Any, *, run_id: UUID, chunk: Any = None, **kwargs: Any
    ) -> None:
        """A streamed model call produced a token."""
        super().on_llm_new_token(token, run_id=run_id, chunk=chunk, **kwargs)
        opened = self.models.open.get(run_id)
        if opened is None or opened.silent or self.call.on_token is None:
            return
        message = getattr(chunk, "message", None)
        text = str(message.text) if isinstance(message, AIMessageChunk) else str(token)
        if text:
            iteration = iteration_of(opened.place, self.turns.iterations)
            self.call.on_token(Token(text, iteration, agent_name(opened, self.tree.root)))

    def tap_output_aiter(self, run_id: UUID, output: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """Return the output. Its presence makes LangChain stream."""
        return output

    def tap_output_iter(self, run_id: UUID, output: Iterator[Any]) -> Iterator[Any]:
        """Return the output. Its presence makes LangChain stream."""
        return output


def handler_for(call: AgentCall, agent: str, *names: frozenset[str], **parts: Any) -> RunHandler:
    """Return a handler that streams only if the run has a reader: streaming costs more."""
    return (RunHandler if call.on_token is None else StreamingHandler)(call, agent, *names, **parts)


def only_sub_agents(on_token: OnToken) -> OnToken:
    """Return an `on_token` for sub-agents only: the agent's own text is not its answer."""

    def forward(token: Token) -> None:
        if token.sub_agent is not None:
            on_token(token)

    return forward
