"""The wheel gives an empty environment what the checkout gives: imports, and types."""

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.command import ROOT

# The type checker reads LangChain anew.
pytestmark = pytest.mark.timeout(400)

PROGRAM = '''
from langchain_core.runnables import RunnableConfig
from watchkeeper import build_agent, remaining, tool_call_key, watch


def pay(amount: int) -> str:
    """Pay so much."""
    key: str | None = tool_call_key()
    seconds: float = remaining()
    return f"{amount} {key} {seconds}"


config: RunnableConfig = {"callbacks": [watch("orders")]}
agent = build_agent("gpt-4.1-mini", [pay], "You pay.", max_iterations=5, early_stopping="force")
'''
WRONG = """
import watchkeeper

watchkeeper.build_agent("gpt-4.1-mini", [], max_iterations="five")
watchkeeper.serve()
seconds: str = watchkeeper.remaining()
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command outside of the checkout."""
    return subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout."""
    place = tmp_path_factory.mktemp("wheel")
    build = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    built = run(sys.executable, "-c", build, place, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    return place / built.stdout.split()[-1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel, and the dependencies by a .pth file."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place, with_pip=False)
    python = place / "bin" / "python"
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    pip = run(
        *(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel), cwd=place
    )
    assert pip.returncode == 0, pip.stderr
    [packages] = place.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_what_the_wheel_holds(wheel: Path) -> None:
    """The service and what programs import are two packages, each with its types, each once."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {"app/py.typed", "watchkeeper/py.typed", "watchkeeper/__init__.py"} <= set(names)
    packages = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"app", "watchkeeper"}
    assert not [name for name in names if "as-library" in name]


def test_the_import(installed: Path, tmp_path: Path) -> None:
    """All names load from the wheel, and not from the checkout."""
    code = (
        "import watchkeeper, app; print(watchkeeper.__file__, app.__file__);"
        "print([getattr(watchkeeper, name) for name in watchkeeper.__all__])"
    )
    ended = run(installed, "-c", code, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    ours, service = ended.stdout.splitlines()[0].split()
    for file in (ours, service):
        assert Path(file).is_relative_to(installed.parents[1])


def checked(installed: Path, here: Path, program: str) -> subprocess.CompletedProcess[str]:
    """What mypy says of a program that has the wheel."""
    (here / "program.py").write_text(program)
    options = ("--strict", "--python-executable", installed, "--cache-dir", here / "cache")
    return run(sys.executable, "-m", "mypy", *options, "program.py", cwd=here)


def test_the_types(installed: Path, tmp_path: Path) -> None:
    """A program passes the strict type checker, and one that errs sees each error."""
    right = checked(installed, tmp_path, PROGRAM)
    assert right.returncode == 0, right.stdout
    wrong = checked(installed, tmp_path, WRONG)
    lines = [line for line in wrong.stdout.splitlines() if ": error:" in line]
    assert [line.split(":")[1] for line in lines] == ["4", "5", "6"], wrong.stdout
