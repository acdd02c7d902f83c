"""The example watches a program of one's own: the same samples, spans and log lines."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx

from tests.command import ROOT
from tests.otlp import receiver
from tests.upstreams import aimock

COMMAND = (sys.executable, "-m", "examples.watch_your_own")
_UP_WITHIN_S = 60.0


@contextmanager
def running(variables: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The example as a process of its own."""
    environment = {**os.environ, "OPENAI_API_KEY": "not-a-secret", "METRICS_PORT": "0", **variables}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        COMMAND, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def count_of_runs(url: str) -> float:
    """How many runs the program says have completed."""
    found = re.search(
        r'^agent_runs_total{agent="orders",mode="sync",outcome="completed"} (.+)$',
        httpx.get(url, timeout=30).text,
        re.M,
    )
    return float(found[1]) if found else 0.0


def test_watch_your_own() -> None:
    """One question gives an answer, a sample, a line and a tree of spans that agree."""
    with aimock() as model, receiver() as collector:
        variables = {
            "OPENAI_BASE_URL": model,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url,
        }
        with running(variables) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            url = process.stderr.readline().removeprefix("metrics on ").strip()
            process.stdin.write("Where is order 10023?\n")
            process.stdin.flush()
            printed = [process.stdout.readline() for _ in range(2)]
            [line] = [json.loads(text) for text in printed if text.startswith("{")]
            [answer] = [text for text in printed if not text.startswith("{")]
            deadline = time.monotonic() + _UP_WITHIN_S
            while count_of_runs(url) != 1.0:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.stdin.close()
            assert process.wait(_UP_WITHIN_S) == 0, process.stderr.read()
        spans = collector.spans
    assert "Order 10023 is shipped" in answer
    assert (line["event"], line["agent"], line["outcome"]) == (
        "run_finished",
        "orders",
        "completed",
    )
    assert (line["iterations"], line["tools"]) == (1, {"query_order": 1})
    [run] = [span for span in spans if span.name == "invoke_agent orders"]
    assert run.attributes["agent.run.id"] == line["run_id"]
    calls = [span.name for span in spans if span.parent_id == run.span_id]
    assert sorted(calls) == ["chat gpt-4.1-mini", "chat gpt-4.1-mini", "execute_tool query_order"]
