"""The demo model's language: it extracts words from a question, and phrases the answer.

It reads English and Chinese without a dictionary, and answers in the language of the question.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property

LABEL = "[demo model, no LLM configured]"
LABEL_ZH = "[demo 演示模型，未配置 LLM]"

HAN = "\u3400-\u4dbf\u4e00-\u9fff"
HAN_RUN = re.compile(f"[{HAN}]+")

# Stop words: they match any tool.
_STOP_WORDS_TEXT = (
    "an the of by for to is are was were in on at me my we our you your it its and or with from "
    "this that be do does did has have can could will would what where when how who please tell "
    "give show get about there 我的 请问 什么 怎么 多少 可以 一下 你们 我们"
)
_STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())
# A token may not follow a currency sign: an amount of money is not an id.
_TOKEN = re.compile(
    r"(?<![A-Za-z0-9$€£¥])"
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+\.\d+|#?[A-Za-z0-9]+(?:[-_][A-Za-z0-9]+)*)"
)
# Lengths are bounded, so that a hostile question costs no more than a long one.
_NUMBER = re.compile(r"(?<![A-Za-z0-9.])-?\d{1,15}(?:\.\d{1,15})?(?![\d])")
_QUOTED = re.compile(r"[\"“「『]([^\"”」』]{1,200})[\"”」』]")
_PROPER_NOUN = re.compile(r"(?<=[a-z,] )[A-Z][\w'-]*(?: [A-Z][\w'-]*)*")


def vocabulary(text: str) -> frozenset[str]:
    """Return the words that can match: English stems, and character pairs of Chinese text.

    Pairs find 订单 in 我的订单到哪了, although Chinese has no spaces between words. A tool matches
    Chinese by Chinese keywords in its description.
    """
    plain = unicodedata.normalize("NFKC", text).lower().replace("_", " ")
    english = {_stem(w) for w in re.findall(r"[a-z]{2,}", plain) if w not in _STOP_WORDS}
    pairs = {run[i : i + 2] for run in HAN_RUN.findall(plain) for i in range(len(run) - 1)}
    return frozenset(english | (pairs - _STOP_WORDS))


def _stem(word: str) -> str:
    """Return the common stem of words such as `ship`, `shipped` and `shipping`."""
    if word.endswith("ies"):
        return word[:-3] + "y"
    bare = re.sub(r"(?<=[a-z]{3})(?:ing|ed|es|s|e)$", "", word)
    return re.sub(r"([^aeiou])\1$", r"\1", bare)


@dataclass(frozen=True)
class Question:
    """The caller's question, and the parts of it that may become arguments."""

    text: str

    @cached_property
    def words(self) -> frozenset[str]:
        """The vocabulary, to select a tool."""
        return vocabulary(self.text)

    @cached_property
    def tokens(self) -> list[str]:
        """Distinct tokens with a digit: order ids, but also years and quantities."""
        found = _TOKEN.findall(unicodedata.normalize("NFKC", self.text))
        return [token for token in dict.fromkeys(found) if re.search(r"\d", token)]

    @cached_property
    def numbers(self) -> list[str]:
        """All numbers, including repeated ones; an id such as AB-12 contains none."""
        return _NUMBER.findall(unicodedata.normalize("NFKC", self.text))

    @cached_property
    def names(self) -> list[str]:
        """Quoted texts, then capitalised names inside a sentence, such as cities."""
        return [*_QUOTED.findall(self.text), *_PROPER_NOUN.findall(self.text)]

    @property
    def phrases(self) -> Phrases:
        """The language of the answer: one Chinese character makes it Chinese."""
        return CHINESE if HAN_RUN.search(self.text) else ENGLISH


@dataclass(frozen=True)
class Phrases:
    """The phrases around the facts, in the language of the question."""

    label: str
    ask: str
    example: str
    choices: str
    unlike: str
    too_many: str
    cannot: str
    no_tools: str
    failed: str
    silent: str
    comma: str
    between: str
    summary_key: str

    def name_of(self, described: str, otherwise: str) -> str:
        """Return the name of a thing: in Chinese, the first Chinese words of its description."""
        if self is not CHINESE:
            return otherwise
        found = HAN_RUN.search(described)
        return found.group() if found else f" {otherwise} "


ENGLISH = Phrases(
    label=f"{LABEL} ",
    ask="Please tell me the {what}{hint}.",
    example=", for example {}",
    choices=": {}",
    unlike="; {} does not look like one",
    too_many="Please ask for at most {} at a time.",
    cannot="I cannot answer that. I can only match your words with this agent's tools: {tools}.",
    no_tools="I cannot answer that: this agent gave me no tools.",
    failed="The tool {tool} failed: {reason}",
    silent="The tool {tool} returned nothing.",
    comma=", ",
    between=" ",
    summary_key="summary",
)
CHINESE = Phrases(
    label=f"{LABEL_ZH} ",
    ask="请告诉我{what}{hint}。",
    example="，例如 {}",
    choices="：{}",
    unlike="；{} 看起来不是",
    too_many="请一次最多问 {} 个。",
    cannot="这个问题我答不了。我只会把您的话与这个智能体的工具对应起来：{tools}。",
    no_tools="这个问题我答不了：这个智能体没有给我工具。",
    failed="工具 {tool} 出错了：{reason}",
    silent="工具 {tool} 没有返回内容。",
    comma="、",
    between="",
    summary_key="summary_zh",
)
