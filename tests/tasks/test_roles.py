"""Processes that share a store: API-only ones, workers, and agents that are no longer served."""

import json
import re
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.command import WATCHKEEPER, Serving, serving
from tests.tasks.background import napping, url_in
from tests.tasks.long_timeouts import extend_timeouts

AGENT = "quick=tests.tasks.background:quick"
NAPS = "naps=tests.tasks.background:napping"
PATIENT = "naps=tests.tasks.test_roles:patient"
OTHER = "other=tests.tasks.background:quick"
LONG_S = 30.0


def patient() -> Any:
    """The same as `NAPS`, in a process that has time to see that another one died."""
    extend_timeouts(pytest.MonkeyPatch())
    return napping()


def post(service: Serving, path: str) -> httpx.Response:
    return httpx.post(f"{service.url}{path}", json={"question": "hello"}, timeout=LONG_S)


def view(service: Serving, task_id: str, wait_s: float = 0.0) -> dict[str, Any]:
    place = f"{service.url}/agent/async/{task_id}"
    body: dict[str, Any] = httpx.get(place, params={"wait": wait_s}, timeout=LONG_S + 5).json()
    return body


def logged(service: Serving, event: str) -> list[dict[str, Any]]:
    """The lines of an event that a service wrote."""
    written = [file.read_text().splitlines(keepends=True) for file in (service.out, service.err)]
    # The last one may be half there.
    whole = [line for line in chain(*written) if line[:1] == "{" and line.endswith("}\n")]
    return [line for line in map(json.loads, whole) if line["event"] == event]


def becomes_true(condition: Callable[[], bool]) -> bool:
    """Whether the claim comes true before long."""
    end = time.monotonic() + LONG_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def sample(service: Serving, name: str) -> float:
    """One sample of a service, by its name without labels."""
    lines = httpx.get(f"{service.url}/metrics").text.splitlines()
    [line] = [line for line in lines if line.startswith(f"{name} ")]
    return float(line.split()[1])


def in_folder(folder: Path, name: str) -> Path:
    """A directory to run in."""
    (folder / name).mkdir()
    return folder / name


def test_api_process_submits_and_worker_executes(tmp_path: Path) -> None:
    """An API-only process accepts runs; a worker executes them and accepts none."""
    store = {"WATCHKEEPER_STORE_URL": url_in(tmp_path)}
    api = in_folder(tmp_path, "api")
    with serving(api, AGENT, "--no-background", variables=store) as asked:
        task_id = post(asked, "/agent/async").json()["task_id"]
        assert view(asked, task_id, 1.5)["status"] == "pending"
        here, works = in_folder(tmp_path, "worker"), (str(WATCHKEEPER), "worker")
        with serving(here, AGENT, command=works, variables=store) as worker:
            assert view(asked, task_id, LONG_S)["status"] == "completed"
            assert httpx.get(f"{worker.url}/health/ready").status_code == 200
            assert sample(worker, "agent_concurrency_limit") > 0
            output = worker.err.read_text()
            assert "executes background runs of quick (create_agent)" in output
            addresses = re.findall(rf"curl -s ({worker.url}\S*)", output)
            assert [address.removeprefix(worker.url) for address in addresses] == [
                "/health/ready",
                "/runs",
                "/metrics",
            ]
            assert {httpx.get(address).status_code for address in addresses} == {200}
            for path in ("/agent", "/agent/stream", "/agent/async", "/agents/quick"):
                assert post(worker, path).status_code == 404


def test_cancel_of_a_run_at_another_process(tmp_path: Path) -> None:
    """A run that a worker executes is cancelled through another process, which has its phase."""
    store = {"WATCHKEEPER_STORE_URL": url_in(tmp_path)}
    works = (str(WATCHKEEPER), "worker")
    with (
        serving(in_folder(tmp_path, "api"), NAPS, "--no-background", variables=store) as asked,
        serving(in_folder(tmp_path, "worker"), NAPS, command=works, variables=store) as worker,
    ):
        task_id = post(asked, "/agent/async").json()["task_id"]
        at_work = f"{worker.url}/runs/{task_id}"
        assert becomes_true(lambda: httpx.get(at_work).json().get("phase") == "tool:nap")
        response = httpx.delete(f"{asked.url}/agent/async/{task_id}", timeout=LONG_S)
        assert response.json()["result"] in ("cancelled", "still_stopping")
        assert becomes_true(
            lambda: (view(asked, task_id)["error"] or {}).get("phase") == "tool:nap"
        )
        assert view(asked, task_id)["status"] == "cancelled"
        assert becomes_true(lambda: httpx.get(at_work).json()["state"] == "finished")


def test_cancel_of_a_run_whose_process_died(tmp_path: Path) -> None:
    """No process executes the run, so it has stopped, and the cancelling process emits its end."""
    store = {"WATCHKEEPER_STORE_URL": url_in(tmp_path)}
    works = (str(WATCHKEEPER), "worker")
    asks = in_folder(tmp_path, "api")
    with serving(asks, PATIENT, "--no-background", variables=store) as asked:
        with serving(in_folder(tmp_path, "dies"), NAPS, command=works, variables=store) as worker:
            task_id = post(asked, "/agent/async").json()["task_id"]
            assert becomes_true(lambda: view(asked, task_id)["attempts"] == 1)
            worker.process.kill()
        response = httpx.delete(f"{asked.url}/agent/async/{task_id}", timeout=LONG_S)
        assert (response.status_code, response.json()["result"]) == (200, "cancelled")
        assert view(asked, task_id)["status"] == "cancelled"
        assert becomes_true(lambda: bool(logged(asked, "run_finished")))
        [line] = logged(asked, "run_finished")
        assert (line["run_id"], line["outcome"]) == (task_id, "cancelled")


LOOKS_THEN_NAPS = """
from tests import fakes


def script(messages):
    done = len(fakes.results_since_question(messages))
    return fakes.asks(("look", "nap")[done], {}, number=done)


slow = fakes.build("KIND", fakes.ScriptedModel(script=script), fakes.ToolDesk(60).tools())
"""


@pytest.mark.parametrize("kind", ["create_agent", "agent_executor"])
def test_any_process_reports_the_same_of_a_run(tmp_path: Path, kind: str) -> None:
    """A process that does not execute a run reports the same as its owner does."""
    store = {"WATCHKEEPER_STORE_URL": url_in(tmp_path)}
    folders = [in_folder(tmp_path, name) for name in ("asks", "works")]
    for folder in folders:
        (folder / "wk_slow.py").write_text(LOOKS_THEN_NAPS.replace("KIND", kind))
    body = {"question": "q", "timeout": 77, "max_iterations": 5, "metadata": {"shop": "7"}}
    with serving(folders[0], "wk_slow:slow", "--no-background", variables=store) as asks:
        accepted = httpx.post(f"{asks.url}/agent/async", json=body, timeout=10)
        place = f"/runs/{accepted.json()['task_id']}"
        waiting = httpx.get(f"{asks.url}{place}").json()
        assert (waiting["state"], waiting["phase"], waiting["outcome"]) == ("queued", "queue", None)
        assert waiting["timings"]["queue_s"] == waiting["age_s"] > 0
        limits = {name: waiting[name] for name in ("timeout_s", "iteration_limit", "metadata")}
        assert limits == {"timeout_s": 77.0, "iteration_limit": 5, "metadata": {"shop": "7"}}
        with serving(folders[1], "wk_slow:slow", variables=store) as works:

            def owner() -> dict[str, Any]:
                task: dict[str, Any] = httpx.get(f"{works.url}{place}").json()
                return task

            def is_reported() -> bool:
                calls: int = httpx.get(f"{asks.url}{place}").json()["tool_calls"]
                return calls == 2

            assert becomes_true(lambda: owner()["phase"] == "tool:nap")
            assert becomes_true(is_reported)  # its log is written just before the tool begins
            before = owner()["age_s"]
            response = httpx.get(f"{asks.url}{place}")
            here, there = response.json(), owner()
            assert response.headers["x-run-id"] == there["run_id"]
            assert (here.pop("phase"), there.pop("phase")) == (None, "tool:nap")
            assert before - 1 < here.pop("age_s") < there.pop("age_s") + 1
            timings, at_owner = here.pop("timings"), there.pop("timings")
            assert timings["llm_s"] == at_owner["llm_s"] > 0
            assert sum(timings.values()) <= sum(at_owner.values())
            assert here == there
            assert (here["iterations"], here["tool_calls"], len(here["steps"])) == (2, 2, 1)
            assert here["usage"]["input_tokens"] > 0


def test_runs_of_an_agent_that_is_not_served_wait(tmp_path: Path) -> None:
    """Its runs wait, are counted, and execute when the agent is served again."""
    store = {"WATCHKEEPER_STORE_URL": url_in(tmp_path)}
    with serving(in_folder(tmp_path, "a"), OTHER, "--no-background", variables=store) as first:
        task_id = post(first, "/agent/async").json()["task_id"]
    with serving(in_folder(tmp_path, "b"), AGENT, variables=store) as second:
        assert becomes_true(lambda: sample(second, "agent_tasks_unservable") == 1)
        assert view(second, task_id)["status"] == "pending"
    with serving(in_folder(tmp_path, "c"), AGENT, OTHER, variables=store) as third:
        assert view(third, task_id, LONG_S)["status"] == "completed"
        assert becomes_true(lambda: sample(third, "agent_tasks_unservable") == 0)
