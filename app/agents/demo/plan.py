"""Planning of the demo model: it selects the tool, its arguments and the answer's text.

Everything here is a pure function of the question, the bound tools and their results.
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

from app.agents.demo.language import Phrases, Question, vocabulary

MOST_CALLS = 20

_ID_NAME = re.compile(r"(?:^|_)(?:ids?|numbers?|no|code|ref|reference)$")
_FREE_TEXT_NAME = re.compile(r"(?:^|_)(?:q|query|question|text|message|input|prompt)$")
_LIKE_AN_ID = re.compile(r"#\w+|\d{4,}|[A-Za-z]+[-_]?\d[\w-]*|(?=.*\d)[\w-]{8,}")
_YEAR_OR_DATE = re.compile(r"(?:19|20)\d\d(?:-\d\d?){0,2}")
_EXAMPLE = re.compile(r"(?:for example|e\.g\.|例如)\s*([\w#/-]+)")


@dataclass(frozen=True)
class Argument:
    """One required argument of a tool, and the candidate values in a question."""

    name: str
    schema: Mapping[str, Any]

    @property
    def json_type(self) -> str:
        """The JSON type; `string` by default."""
        return str(self.schema.get("type", "string"))

    @property
    def description(self) -> str:
        """The author's description, which may contain an example and Chinese names."""
        return str(self.schema.get("description", ""))

    @property
    def options(self) -> list[Any]:
        """The allowed values; empty if any value is allowed."""
        return [self.schema["const"]] if "const" in self.schema else self.schema.get("enum", [])

    @property
    def is_id(self) -> bool:
        """Whether it identifies one thing, so that several ids mean several calls."""
        named_so = (
            self.json_type in ("string", "integer") and _ID_NAME.search(self.name) is not None
        )
        return not self.options and (named_so or "pattern" in self.schema)

    def candidates(self, question: Question) -> list[Any]:
        """Return the candidate values in the question, most likely first."""
        if self.options:
            return self._mentioned(question)
        if self.is_id:
            return [self._converted(t.lstrip("#")) for t in question.tokens if self._accepts(t)]
        match self.json_type:
            case "integer" | "number":
                return [self._converted(number) for number in question.numbers]
            case "boolean":
                return [True]
            case "array":
                items = Argument(self.name, self.schema.get("items", {})).candidates(question)
                return [items] if items else []
            case "string":
                asks_for_text = _FREE_TEXT_NAME.search(self.name)
                return [question.text] if asks_for_text else list(question.names)
            case _:
                return []

    def ask(self, question: Question) -> str:
        """Return the sentence that asks the caller for this argument."""
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
        """Match a token with the schema's pattern, or else with the usual form of ids."""
        bare = token.lstrip("#")
        if "pattern" in self.schema:
            return re.search(self.schema["pattern"], bare) is not None
        if self.json_type == "integer":
            return bare.isdecimal() and len(bare) <= 15
        return bool(_LIKE_AN_ID.fullmatch(token)) and not _YEAR_OR_DATE.fullmatch(token)

    def _converted(self, text: str) -> Any:
        if self.json_type == "integer":
            return int(float(text))
        return float(text) if self.json_type == "number" else text

    def _mentioned(self, question: Question) -> list[Any]:
        shared = {o: len(question.words & vocabulary(self._in_words(o))) for o in self.options}
        return sorted((o for o in self.options if shared[o]), key=lambda o: -shared[o])

    def _in_words(self, option: Any) -> str:
        """Return the option and its name in the description: `shipped on its way 已发货`."""
        parts = re.split(r"[;；.。\n]", self.description)
        named = (part for part in parts if re.search(rf"\b{re.escape(str(option))}\b", part))
        return f"{option} {next(named, '')}"


@dataclass(frozen=True)
class Tool:
    """A bound tool, described by its OpenAI schema."""

    schema: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The tool's name."""
        return str(self.schema["name"])

    @cached_property
    def required(self) -> list[Argument]:
        """The required arguments. The others keep their defaults."""
        parameters = self.schema.get("parameters", {})
        properties = parameters.get("properties", {})
        return [Argument(name, properties.get(name, {})) for name in parameters.get("required", [])]

    @cached_property
    def words(self) -> frozenset[str]:
        """The vocabulary of its schema, to match with a question."""
        texts = [self.name, str(self.schema.get("description", ""))]
        for argument in self.required:
            texts += [argument.name, argument.description, *map(str, argument.options)]
        return vocabulary(" ".join(texts))

    def is_filled_by(self, question: Question) -> bool:
        """Whether the question contains every required argument, and there is at least one."""
        return bool(self.required) and all(a.candidates(question) for a in self.required)

    def takes_an_id_from(self, question: Question) -> bool:
        """Whether the question contains an id that this tool accepts."""
        return any(a.is_id and a.candidates(question) for a in self.required)


@dataclass(frozen=True)
class Call:
    """A planned tool call."""

    tool: str
    arguments: dict[str, Any]


def plan(question: Question, tools: Sequence[Tool]) -> list[Call] | str:
    """Return the planned calls, or a sentence for the caller if there are none."""
    phrases, tool = question.phrases, _choose(question, tools)
    if not tools:
        return phrases.no_tools
    if tool is None:
        return phrases.cannot.format(tools=phrases.comma.join(tool.name for tool in tools))
    for argument in tool.required:
        if not argument.candidates(question):
            return argument.ask(question)
    calls = _calls(question, tool)
    return calls if len(calls) <= MOST_CALLS else phrases.too_many.format(MOST_CALLS)


def _choose(question: Question, tools: Sequence[Tool]) -> Tool | None:
    """Return the tool that shares most words with the question; of equal ones, the first bound.

    A word counts less if many tools share it. A tool whose arguments are in the question wins over
    one that would have to ask for them. An id decides between tools with equal words, and is
    sufficient if no words match: any news of 10023?
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
    """Return one call, or one for each id if the tool takes a single id."""
    ids = [argument for argument in tool.required if argument.is_id]
    if len(ids) == 1:
        values = ids[0].candidates(question)
        return [Call(tool.name, _filled(question, tool, {ids[0].name: v})) for v in values]
    return [Call(tool.name, _filled(question, tool, {}))]


def _filled(question: Question, tool: Tool, known: dict[str, Any]) -> dict[str, Any]:
    """Fill arguments with the most likely unused values: `add 2 and 3` gives 2, then 3."""
    filled = dict(known)
    for argument in tool.required:
        if argument.name not in filled:
            candidates = argument.candidates(question)
            unused = [offer for offer in candidates if offer not in filled.values()]
            filled[argument.name] = (unused or candidates)[0]
    return {argument.name: filled[argument.name] for argument in tool.required}


def result_text(result: ToolMessage, phrases: Phrases) -> str:
    """Return a tool's result as a sentence: its `summary` if it has one, else its fields."""
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
