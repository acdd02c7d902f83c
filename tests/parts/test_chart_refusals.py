"""The chart refuses, with a sentence, values that would fail later or do quiet harm."""

import pytest

from tests.parts import chart

REFUSED = {
    "replicas on SQLite": ("default", ["api.replicas=2"], "SQLite is for one pod"),
    "a scale on SQLite": ("default", ["api.autoscaling.enabled=true"], "SQLite is for one pod"),
    "workers on SQLite": ("default", ["worker.enabled=true"], "Workers share a store with the API"),
    "a short grace": (
        "default",
        ["gracePeriodS=315"],
        "killed while it drains: gracePeriodS (315 s)",
    ),
    "a short drain": (
        "default",
        ["settings.drainS=20"],
        "A deploy would cut runs: settings.drainS (20 s)",
    ),
    "an agent's long deadline": (
        "default",
        ["agents.limits.orders.max_timeout_s=301"],
        "longest deadline (301 s, max_timeout_s of the agent orders)",
    ),
    "an open ingress": (
        "everything",
        ["ingress.allowWithoutKeys=false"],
        "The service has no keys",
    ),
    "an ingress for all hosts": ("everything", ['ingress.host=""'], "ingress.host is empty"),
    "no way to the store": ("postgres", ["networkPolicy.egress.store=null"], "from their store"),
    "no way to the collector": (
        "monitoring",
        ["networkPolicy.egress.collector=null"],
        "keep spans from telemetry.otlpEndpoint",
    ),
    "a scale upside down": (
        "everything",
        ["worker.autoscaling.maxReplicas=1"],
        "worker.autoscaling.minReplicas (2) is more than maxReplicas (1)",
    ),
    "a value that is none": ("default", ["api.replica=1"], "'replica' not allowed"),
    "a setting that is none": ("default", ["settings.maxTimeout=3"], "'maxTimeout' not allowed"),
    "a password in the values": (
        "default",
        ['store.url="postgresql://u:p@h/d"'],
        "'url' not allowed",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_harmful_values_are_refused(case: str) -> None:
    """Values that would fail later, or do quiet harm, are refused with a sentence."""
    name, changes, sentence = REFUSED[case]
    assert sentence in chart.refusal(name, *changes)


TAKEN = {
    "an exact grace": ("default", ["gracePeriodS=316"]),
    "a drain that may cut": ("default", ["settings.drainS=20", "allowCutRuns=true"]),
    "an agent's deadline within the drain": ("default", ["agents.limits.orders.max_timeout_s=300"]),
    "no network policy": (
        "postgres",
        ["networkPolicy.egress.store=null", "networkPolicy.enabled=false"],
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_similar_values_are_accepted(case: str) -> None:
    """Similar values are accepted: each refusal has its own reason."""
    name, changes = TAKEN[case]
    assert chart.text(name, *changes)
