"""One trial: servers, clients and a nemesis on a store for a while, then the verdict."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.clients import Client, History
from tests.chaos.fleet import fleet
from tests.chaos.nemesis import Database, Nemesis
from tests.chaos.verdict import Verdict, so_far, verdict

_LONGEST_S = 3_600.0


@dataclass(frozen=True)
class Trial:
    """How long, how hard; it goes on until it is all of that, or one of `until` is found."""

    seconds: float = 30.0
    faults: int = 0
    runs: int = 0
    clients: int = 12
    seed: int = 1
    bug: str = ""
    still_s: float = 20.0
    only_steals: bool = False
    until: Sequence[str] = ()


def held(
    trial: Trial, folder: Path, store_url: str, database: Database | None = None
) -> tuple[Verdict, Counter[str]]:
    """The verdict, and what was done to the servers."""
    history, over = History(), threading.Event()
    variables = {"CHAOS_BUG": trial.bug} if trial.bug else {}
    with fleet(folder, store_url, variables=variables) as ships:
        ships.start_all()
        nemesis = Nemesis(ships, database, trial.seed, over, only_steals=trial.only_steals)
        seeds = range(trial.seed * 100, trial.seed * 100 + trial.clients)
        clients = [Client(ships, history, seed, over) for seed in seeds]
        for client in clients:
            client.start()
        began = time.monotonic()
        while (
            time.monotonic() - began < trial.seconds
            or nemesis.done.total() < trial.faults
            or history.runs < trial.runs
        ) and time.monotonic() - began < _LONGEST_S:
            nemesis.one()
            judged = so_far(ships, history) if trial.until else None
            if any(getattr(judged, name) for name in trial.until):
                break
        over.set()
        for client in clients:
            client.join(30)
        return verdict(ships, history, trial.still_s), nemesis.done
