"""Drills of the alerts on model providers and what they cost."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from tests.drills.drill import drill
from tests.drills.runs import BURN
from tests.drills.scene import Scene
from tests.upstreams import set_scenario


def _upstream_does(scene: Scene, *behaviors: Mapping[str, Any]) -> None:
    asyncio.run(set_scenario(scene.upstream, *behaviors))


@drill(
    "AgentLlmErrors", "the provider answers 500", agents=["assistant"], upstream=True,
    severity="critical", companions=[BURN, "AgentNoSuccess"], provider="openai",
    model="gpt-4.1-mini",
)  # fmt: skip
def llm_errors(scene: Scene) -> Iterator[None]:
    _upstream_does(scene, {"type": "fail", "status": 500, "times": None})
    scene.asking("Where is order 1?", every_s=0.3, at_once=2, agent="assistant")
    yield
    _upstream_does(scene)


@drill(
    "AgentLlmRateLimited", "the provider answers 429", agents=["assistant"], upstream=True,
    severity="warning", companions=[BURN, "AgentNoSuccess"], provider="openai",
    model="gpt-4.1-mini",
)  # fmt: skip
def llm_rate_limited(scene: Scene) -> Iterator[None]:
    _upstream_does(scene, {"type": "fail", "status": 429, "times": None})
    scene.asking("Where is order 1?", every_s=0.3, at_once=2, agent="assistant")
    yield
    _upstream_does(scene)


@drill(
    "AgentLlmFirstTokenSlow",
    "the first token takes nine seconds",
    severity="warning",
    provider="acme",
    model="gpt-4o",
)
def llm_first_token_slow(scene: Scene) -> Iterator[None]:
    scene.throw("slow")
    scene.asking("slow", at_once=4, way="/stream")
    yield
    scene.release("slow")


@drill("AgentSpendSpike", "runs use a million tokens each", agent="orders", severity="warning")
def spend_spike(scene: Scene) -> Iterator[None]:
    scene.asking("expensive", every_s=0.5)
    yield
    scene.stop_asking()


@drill(
    "AgentUnpricedCalls", "a model is asked that is in no table of prices", severity="info",
    provider="acme", model="home-made",
)  # fmt: skip
def unpriced_calls(scene: Scene) -> Iterator[None]:
    scene.throw("no-price")
    scene.asking("fine", every_s=0.3)
    yield
    scene.release("no-price")


DRILLS = (llm_errors, llm_rate_limited, llm_first_token_slow, spend_spike, unpriced_calls)
