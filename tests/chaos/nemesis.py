"""The faults: servers are killed and paused, their database is restarted."""

import random
import signal
import threading
import time
from collections import Counter
from typing import Protocol

from tests.chaos.fleet import Fleet


class Database(Protocol):
    """One that can be restarted."""

    def restart(self, *, at_once: bool = False) -> None:
        """Stop it, in an orderly way or as by a crash, and start it again."""
        ...


class Nemesis:
    """Does one thing after the other; `done` counts them."""

    def __init__(
        self,
        ships: Fleet,
        database: Database | None,
        seed: int,
        over: threading.Event,
        *,
        only_steals: bool = False,
    ) -> None:
        self.done: Counter[str] = Counter()
        self._ships = ships
        self._database = database
        self._chance = random.Random(seed)
        self._over = over
        self._kinds = [self._kill, self._kill, self._hold]
        if database is not None:
            self._kinds += [self._restart, self._steal]
        if only_steals:
            self._kinds = [self._steal]

    def one(self) -> None:
        """Wait a moment, then do one thing, and leave every server running."""
        self._over.wait(self._chance.uniform(0.4, 1.2))
        self._chance.choice(self._kinds)()

    def _kill(self) -> None:
        port = self._chance.choice(self._ships.ports)
        self._ships.kill(port)
        self.done["kill -9"] += 1
        self._ships.start(port)
        self._ships.until_up(port)

    def _hold(self) -> None:
        port = self._chance.choice(self._ships.ports)
        self._ships.signal(port, signal.SIGSTOP)
        self.done["SIGSTOP"] += 1
        time.sleep(self._chance.uniform(0.5, 3.0))
        self._ships.signal(port, signal.SIGCONT)

    def _restart(self) -> None:
        assert self._database is not None
        self._database.restart(at_once=self._chance.random() < 0.5)
        self.done["database restart"] += 1

    def _steal(self) -> None:
        """A server that is paused while the database restarts loses its runs to the other."""
        assert self._database is not None
        port = self._chance.choice(self._ships.ports)
        self._ships.signal(port, signal.SIGSTOP)
        self._database.restart(at_once=True)
        time.sleep(5.0)
        self._ships.signal(port, signal.SIGCONT)
        self.done["SIGSTOP and database restart"] += 1
