"""What must be true of the history once nothing moves any more."""

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.agents import Plan, Receipt
from tests.chaos.clients import History
from tests.chaos.fleet import Fleet, call

# Without any progress for so long, nothing is going to move.
_STILL_S = 20.0
_LONGEST_S = 300.0


@dataclass
class Verdict:
    """Runs by what is wrong with them; `twice` are tool calls, which may complete twice."""

    runs: int = 0
    lost: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    finished_twice: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    two_runs: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    calls: int = 0
    twice: int = 0

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        wrong = (self.lost, self.stuck, self.finished_twice, self.unexpected, self.two_runs)
        return not any((*wrong, self.stale))

    def __str__(self) -> str:
        return (
            f"runs {self.runs}: lost {len(self.lost)}, stuck {len(self.stuck)}, finished twice "
            f"{len(self.finished_twice)}, unexpected {len(self.unexpected)}, one key two runs "
            f"{len(self.two_runs)}, gone on with after it was lost {len(self.stale)}; "
            f"tool calls {self.calls}, of them completed twice {self.twice}"
        )


def verdict(ships: Fleet, history: History, still_s: float = _STILL_S) -> Verdict:
    """Wait until nothing moves, then look at every run that was accepted."""
    waiting = {run for runs in history.accepted.values() for run in runs}
    lost, moved_at, before = set[str](), time.monotonic(), (0, 0)
    deadline = time.monotonic() + _LONGEST_S
    while waiting and time.monotonic() < deadline:
        for number, run_id in enumerate(sorted(waiting)):
            port = ships.ports[number % len(ships.ports)]
            status, view = call(port, "GET", f"/agent/async/{run_id}")
            if status == 404:
                lost.add(run_id)
            elif status == 200:
                lost.discard(run_id)
                history.saw(view)
                if view["status"] not in ("pending", "running"):
                    waiting.discard(run_id)
        now = (len(waiting), ships.written)
        if now != before:
            before, moved_at = now, time.monotonic()
        if time.monotonic() - moved_at > still_s:
            break
        time.sleep(0.5)
    judged = _judge(history, ships.receipts())
    judged.lost = sorted(lost & waiting)
    judged.stuck = sorted(waiting - lost)
    return judged


def so_far(ships: Fleet, history: History) -> Verdict:
    """What can be checked while runs go on: not which are lost or stuck."""
    with history.lock:
        return _judge(history, ships.receipts())


def _judge(history: History, receipts: Sequence[Receipt]) -> Verdict:
    judged = Verdict(runs=history.runs)
    of_key: dict[str, set[str]] = defaultdict(set)
    for receipt in receipts:
        of_key[receipt.name].add(receipt.run_id)
    for key, plan in history.plans.items():
        runs = history.accepted.get(key, set())
        if len(runs | of_key[key]) > 1:
            judged.two_runs.append(key)
        for run_id in runs:
            endings = history.endings.get(run_id, [])
            if any(ending != endings[0] for ending in endings):
                judged.finished_twice.append(run_id)
            if any(not _as_planned(plan, ending) for ending in endings):
                judged.unexpected.append(run_id)
                judged.details.append(f"{plan}: {endings[0]}")
    ended = Counter((r.run_id, r.n, r.key) for r in receipts if r.what == "end")
    judged.calls = len(ended)
    judged.twice = sum(count - 1 for count in ended.values())
    judged.stale = _stale(history, receipts)
    return judged


def _as_planned(plan: Plan, ending: Any) -> bool:
    """The answer and the counts are those of the plan.

    Tool calls are counted as they were reported to the store: of a run that was cut, the last ones
    may not have been, or may have been made again.
    """
    result = ending["result"] or {}
    if (ending["status"], result.get("answer")) != ("completed", plan.answer):
        return False
    exact = ending["attempts"] > 1 or result["tool_calls"] == plan.turns * plan.parallel
    return exact and bool(result["iterations"] == plan.turns)


def _stale(history: History, receipts: Sequence[Receipt]) -> list[str]:
    """Runs with which a process went on after another one had begun a later attempt.

    A call that had passed the fence already may still begin; those of a second turn may not.
    """
    newest: dict[str, int] = defaultdict(int)
    turns: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for receipt in receipts:
        if receipt.what != "begin" or receipt.name not in history.plans:
            continue
        newest[receipt.run_id] = max(newest[receipt.run_id], receipt.attempt)
        if receipt.attempt < newest[receipt.run_id]:
            turn = receipt.n // history.plans[receipt.name].parallel
            turns[receipt.run_id].add((receipt.attempt, turn))
    return [run for run, late in turns.items() if len(late) > len({a for a, _ in late})]
