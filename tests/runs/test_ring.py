"""The ring of a run's events: bounded, numbered, and kept alive by no reader."""

import asyncio
import threading
import time

import pytest

from app.runs.ring import Ring

MOST_ENTRIES, MOST_BYTES = 4_000, 512_000


def ring() -> Ring:
    return Ring(asyncio.get_running_loop())


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


@pytest.mark.waits
async def test_changed_waits_until_its_timeout() -> None:
    """`changed` waits for events after an id, and no longer than its timeout."""
    it = ring()
    began = time.monotonic()
    await it.changed(0, 0.05)
    assert 0.04 < time.monotonic() - began < 30
    waiting = asyncio.create_task(it.changed(0, 60.0))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    it.add("run")
    await asyncio.wait_for(waiting, 30)
    await asyncio.wait_for(it.changed(0, 60.0), 30)


async def test_closed_ring_wakes_its_readers() -> None:
    """A closed ring delays no reader, and wakes waiting ones."""
    it = ring()
    it.add("run")
    waiting = [asyncio.create_task(it.changed(1, 60.0)) for _ in range(3)]
    await asyncio.sleep(0.01)
    it.finish()
    await asyncio.wait_for(asyncio.gather(*waiting), 30)
    await asyncio.wait_for(it.changed(1, 60.0), 30)
    assert [entry.name for entry in it.since(0)] == ["run"]


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

    reading = asyncio.create_task(reader())
    await asyncio.sleep(0)
    for thread in threads:
        thread.start()
    await asyncio.wait_for(reading, 30)
    for thread in threads:
        thread.join()
    assert read == list(range(1, 3_201))


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
    waiting = [asyncio.create_task(it.changed(MOST_ENTRIES, 60.0)) for _ in range(1_000)]
    await asyncio.sleep(0)
    began = time.monotonic()
    it.add("token", text="last")
    assert time.monotonic() - began < 30
    await asyncio.wait_for(asyncio.gather(*waiting), 30)
    assert all(len(entries) == MOST_ENTRIES for entries in behind)
    assert it._waiting == set()


async def test_cancelled_reader_leaves_nothing() -> None:
    """A reader that is cancelled while it waits leaves nothing behind."""
    it = ring()
    waiting = asyncio.create_task(it.changed(0, 60.0))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert it._waiting == set()
