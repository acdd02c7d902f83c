"""The ring of a run's events: bounded, numbered, and kept alive by no reader."""

import asyncio
import threading
import time

import pytest

from app.runs.ring import Ring
from tests.runs.scripted import loop_time
from tests.waiting import came_true

MOST_ENTRIES, MOST_BYTES = 4_000, 512_000


pytestmark = pytest.mark.virtual_time


def ring() -> Ring:
    return Ring(asyncio.get_running_loop())


async def readers(it: Ring, after: int, count: int = 1) -> list[asyncio.Task[None]]:
    """Readers of what follows an id, for a minute at most, once all of them wait."""
    tasks = [asyncio.create_task(it.changed(after, 60.0)) for _ in range(count)]
    await came_true(lambda: len(it._waiting) == count, f"{count} readers waited")
    assert not [task for task in tasks if task.done()]
    return tasks


async def test_ids_count_from_1() -> None:
    """Ids count from 1, and `since` returns the events after one, oldest first."""
    it = ring()
    assert it.since(0) == []
    for number in range(5):
        it.add("token", text=f"t{number}", iteration=1)
    assert [(entry.id, entry.data["text"]) for entry in it.since(2)] == [
        (3, "t2"),
        (4, "t3"),
        (5, "t4"),
    ]
    assert it.since(5) == it.since(99) == []
    assert [entry.id for entry in it.since(0)] == [1, 2, 3, 4, 5]


async def test_bounded_in_number() -> None:
    """The ring keeps the last of many small events, with their ids."""
    it = ring()
    for _ in range(3 * MOST_ENTRIES):
        it.add("token", text="x")
    entries = it.since(0)
    assert len(entries) == MOST_ENTRIES
    assert entries[-1].id == 3 * MOST_ENTRIES
    assert [entry.id for entry in it.since(entries[0].id)] == [entry.id for entry in entries[1:]]


async def test_bounded_in_bytes() -> None:
    """The ring keeps as many long events as fit."""
    it = ring()
    for _ in range(100):
        it.add("token", text="x" * 50_000)
    assert 0 < sum(len(entry.data["text"]) for entry in it.since(0)) <= MOST_BYTES


@pytest.mark.parametrize("letter", ["é", "語", "😀"])
async def test_size_is_in_bytes(letter: str) -> None:
    """The ring is bounded in bytes in any script."""
    it = ring()
    for _ in range(2_000):
        it.add("token", text=letter * 5_000)
    size = sum(len(entry.data["text"].encode()) for entry in it.since(0))
    assert 0 < size <= MOST_BYTES


@pytest.mark.parametrize("field", ["tool", "call_id"])
async def test_every_field_counts(field: str) -> None:
    """A tool's name and a call's id come from a model and count as text does."""
    it = ring()
    for _ in range(100):
        it.add("tool_start", **{field: "x" * 50_000})
    assert sum(len(entry.data[field]) for entry in it.since(0)) <= MOST_BYTES


async def test_newest_event_is_kept() -> None:
    """The newest event stays however long it is: it may be the answer."""
    it = ring()
    it.add("token", text="x" * (MOST_BYTES + 1))
    assert [entry.id for entry in it.since(0)] == [1]


async def test_token_without_text_has_the_field() -> None:
    """A token without text still has the field."""
    it = ring()
    it.add("token", text="", iteration=1, agent=None)
    assert it.since(0)[0].data == {"text": "", "iteration": 1, "agent": None}


async def test_changed_ends_at_its_timeout() -> None:
    """`changed` waits for events after an id, and no longer than its timeout."""
    it = ring()
    began = loop_time()
    await it.changed(0, 0.05)
    assert loop_time() - began == pytest.approx(0.05)
    waiting = await readers(it, after=0)
    it.add("run")
    await asyncio.gather(*waiting)
    await it.changed(0, 60.0)
    assert loop_time() - began < 1, "a reader waited for its timeout"


async def test_closed_ring_wakes_its_readers() -> None:
    """A closed ring delays no reader, and wakes waiting ones."""
    it = ring()
    it.add("run")
    waiting, began = await readers(it, after=1, count=3), loop_time()
    it.finish()
    await asyncio.gather(*waiting)
    await it.changed(1, 60.0)
    assert loop_time() == began, "a reader waited for its timeout"
    assert [entry.name for entry in it.since(0)] == ["run"]


@pytest.mark.threads
async def test_events_from_threads_get_ids() -> None:
    """Events added from many threads at once each get an id, and a reader misses none."""
    it = ring()

    def fill() -> None:
        for _ in range(400):
            it.add("token", text="x")

    threads = [threading.Thread(target=fill) for _ in range(8)]
    read = list[int]()

    async def reader() -> None:
        while len(read) < 3_200:
            await it.changed(read[-1] if read else 0, 5.0)
            read.extend(entry.id for entry in it.since(read[-1] if read else 0))

    async with asyncio.timeout(30):
        reading = asyncio.create_task(reader())
        await came_true(lambda: it._waiting, "the reader waited")
        for thread in threads:
            thread.start()
        await reading
    for thread in threads:
        thread.join()
    assert read == list(range(1, 3_201))


@pytest.mark.threads
async def test_thread_wakes_a_reader() -> None:
    """A waiting reader is woken at once by an event from a thread."""
    it = ring()
    began = time.monotonic()
    timer = threading.Timer(0.05, it.add, args=("token",), kwargs={"text": "x"})
    timer.start()
    await it.changed(0, 60.0)
    assert time.monotonic() - began < 30
    timer.join()


async def test_readers_delay_no_event() -> None:
    """A thousand readers that wait or lag do not make an addition slow."""
    it = ring()
    for _ in range(MOST_ENTRIES):
        it.add("token", text="x" * 20)
    behind = [it.since(0) for _ in range(20)]
    waiting = await readers(it, after=MOST_ENTRIES, count=1_000)
    began = time.monotonic()
    it.add("token", text="last")
    assert time.monotonic() - began < 30
    await asyncio.gather(*waiting)
    assert time.monotonic() - began < 30
    assert all(len(entries) == MOST_ENTRIES for entries in behind)
    assert it._waiting == set()


async def test_cancelled_reader_leaves_nothing() -> None:
    """A reader that is cancelled while it waits leaves nothing behind."""
    it = ring()
    [waiting] = await readers(it, after=0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert it._waiting == set()
