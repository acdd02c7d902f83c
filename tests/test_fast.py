"""The rule of the fast tests holds: one that waits fails, and what is marked `waits` may wait."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ROOT

# What is done, and what is said of it; None where a fast test may do it.
DEEDS = {
    "socket.socket().bind(('127.0.0.1', 0))": "it opens a socket, at tests/",
    "subprocess.run(['true'])": "it starts a process",
    "time.sleep(0.02)": "it sleeps 0.02 s",
    "asyncio.run(asyncio.sleep(0.05))": "the event loop waits",
    "asyncio.run(asyncio.sleep(0.001)); socket.socketpair()[0].close()": None,
}
HEAD = "import asyncio, socket, subprocess, time, warnings\nimport pytest\n"


def run(test: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of a file."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *options, str(test)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the rule, and of nothing else, with a room of its own."""
    place = tmp_path_factory.mktemp("copy") / "tests"
    (place / "runs").mkdir(parents=True)
    source = (ROOT / "tests" / "fast.py").read_text()
    (place / "rule.py").write_text(source)
    (place.parent / "pytest.ini").write_text(
        "[pytest]\naddopts = --import-mode=importlib\n"
        "markers =\n    fast: waits for nothing\n    waits: is not fast\n"
    )
    (place / "conftest.py").write_text(
        "from importlib import util\n"
        f"spec = util.spec_from_file_location('rule', {str(place / 'rule.py')!r})\n"
        "fast = util.module_from_spec(spec)\nspec.loader.exec_module(fast)\n"
        "def pytest_configure(config):\n"
        "    rule = fast.Rule()\n    rule.install()\n    config.pluginmanager.register(rule)\n"
        "def pytest_collection_modifyitems(items):\n"
        "    for item in items:\n        fast.mark(item)\n"
    )
    return place / "runs"


def test_a_fast_test_that_waits_fails(room: Path) -> None:
    """What waits fails and says for what, also in a fixture; a short pause passes."""
    tests = [f"def test_{n}():\n    {deed}\n" for n, deed in enumerate(DEEDS)]
    file = room / "test_deeds.py"
    file.write_text(
        f"{HEAD}{''.join(tests)}"
        "@pytest.fixture\ndef slow():\n    time.sleep(0.02)\ndef test_fixture(slow):\n    pass\n"
    )
    output = run(file, "-rN", "-p", "no:warnings").stdout
    for deed, words in DEEDS.items():
        assert words is None or words in output, (deed, output)
    assert f"{len(DEEDS) - 1} failed, 1 passed, 1 error" in output, output


def test_what_is_marked_may_wait(room: Path) -> None:
    """A test that is marked `waits` is not fast, and passes."""
    file = room / "test_marked.py"
    file.write_text(
        f"{HEAD}@pytest.mark.waits\ndef test_it(request):\n    time.sleep(0.02)\n"
        "    assert request.node.get_closest_marker('fast') is None\n"
    )
    assert "1 passed" in run(file).stdout


def test_other_rooms_may_wait(room: Path) -> None:
    """A test of another room is not fast."""
    file = room.parent / "test_elsewhere.py"
    file.write_text(f"{HEAD}def test_it():\n    time.sleep(0.02)\n")
    assert "1 passed" in run(file, "-m", "not fast").stdout
