"""Servers are killed in the middle of runs, on both stores: completed steps stay completed."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from typing import Any

import pytest

from tests.chaos.agents import Plan, Receipt
from tests.chaos.fleet import Fleet, call, fleet
from tests.parts.polling import until as soon
from tests.parts.postgres import cluster
from tests.streams.reading import StreamEvent, parse

WITHIN_S = 60.0


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def ships(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        with fleet(folder, f"sqlite:///{folder / 'store.sqlite'}") as started:
            yield started
        return
    with cluster() as server, fleet(folder, server.url) as started:
        yield started


@pytest.fixture(autouse=True)
def up(ships: Fleet) -> None:
    """Both servers answer when a test begins."""
    for port in ships.ports:
        if not ships.is_up(port):
            ships.start(port)
    for port in ships.ports:
        ships.until_up(port)


def submit(ships: Fleet, plan: Plan, agent: str = "graph", **body: Any) -> str:
    payload = {"question": plan.question, **body}
    status, accepted = call(ships.ports[0], "POST", f"/agents/{agent}/async", payload)
    assert status == 202, accepted
    task_id: str = accepted["task_id"]
    return task_id


def ended(ships: Fleet, task_id: str, ports: Sequence[int] = ()) -> dict[str, Any]:
    end = time.monotonic() + WITHIN_S
    while time.monotonic() < end:
        for port in ports or ships.ports:
            task: dict[str, Any] | None = call(port, "GET", f"/agent/async/{task_id}?wait=1")[1]
            if task and task.get("status") not in (None, "pending", "running"):
                return task
    raise AssertionError(f"{task_id} has not ended")


def until(ships: Fleet, plan: Plan, what: str, n: int) -> Receipt:
    end = time.monotonic() + WITHIN_S
    while time.monotonic() < end:
        for receipt in ships.receipts(plan.name):
            if (receipt.what, receipt.n) == (what, n):
                return receipt
        time.sleep(0.01)
    raise AssertionError(f"{plan} never reached {what} {n}")


def counted(ships: Fleet, plan: Plan, what: str) -> Counter[int]:
    return Counter(r.n for r in ships.receipts(plan.name) if r.what == what)


@pytest.mark.parametrize("agent", ["graph", "own"])
def test_completed_turns_are_not_repeated(ships: Fleet, agent: str) -> None:
    """After kill -9 in the third turn, the calls of the first two are not repeated."""
    plan = Plan(f"kept-{agent}", turns=4, parallel=2, seconds=0.1, held=2)
    task_id = submit(ships, plan, agent)
    until(ships, plan, "begin", 4)
    begun = until(ships, plan, "begin", 5)
    ships.kill(ships.port_of(begun.pid))
    killed_at = time.time()
    task = ended(ships, task_id)
    taken = min(r.at for r in ships.receipts(plan.name) if r.pid != begun.pid)
    print(f"taken over after {taken - killed_at:.2f} s")
    assert taken - killed_at < 15
    result = task["result"]
    assert (task["status"], result["answer"], task["attempts"]) == ("completed", plan.answer, 2)
    assert (result["iterations"], result["tool_calls"]) == (4, 8)
    assert result["usage"]["input_tokens"] == 50
    begins, ends = counted(ships, plan, "begin"), counted(ships, plan, "end")
    assert [begins[n] for n in range(8)] == [1, 1, 1, 1, 2, 2, 1, 1]
    assert set(ends.values()) == {1}
    keys = {(r.n, r.key) for r in ships.receipts(plan.name)}
    assert len(keys) == 8


def test_limit_holds_across_attempts(ships: Fleet) -> None:
    """Iterations of a killed attempt count: a limit of three is three in all."""
    plan = Plan("limited", turns=6, seconds=0.1, held=2)
    task_id = submit(ships, plan, max_iterations=3)
    ships.kill(ships.port_of(until(ships, plan, "begin", 2).pid))
    result = ended(ships, task_id)["result"]
    assert (result["outcome"], result["iterations"]) == ("iteration_limit", 3)
    assert set(counted(ships, plan, "end")) == {0, 1, 2}


def test_executor_repeats_every_call_with_its_key(ships: Fleet) -> None:
    """An AgentExecutor stores no steps: it repeats all of its calls, under the same keys."""
    plan = Plan("whole", turns=3, seconds=0.1, held=2)
    task_id = submit(ships, plan, "executor")
    ships.kill(ships.port_of(until(ships, plan, "begin", 2).pid))
    task = ended(ships, task_id)
    assert task["result"]["answer"] == plan.answer
    assert (task["result"]["iterations"], task["result"]["tool_calls"]) == (3, 3)
    assert [counted(ships, plan, "begin")[n] for n in range(3)] == [2, 2, 2]
    assert len({(r.n, r.key) for r in ships.receipts(plan.name)}) == 3


def test_run_of_a_living_process_is_left_alone(ships: Fleet) -> None:
    """A server that starts beside a busy one leaves its runs alone."""
    plan = Plan("mine", turns=5, seconds=1.0)
    task_id = submit(ships, plan)
    owner = ships.port_of(until(ships, plan, "begin", 0).pid)
    other = next(port for port in ships.ports if port != owner)
    ships.kill(other)
    ships.start(other)
    ships.until_up(other)
    task = ended(ships, task_id)
    assert (task["attempts"], task["status"]) == (1, "completed")
    assert set(counted(ships, plan, "begin").values()) == {1}


def test_a_follower_outlives_both_servers(ships: Fleet) -> None:
    """Ids continue without gaps while both servers are killed, one after the other."""
    plan = Plan("followed", turns=9, seconds=0.7)
    task_id = submit(ships, plan)
    seen: list[StreamEvent] = []

    def follow() -> None:
        end, turn = time.monotonic() + WITHIN_S, 0
        while time.monotonic() < end and not (seen and seen[-1].name == "end"):
            turn += 1
            seen.extend(_some(ships.ports[turn % 2], task_id, len(seen)))

    follower = threading.Thread(target=follow)
    follower.start()
    for n, port in ((2, ships.ports[0]), (5, ships.ports[1])):
        until(ships, plan, "begin", n)
        ships.kill(port)
        ships.start(port)
        ships.until_up(port)
    follower.join(WITHIN_S + 10)
    ids = [event.id for event in seen]
    assert ids == list(range(1, len(ids) + 1)), ids
    assert seen[-1].name == "end"
    assert seen[-1].data["answer"] == plan.answer


def _some(port: int, task_id: str, after: int) -> list[StreamEvent]:
    """The events of a server after an id, until their end, or its death."""
    connection, read = HTTPConnection("127.0.0.1", port, timeout=5), b""
    try:
        headers = {"Last-Event-ID": str(after)} if after else {}
        connection.request("GET", f"/agent/async/{task_id}/events", headers=headers)
        response = connection.getresponse()
        while response.status == 200 and (piece := response.read1(65536)):
            read += piece
    except (OSError, HTTPException):
        pass  # cut: what was read of it counts
    finally:
        connection.close()
    return parse(read)


def test_run_that_kills_its_processes_fails(ships: Fleet) -> None:
    """A run that kills every process that executes it fails after ten takeovers."""
    plan = Plan("deadly", deadly=True)
    task_id, over = submit(ships, plan), threading.Event()

    def revive() -> None:
        while not over.wait(0.2):
            for port in ships.ports:
                if not ships.is_up(port):
                    ships.start(port)

    reviver = threading.Thread(target=revive)
    reviver.start()
    try:
        ended_task = ended(ships, task_id)
    finally:
        over.set()
        reviver.join()
    for port in ships.ports:  # the last process that it killed too
        if not ships.is_up(port):
            ships.start(port)
        ships.until_up(port)
    assert (ended_task["status"], ended_task["error"]["code"]) == ("failed", "worker_lost")
    assert counted(ships, plan, "begin")[0] == 11
    assert ended_task["error"]["run_id"] == task_id

    def ends() -> list[dict[str, Any]]:
        return [line for line in ships.lines("run_finished") if line["run_id"] == task_id]

    soon(ends, "its end is not in the log")  # which is written by a thread
    assert [(line["outcome"], line["code"]) for line in ends()] == [("failed", "worker_lost")]
    for status, is_there in (("failed", True), ("cancelled", False)):
        listed = call(ships.ports[0], "GET", f"/agent/async?status={status}")[1]["tasks"]
        assert (task_id in [task["task_id"] for task in listed]) is is_there, status


def test_run_of_a_hanging_process_ends_soon(ships: Fleet) -> None:
    """A run whose process hangs ends soon after its deadline; waking up changes nothing."""
    plan = Plan("hung", turns=2, seconds=30.0)
    task_id = submit(ships, plan, timeout=3.0)
    pid = until(ships, plan, "begin", 0).pid
    hung = ships.port_of(pid)
    other = next(port for port in ships.ports if port != hung)
    ships.signal(hung, signal.SIGSTOP)
    try:
        task = ended(ships, task_id, [other])
        assert (task["status"], task["error"]["code"]) == ("timeout", "timeout")
        assert task["attempts"] == 2
    finally:
        ships.signal(hung, signal.SIGCONT)
    ships.until_up(hung)
    time.sleep(1.5)  # it has looked three times
    for port in ships.ports:
        assert call(port, "GET", f"/agent/async/{task_id}")[1] == task
    assert set(counted(ships, plan, "begin")) == {0}


def test_sigterm_hands_a_run_over(ships: Fleet) -> None:
    """SIGTERM hands an executing run over to the other server, which finishes it."""
    plan = Plan("handed", turns=4, seconds=0.1, held=1)
    task_id = submit(ships, plan)
    port = ships.port_of(until(ships, plan, "begin", 1).pid)
    ships.signal(port, signal.SIGTERM)
    task = ended(ships, task_id)
    soon(lambda: not ships.is_up(port), "it has not ended itself")
    assert (task["status"], task["attempts"]) == ("completed", 2)
    assert task["result"]["iterations"] == 4
    assert [counted(ships, plan, "begin")[n] for n in range(4)] == [1, 2, 1, 1]
    assert set(counted(ships, plan, "end").values()) == {1}


@pytest.mark.parametrize("agent", ["graph", "own"])
def test_forked_child_holds_no_lock(ships: Fleet, agent: str) -> None:
    """A run is taken over soon, though children that its tools forked outlive its process."""
    plan = Plan(f"forked-{agent}", turns=3, seconds=0.1, forks=True, held=1)

    def children() -> set[int]:
        return {r.pid for r in ships.receipts(plan.name) if r.what == "forked"}

    try:
        task_id = submit(ships, plan, agent)
        begun = until(ships, plan, "begin", 1)
        left_behind = children()
        ships.kill(ships.port_of(begun.pid))
        killed_at = time.time()
        task = ended(ships, task_id)
        for child in left_behind:
            os.kill(child, 0)  # it was there all the time
    finally:
        for child in children():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    taken = min(r.at for r in ships.receipts(plan.name) if r.at > killed_at)
    assert taken - killed_at < 15
    assert (task["status"], task["attempts"]) == ("completed", 2)
    assert [counted(ships, plan, "begin")[n] for n in range(3)] == [1, 2, 1]
