"""Persistent callers: they repeat with the same key until a run is accepted."""

import random
import threading
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.agents import Plan
from tests.chaos.fleet import Fleet, call

_AGENTS = ("graph", "graph", "own", "executor")


@dataclass
class History:
    """What callers read: the runs of each key, and every end of each run."""

    plans: dict[str, Plan] = field(default_factory=dict)
    accepted: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    endings: dict[str, list[Any]] = field(default_factory=lambda: defaultdict(list))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def saw(self, view: Any) -> None:
        """Record the reported end of a run."""
        if view["status"] not in ("pending", "running"):
            with self.lock:
                self.endings[view["task_id"]].append(view)

    @property
    def runs(self) -> int:
        """How many runs were accepted."""
        return sum(map(len, self.accepted.values()))


class Client(threading.Thread):
    """Submits one run after the other, sometimes twice at once, until it is stopped."""

    def __init__(self, ships: Fleet, history: History, seed: int, stop: threading.Event) -> None:
        super().__init__(name=f"client {seed}", daemon=True)
        self._ships = ships
        self._history = history
        self._chance = random.Random(seed)
        self._over = stop

    def run(self) -> None:
        """Submit until stopped."""
        while not self._over.is_set():
            self._one()

    def _plan(self, name: str) -> Plan:
        long = self._chance.random() < 0.1
        turns = 6 if long else self._chance.randrange(1, 3)
        return Plan(name, turns, self._chance.randrange(1, 3), 0.4 if long else 0.02)

    def _one(self) -> None:
        key = uuid.uuid4().hex
        plan, agent = self._plan(key), self._chance.choice(_AGENTS)
        with self._history.lock:
            self._history.plans[key] = plan
        path, headers = f"/agents/{agent}/async", {"Idempotency-Key": key}

        def submit(port: int) -> None:
            status, body = call(port, "POST", path, {"question": plan.question}, headers)
            if status == 202:
                with self._history.lock:
                    self._history.accepted[key].add(body["task_id"])

        while not self._history.accepted.get(key) and not self._over.is_set():
            at_once = 2 if self._chance.random() < 0.3 else 1
            ports = [self._chance.choice(self._ships.ports) for _ in range(at_once)]
            senders = [threading.Thread(target=submit, args=(port,)) for port in ports]
            for sender in senders:
                sender.start()
            for sender in senders:
                sender.join()
            if not self._history.accepted.get(key):
                time.sleep(0.1)
        for run_id in list(self._history.accepted.get(key, ())):
            self._look(run_id)

    def _look(self, run_id: str) -> None:
        port = self._chance.choice(self._ships.ports)
        status, view = call(port, "GET", f"/agent/async/{run_id}?wait=4")
        if status == 200:
            self._history.saw(view)
