"""The chat models of a plan: what they reply follows from the messages alone, at any pace."""

import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.utils.function_calling import convert_to_openai_tool

from tests.property.ledger import Ledger, Whose
from tests.property.plan import Agent, Ask, Call, Cure, Helper, ToolKind, Turn

TOKENS = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
UNKNOWN_TOOL = "nowhere"
_PART = re.compile(r"part ([\d.]+)")


class Down(ConnectionError):
    """The provider is away, for this call."""


@dataclass(frozen=True)
class Ticket:
    """Marks a tool call: whose, of which turn, the how-manieth there."""

    whose: Whose
    turn: int
    number: int

    def __str__(self) -> str:
        return f"{self.whose.name}:{self.turn}:{self.number}@{self.whose.copy}"

    @classmethod
    def read(cls, text: str) -> "Ticket":
        """The ticket in the id or the argument of a tool call."""
        place, _, copy = text.partition("@")
        name, turn, number = place.split(":")
        return cls(Whose(name, copy), int(turn), int(number))


def tool_name(agent: str, call: Call, number: int) -> str:
    """The name of the tool that a call of a plan asks for."""
    if call.kind is ToolKind.UNKNOWN:
        return UNKNOWN_TOOL
    inner = f"_{call.agent.name}" if call.agent else ""
    return f"{call.kind}_{agent}{inner}"


def requests(agent: str, whose: Whose, number: int, turn: Turn) -> list[dict[str, Any]]:
    """The tool calls of a message."""
    tickets = [Ticket(whose, number, n) for n in range(len(turn.calls))]
    return [
        {
            "name": tool_name(agent, call, ticket.number),
            "args": {"ticket": str(ticket)},
            "id": str(ticket),
            "type": "tool_call",
        }
        for call, ticket in zip(turn.calls, tickets, strict=True)
    ]


def copy_in(messages: Sequence[BaseMessage]) -> str:
    """Which copy of a branch was asked: its question says so."""
    for message in messages:
        found = _PART.fullmatch(str(message.text)) if isinstance(message, HumanMessage) else None
        if found:
            return found[1]
    return ""


class Scripted(BaseChatModel):
    """Answers with `reply`, which may raise; it gets messages and names of tools."""

    ledger: Any
    place: str

    @property
    def _llm_type(self) -> str:
        return "planned"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, Any]:
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def reply(self, messages: list[BaseMessage], tools: bool) -> AIMessage:
        """Its reply to these; raises Down."""
        raise NotImplementedError

    def _reply_of(self, messages: list[BaseMessage], given: dict[str, Any]) -> AIMessage:
        reply = self.reply(messages, bool(given.get("tools")))
        reason = "tool_calls" if reply.tool_calls else "stop"
        return reply.model_copy(
            update={"usage_metadata": dict(TOKENS), "response_metadata": {"finish_reason": reason}}
        )

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **given: Any
    ) -> ChatResult:
        self.ledger.block(self.place)
        return ChatResult(generations=[ChatGeneration(message=self._reply_of(messages, given))])

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **given: Any
    ) -> ChatResult:
        await self.ledger.rest(self.place)
        return ChatResult(generations=[ChatGeneration(message=self._reply_of(messages, given))])

    def _stream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **given: Any
    ) -> Iterator[ChatGenerationChunk]:
        self.ledger.block(self.place)
        try:
            reply = self._reply_of(messages, given)
        except Halfway as failed:
            yield _piece(failed.words)
            self.ledger.block(self.place)
            raise
        for chunk in _pieces(reply):
            yield chunk
            self.ledger.block(self.place)

    async def _astream(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **given: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        await self.ledger.rest(self.place)
        try:
            reply = self._reply_of(messages, given)
        except Halfway as failed:
            yield _piece(failed.words)
            await self.ledger.rest(self.place)
            raise
        for chunk in _pieces(reply):
            yield chunk
            await self.ledger.rest(self.place)


class Halfway(Down):
    """It goes away in the middle of its answer."""

    def __init__(self, words: str) -> None:
        super().__init__("gone")
        self.words = words


def _piece(text: str) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=text))


def _pieces(message: AIMessage) -> Iterator[ChatGenerationChunk]:
    words = re.findall(r"\S+\s*", message.text)
    half = len(words) // 2
    for text in ("".join(words[:half]), "".join(words[half:])):
        if text:
            yield _piece(text)
    calls = [
        {"name": c["name"], "args": json.dumps(c["args"]), "id": c["id"], "index": i}
        for i, c in enumerate(message.tool_calls)
    ]
    last = AIMessageChunk(
        content="",
        tool_call_chunks=calls,
        usage_metadata=message.usage_metadata,
        response_metadata=message.response_metadata,
    )
    yield ChatGenerationChunk(message=last)


class AgentModel(Scripted):
    """The model of an agent. A fallback has no trouble."""

    agent: Any
    stands_in: bool = False

    def reply(self, messages: list[BaseMessage], tools: bool) -> AIMessage:
        """Its next turn; without tools, or after the last turn, its answer."""
        agent: Agent = self.agent
        ledger: Ledger = self.ledger
        whose = Whose(agent.name, copy_in(messages))
        number = _turns_in(messages, whose)
        self._fail(whose, number, tools)
        turn = agent.turns[number] if number < len(agent.turns) else None
        if turn is None or (turn.calls and not tools):
            concludes = turn is not None
            ledger.ask(whose, None, answered=True, concludes=concludes)
            return AIMessage(concluded(agent) if concludes else answer(agent))
        ledger.ask(whose, number, answered=True)
        if not turn.calls:
            return AIMessage(draft(whose, number))
        text = f"{agent.name} thinks about {number}" if turn.speaks else ""
        return AIMessage(text, tool_calls=requests(agent.name, whose, number, turn))

    def _fail(self, whose: Whose, number: int, tools: bool) -> None:
        trouble = self.agent.trouble
        if trouble is None or self.stands_in or trouble.cure in (Cure.LATE, Cure.TWICE):
            return
        if trouble.turn != number:
            return
        if self.ledger.attempt("model", whose, number) < trouble.times:
            self.ledger.ask(whose, number, answered=False)
            raise Halfway("Oops, ") if trouble.halfway else Down("down")


def answer(agent: Agent) -> str:
    """The last text of an agent."""
    return f"{agent.name} has the answer"


def concluded(agent: Agent) -> str:
    """The text of an agent that the limit stops."""
    return f"{agent.name} had to conclude"


def draft(whose: Whose, number: int) -> str:
    """A text that is sent back."""
    return f"draft {whose.name}.{number}@{whose.copy}"


def _turns_in(messages: Sequence[BaseMessage], whose: Whose) -> int:
    turns = set[int]()
    for message in messages:
        if not isinstance(message, AIMessage):
            continue
        tickets = [Ticket.read(str(call["id"])) for call in message.tool_calls]
        turns |= {ticket.turn for ticket in tickets if ticket.whose == whose}
        turns |= {n for n in range(9) if message.text == draft(whose, n)}
    return len(turns)


class HelperModel(Scripted):
    """The model of a guard, a judge, a selector or a tool that asks one."""

    helper: Any

    def reply(self, messages: list[BaseMessage], tools: bool) -> AIMessage:
        """A verdict, or words."""
        helper: Helper = self.helper
        whose = Whose(helper.name)
        failing = helper.ask is Ask.FAILS
        self.ledger.ask(whose, None, answered=not failing, helps=True)
        if failing:
            raise Down("down")
        if not tools:
            return AIMessage(f"{helper.name} helps")
        number = self.ledger.attempt("verdict", whose)
        verdict = {
            "name": "Verdict",
            "args": {"safe": True},
            "id": f"{helper.name}:{number}:0@",
            "type": "tool_call",
        }
        return AIMessage("", tool_calls=[verdict])
