"""How the demo model decides: which tool fits a question, with which arguments, and what to say.

Everything here is a pure function of the question, the bound tools and their results, which is why
one model serves any number of runs at once.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from langchain_core.messages import ToolMessage

from app.agents.demo_language import Phrases, Question, vocabulary

MOST_CALLS = 20

_ID_NAME = re.compile(r"(?:^|_)(?:ids?|numbers?|no|code|ref|reference)$")
_FREE_TEXT_NAME = re.compile(r"(?:^|_)(?:q|query|question|text|message|input|prompt)$")
_LIKE_AN_ID = re.compile(r"#\w+|\d{4,}|[A-Za-z]+[-_]?\d[\w-]*|(?=.*\d)[\w-]{8,}")
_YEAR_OR_DATE = re.compile(r"(?:19|20)\d\d(?:-\d\d?){0,2}")
_EXAMPLE = re.compile(r"(?:for example|e\.g\.|例如)\s*([\w#/-]+)")


@dataclass(frozen=True)
class Argument:
    """One required argument of a tool, and what a question offers for it."""

    name: str
    schema: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """The JSON type; an argument that states none is taken for a string."""
        return str(self.schema.get("type", "string"))

    @property
    def description(self) -> str:
        """What the tool's author says about it, which may hold an example and Chinese names."""
        return str(self.schema.get("description", ""))

    @property
    def options(self) -> list[Any]:
        """The only values it may have; empty when it is free."""
        return [self.schema["const"]] if "const" in self.schema else self.schema.get("enum", [])

    @property
    def is_id(self) -> bool:
        """Whether it names one thing, so that several ids mean several calls."""
        named_so = self.kind in ("string", "integer") and _ID_NAME.search(self.name) is not None
        return not self.options and (named_so or "pattern" in self.schema)

    def offers(self, question: Question) -> list[Any]:
        """Everything in the question that could be this argument, the likeliest first."""
        if self.options:
            return self._mentioned(question)
        if self.is_id:
            return [self._converted(t.lstrip("#")) for t in question.tokens if self._accepts(t)]
        match self.kind:
            case "integer" | "number":
                return [self._converted(number) for number in question.numbers]
            case "boolean":
                return [True]
            case "array":
                items = Argument(self.name, self.schema.get("items", {})).offers(question)
                return [items] if items else []
            case "string":
                asks_for_text = _FREE_TEXT_NAME.search(self.name)
                return [question.text] if asks_for_text else list(question.names)
            case _:
                return []

    def ask(self, question: Question) -> str:
        """The sentence that asks the caller for this argument."""
        phrases, hint = question.phrases, ""
        if self.options:
            options = [phrases.name_of(self._in_words(o), str(o)) for o in self.options]
            hint = phrases.choices.format(phrases.comma.join(options))
        elif example := _EXAMPLE.search(self.description):
            hint = phrases.example.format(example.group(1))
        if self.is_id and question.tokens:
            hint += phrases.unlike.format(phrases.comma.join(question.tokens[:3]))
        what = phrases.name_of(self.description, self.name.replace("_", " "))
        return phrases.ask.format(what=what, hint=hint)

    def _accepts(self, token: str) -> bool:
        """Hold a token against the schema's own pattern, or else against what ids look like."""
        bare = token.lstrip("#")
        if "pattern" in self.schema:
            return re.search(self.schema["pattern"], bare) is not None
        if self.kind == "integer":
            return bare.isdecimal() and len(bare) <= 15
        return bool(_LIKE_AN_ID.fullmatch(token)) and not _YEAR_OR_DATE.fullmatch(token)

    def _converted(self, text: str) -> Any:
        if self.kind == "integer":
            return int(float(text))
        return float(text) if self.kind == "number" else text

    def _mentioned(self, question: Question) -> list[Any]:
        shared = {o: len(question.words & vocabulary(self._in_words(o))) for o in self.options}
        return sorted((o for o in self.options if shared[o]), key=lambda o: -shared[o])

    def _in_words(self, option: Any) -> str:
        """The option and what the description calls it: `shipped on its way 已发货; packed …`."""
        parts = re.split(r"[;；.。\n]", self.description)
        named = (part for part in parts if re.search(rf"\b{re.escape(str(option))}\b", part))
        return f"{option} {next(named, '')}"


@dataclass(frozen=True)
class Tool:
    """A bound tool, as its OpenAI schema describes it."""

    schema: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name by which the agent calls it."""
        return str(self.schema["name"])

    @cached_property
    def required(self) -> list[Argument]:
        """The arguments it cannot do without; the others keep their defaults."""
        parameters = self.schema.get("parameters", {})
        properties = parameters.get("properties", {})
        return [Argument(name, properties.get(name, {})) for name in parameters.get("required", [])]

    @cached_property
    def words(self) -> frozenset[str]:
        """Everything in its schema that a question could share with it."""
        texts = [self.name, str(self.schema.get("description", ""))]
        for argument in self.required:
            texts += [argument.name, argument.description, *map(str, argument.options)]
        return vocabulary(" ".join(texts))

    def is_filled_by(self, question: Question) -> bool:
        """Whether the question holds every argument, of which there is at least one."""
        return bool(self.required) and all(a.offers(question) for a in self.required)

    def takes_an_id_from(self, question: Question) -> bool:
        """Whether the question holds an id of the kind that this tool wants."""
        return any(a.is_id and a.offers(question) for a in self.required)


@dataclass(frozen=True)
class Call:
    """A tool that the model wants called."""

    tool: str
    arguments: dict[str, Any]


def plan(question: Question, tools: Sequence[Tool]) -> list[Call] | str:
    """The calls that the question asks for, or a sentence for the caller when there is none."""
    phrases, tool = question.phrases, _choose(question, tools)
    if not tools:
        return phrases.no_tools
    if tool is None:
        return phrases.cannot.format(tools=phrases.comma.join(tool.name for tool in tools))
    for argument in tool.required:
        if not argument.offers(question):
            return argument.ask(question)
    calls = _calls(question, tool)
    return calls if len(calls) <= MOST_CALLS else phrases.too_many.format(MOST_CALLS)


def _choose(question: Question, tools: Sequence[Tool]) -> Tool | None:
    """The tool that shares most with the question; the first one bound, when several do.

    A word that many tools know says little about any of them. A tool whose arguments the question
    holds comes before one that would have to ask. An id tips the balance between tools that know
    the same words, and is enough by itself when no tool knows any: any news of 10023?
    """
    known_by = Counter(word for tool in tools for word in tool.words)
    has_id = any(tool.takes_an_id_from(question) for tool in tools)

    def score(tool: Tool) -> float:
        in_name = vocabulary(tool.name)
        shared = question.words & tool.words
        overlap = sum((2 if word in in_name else 1) / known_by[word] for word in shared)
        if has_id:
            return overlap + 0.3 * tool.takes_an_id_from(question)
        return overlap + (overlap > 0 and tool.is_filled_by(question))

    scores = [score(tool) for tool in tools]
    best = max(scores, default=0)
    return tools[scores.index(best)] if best > 0 else None


def _calls(question: Question, tool: Tool) -> list[Call]:
    """One call, or one for each id when the tool takes a single one."""
    ids = [argument for argument in tool.required if argument.is_id]
    if len(ids) == 1:
        values = ids[0].offers(question)
        return [Call(tool.name, _filled(question, tool, {ids[0].name: v})) for v in values]
    return [Call(tool.name, _filled(question, tool, {}))]


def _filled(question: Question, tool: Tool, known: dict[str, Any]) -> dict[str, Any]:
    """Give each argument its likeliest value, and a second number the second one: add 2 and 3."""
    filled = dict(known)
    for argument in tool.required:
        if argument.name not in filled:
            offers = argument.offers(question)
            unused = [offer for offer in offers if offer not in filled.values()]
            filled[argument.name] = (unused or offers)[0]
    return {argument.name: filled[argument.name] for argument in tool.required}


def worded(result: ToolMessage, phrases: Phrases) -> str:
    """A tool's result as a sentence: its own `summary` where it has one, else its fields."""
    text, tool = str(result.text).strip(), result.name or ""
    if result.status == "error":
        return phrases.failed.format(tool=tool, reason=text)
    if not text:
        return phrases.silent.format(tool=tool)
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if not isinstance(value, dict):
        return text
    summary = value.get(phrases.summary_key) or value.get("summary")
    return str(summary) if summary else _listed(value)


def _listed(fields: Mapping[str, Any]) -> str:
    def shown(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    text = "; ".join(f"{key.replace('_', ' ')}: {shown(value)}" for key, value in fields.items())
    return f"{text[:1].upper()}{text[1:]}."
