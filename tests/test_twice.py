"""What failed runs once more, alone; flaky tests are named and pass, but for more than three."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import ROOT

IT = "test_them.py::test_it"
# Each test of this module fails as often as the environment says, counted in files.
TESTS = '''
import os
from pathlib import Path

import pytest

@pytest.mark.parametrize("name", "abcd")
def test_it(name):
    """Counts its runs, and where they were made."""
    with Path(name).open("a") as runs:
        runs.write(os.environ.get("PYTEST_XDIST_WORKER", "alone") + "\\n")
    assert len(Path(name).read_text().split()) > int(os.environ.get(name.upper(), "0"))

@pytest.fixture
def closed():
    yield
    Path("closed").touch() if Path("opened").exists() else Path("opened").touch()
    assert Path("closed").exists()

def test_teardown(closed):
    pass
'''


def run(here: Path, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run these calls of pytest in a directory that has the tests above."""
    (here / "test_them.py").write_text(TESTS)
    (here / "pytest.ini").write_text("[pytest]\n")
    own = {name: os.environ[name] for name in os.environ if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "tests.twice", *lines],
        cwd=here,
        env={**own, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def named(said: str, what: str) -> list[str]:
    """The tests that are listed as that."""
    return [line.removeprefix(what) for line in said.splitlines() if line.startswith(what)]


def runs(here: Path, name: str) -> list[str]:
    """Where each run of a test was made."""
    return (here / name).read_text().split()


def test_what_passes_runs_once(tmp_path: Path) -> None:
    """Where nothing fails, nothing runs again."""
    ended = run(tmp_path, "-k test_it")
    assert ended.returncode == 0, ended.stdout
    assert "once more" not in ended.stdout
    assert runs(tmp_path, "a") == ["alone"]


def test_a_flaky_test_is_named_and_passes(tmp_path: Path) -> None:
    """What fails beside others and passes alone is flaky: it is named, and fails nothing."""
    ended = run(tmp_path, "A=1 -p xdist -n 2 -k test_it")
    assert ended.returncode == 0, ended.stdout
    assert named(ended.stdout, "flaky: ") == [f"{IT}[a]"]
    assert named(ended.stdout, "failed twice: ") == []
    assert (len(runs(tmp_path, "a")), len(runs(tmp_path, "b"))) == (2, 1)
    assert runs(tmp_path, "a")[0].startswith("gw")
    assert runs(tmp_path, "a")[1] == "alone"


def test_what_fails_twice_fails(tmp_path: Path) -> None:
    """A test that fails again fails the run, in the environment of its own call."""
    ended = run(tmp_path, "A=1 B=2 -k test_it", f"{IT}[c]")
    assert ended.returncode == 1
    assert named(ended.stdout, "flaky: ") == [f"{IT}[a]"]
    assert named(ended.stdout, "failed twice: ") == [f"{IT}[b]"]


@pytest.mark.parametrize(("names", "code"), [("abc", 0), ("abcd", 1)])
def test_many_flaky_tests_fail(tmp_path: Path, names: str, code: int) -> None:
    """Three flaky tests pass, four fail; the calls count together."""
    ended = run(tmp_path, *(f"{name.upper()}=1 {IT}[{name}]" for name in names))
    assert ended.returncode == code, ended.stdout
    assert named(ended.stdout, "flaky: ") == [f"{IT}[{name}]" for name in names]


def test_a_teardown_counts(tmp_path: Path) -> None:
    """A test whose teardown fails has failed."""
    ended = run(tmp_path, "-k teardown")
    assert ended.returncode == 0, ended.stdout
    assert named(ended.stdout, "flaky: ") == ["test_them.py::test_teardown"]


@pytest.mark.parametrize("options", ["", "-p xdist -n 2", "--continue-on-collection-errors"])
def test_a_module_that_cannot_be_read_fails(tmp_path: Path, options: str) -> None:
    """A module that raises at import fails the run, whatever else passes."""
    (tmp_path / "test_broken.py").write_text("raise ValueError")
    assert run(tmp_path, options).returncode in (1, 2)


def test_no_verdict_is_no_pass(tmp_path: Path) -> None:
    """A call that runs no test, or that pytest does not take, ends everything with its code."""
    assert run(tmp_path, "-k nothing_of_that_name", "-k test_it").returncode == 5
    assert run(tmp_path, "--no-such-option").returncode == 4
    assert not (tmp_path / "a").exists()


def test_too_many_failures_run_once(tmp_path: Path) -> None:
    """Where more than twenty fail, nothing runs again."""
    (tmp_path / "test_many.py").write_text(
        "import pytest\n@pytest.mark.parametrize('n', range(21))\ndef test_it(n): assert False\n"
    )
    ended = run(tmp_path, "test_many.py")
    assert ended.returncode == 1
    assert "21 tests failed" in ended.stdout
    assert "once more" not in ended.stdout
