"""Processes that share work: one dies, one hangs back, one is asked about what another does."""

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import fakes
from tests.command import WATCHKEEPER, Serving, serving
from tests.streams.reading import names_of, parse
from tests.tasks.background import calling
from tests.tasks.long_timeouts import extend_timeouts
from tests.tasks.test_restart import looks_and_naps
from tests.tasks.test_roles import LONG_S, becomes_true, in_folder, logged, post, view

NAP_S = "TEST_NAP_S"
WORKER = (str(WATCHKEEPER), "worker")
SLOW = "slow=tests.tasks.test_processes:slow"
STEPS = "steps=tests.tasks.test_processes:steps"


def slow() -> Any:
    """An agent that naps for longer than any of these tests takes.

    Its process has time to say what became of a run that is cancelled.
    """
    extend_timeouts(pytest.MonkeyPatch())
    return calling("nap", fakes.ToolDesk(300.0))


def steps() -> Any:
    """An agent that looks, and then naps for as long as its process is configured to."""
    tools = fakes.ToolDesk(float(os.environ[NAP_S])).tools()
    return fakes.build("create_agent", fakes.ScriptedModel(script=looks_and_naps), tools)


def store_in(folder: Path, **others: str) -> Mapping[str, str]:
    """A store of their own for the processes of a test."""
    url = f"sqlite:///{folder / 'store.sqlite'}"
    return {"WATCHKEEPER_STORE_URL": url, "WATCHKEEPER_LOG_FORMAT": "json", **others}


def sample(service: Serving, name: str, labels: str) -> float:
    """One sample of a service; 0 where there is none yet."""
    lines = httpx.get(f"{service.url}/metrics").text.splitlines()
    found = [line for line in lines if line.startswith(f"{name}{{{labels}}} ")]
    return float(found[0].split()[1]) if found else 0.0


def calls(service: Serving, tool: str) -> float:
    """How often a process called a tool to its end."""
    labels = f'agent="steps",outcome="completed",tool="{tool}"'
    return sample(service, "agent_tool_call_duration_seconds_count", labels)


def is_running(service: Serving, task_id: str) -> bool:
    """Whether a service reports a run as running."""
    task: str = view(service, task_id)["status"]
    return task == "running"


def test_any_process_reports_and_cancels_a_run(tmp_path: Path) -> None:
    """Any process reads depth, age, events and end from the store, and DELETE reaches the owner."""
    store = store_in(tmp_path)
    with serving(in_folder(tmp_path, "api"), SLOW, "--no-background", variables=store) as api:
        task_id = post(api, "/agent/async").json()["task_id"]
        age = "agent_task_oldest_age_seconds"
        assert becomes_true(lambda: sample(api, "agent_tasks_queued", 'agent="slow"') == 1)
        assert becomes_true(lambda: sample(api, age, 'agent="slow",state="queued"') > 0)
        here = in_folder(tmp_path, "worker")
        with serving(here, SLOW, command=WORKER, variables=store):
            assert becomes_true(lambda: sample(api, "agent_tasks_running", 'agent="slow"') == 1)
            assert becomes_true(lambda: sample(api, age, 'agent="slow",state="running"') > 0)
            assert sample(api, "agent_tasks_queued", 'agent="slow"') == 0
            read: list[bytes] = []
            address = f"{api.url}/agent/async/{task_id}"

            def follow() -> None:
                read.append(httpx.get(f"{address}/events", timeout=60).content)

            follower = threading.Thread(target=follow)
            follower.start()
            stopped = httpx.delete(address, timeout=LONG_S)
            task = view(api, task_id)
            assert (stopped.status_code, stopped.json()["result"]) == (200, "cancelled")
            assert (task["status"], task["error"]["phase"]) == ("cancelled", "tool:nap")
            follower.join(60)
            events = parse(read[0])
            assert [event.id for event in events] == list(range(1, len(events) + 1))
            assert names_of(events)[-2:] == ["error", "end"]
            error = {name: value for name, value in task["error"].items() if value is not None}
            assert events[-1].data == error
        left = post(api, "/agent/async").json()["task_id"]
        assert view(api, left, 1.5)["status"] == "pending"


def test_run_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    """A living owner keeps its work; after kill -9 another process goes on and logs it."""
    dying, living = store_in(tmp_path, **{NAP_S: "300"}), store_in(tmp_path, **{NAP_S: "0.1"})
    with serving(in_folder(tmp_path, "first"), STEPS, variables=dying) as first:
        task_id = post(first, "/agent/async").json()["task_id"]
        assert becomes_true(lambda: calls(first, "look") == 1)
        with serving(in_folder(tmp_path, "second"), STEPS, variables=living) as second:
            time.sleep(1.5)  # it has looked three times
            before = view(second, task_id)
            assert (before["status"], before["attempts"]) == ("running", 1)
            assert logged(second, "task_recovered") == []
            first.process.kill()
            task = view(second, task_id, LONG_S)
            assert (task["status"], task["attempts"]) == ("completed", 2)
            assert task["started_at"] == before["started_at"]
            assert (calls(second, "look"), calls(second, "nap")) == (0, 1)
            assert becomes_true(lambda: bool(logged(second, "task_recovered")))
            [line] = logged(second, "task_recovered")
            assert (line["run_id"], line["level"]) == (task_id, "warning")
            recovered = "agent_task_recovered_total"
            assert becomes_true(lambda: sample(second, recovered, 'agent="steps"') == 1)
            address = f"{second.url}/agent/async/{task_id}/events"
            events = parse(httpx.get(address, timeout=60).content)
            assert [event.id for event in events] == list(range(1, len(events) + 1))
            assert events[-1].data == task["result"]


def test_background_slots_are_counted_over_all_processes(tmp_path: Path) -> None:
    """WATCHKEEPER_MAX_BACKGROUND_RUNS_EVERYWHERE counts the runs of all processes together."""
    store = store_in(tmp_path, WATCHKEEPER_MAX_BACKGROUND_RUNS_EVERYWHERE="1")
    with serving(in_folder(tmp_path, "first"), SLOW, variables=store) as first:
        assert str(tmp_path / "store.sqlite") in first.out.read_text() + first.err.read_text()
        holding = post(first, "/agent/async").json()["task_id"]
        assert becomes_true(lambda: is_running(first, holding))
        with serving(in_folder(tmp_path, "second"), SLOW, variables=store) as second:
            waiting = post(second, "/agent/async").json()["task_id"]
            assert view(second, waiting, 3.0)["status"] == "pending"
            httpx.delete(f"{second.url}/agent/async/{holding}", timeout=LONG_S)
            assert becomes_true(lambda: is_running(second, waiting))
