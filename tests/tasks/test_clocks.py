"""Processes whose clocks differ agree, because the database tells the time."""

import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from app.tasks.store import Store
from tests.tasks.background import url_in

AHEAD_S = 600.0


def test_store_has_a_clock_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`store.now` is seconds since the epoch, and a wrong clock of the process does not move it."""
    real = time.time()
    store = Store(url_in(tmp_path))
    store.prepare()
    monkeypatch.setattr(time, "time", lambda: real + AHEAD_S)
    with store.calls.connect() as connection:
        now = connection.execute(sa.select(store.now)).scalar_one()
    assert isinstance(now, float)
    assert real - 1 < now < real + AHEAD_S / 2
    store.close()
