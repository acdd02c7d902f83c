"""The disk of a SQLite store fills up in the middle of runs, and later has room again."""

import errno
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import pytest

from tests.chaos.agents import Plan
from tests.chaos.fleet import Fleet, call, fleet
from tests.parts.polling import ended, submitted, until

# A small disk that is seen by the servers alone; gives way to what is started.
_DISK = 'mount -t tmpfs -o size=24m tmpfs {place} && exec "$@"'


@dataclass(frozen=True)
class Disk:
    """The small disk, as it is seen from outside."""

    place: Path

    def fill(self) -> None:
        """Let a stranger take all of its room."""
        taken = (self.place / "strangers").open("wb", buffering=0)
        # The free space is unknown before: the store takes of it meanwhile.
        with taken, pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            taken.writelines(repeat(bytes(4096)))

    def empty(self) -> None:
        """The stranger leaves."""
        (self.place / "strangers").unlink()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, Disk]]:
    folder = tmp_path_factory.mktemp("full")
    place = folder / "disk"
    place.mkdir()
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    mount = _DISK.format(place=shlex.quote(str(place)))
    under = ["unshare", "--mount", *mapped, "sh", "-c", mount, "sh"]
    # No reserve: the disk is to be full, not only nearly.
    variables = {"WATCHKEEPER_STORE_RESERVE_BYTES": "0"}
    with fleet(folder, f"sqlite:///{place / 'store.sqlite'}", 1, variables, under) as ships:
        ships.start_all()
        [pid] = ships.pids.values()
        yield ships, Disk(Path(f"/proc/{pid}/root{place}"))


def test_disk_full_in_the_middle_of_a_run(small: tuple[Fleet, Disk]) -> None:
    """New runs are refused with 503, and accepted runs end once there is room again."""
    ships, disk = small
    [port] = ships.ports
    plan, refused = Plan("through", turns=4, seconds=1.0), Plan("refused")
    task_id = submitted(port, plan.question)
    until(lambda: len(ships.receipts(plan.name)) >= 3, "it has not begun")
    disk.fill()
    body, key = {"question": refused.question}, {"Idempotency-Key": "while-full"}
    for _ in range(3):
        status, problem = call(port, "POST", "/agent/async", body, key, timeout_s=30)
        assert (status, problem["code"]) == (503, "store_unavailable")
        time.sleep(1)
    assert call(port, "GET", "/health/live")[0] == 200
    assert call(port, "GET", f"/agent/async/{task_id}", timeout_s=30)[1]["status"] == "running"
    disk.empty()
    task = ended(port, task_id)
    assert (task["status"], task["result"]["answer"]) == ("completed", plan.answer)
    assert [r.n for r in ships.receipts(plan.name) if r.what == "begin"] == [0, 1, 2, 3]
    assert not ships.receipts(refused.name)
    status, again = call(port, "POST", "/agent/async", body, key, timeout_s=30)
    assert status == 202
    assert ended(port, again["task_id"])["status"] == "completed"


def test_answer_waits_for_room(small: tuple[Fleet, Disk]) -> None:
    """A result without room waits until there is room."""
    ships, disk = small
    [port] = ships.ports
    plan = Plan("long " + "x" * 30_000, seconds=1.0)
    task_id = submitted(port, plan.question)
    until(lambda: ships.receipts(plan.name), "it has not begun")
    disk.fill()
    until(lambda: len(ships.receipts(plan.name)) == 2, "its tool has not ended")
    time.sleep(1)
    disk.empty()
    assert ended(port, task_id)["result"]["answer"] == plan.answer
    assert len(ships.receipts(plan.name)) == 2
