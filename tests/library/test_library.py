"""`import watchkeeper` gives programs what they need, and costs them little."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import app.agents.builder
import app.runs
import app.watch
import watchkeeper
from app.runs.deadline import tool_call

HEAVY = (
    "langchain",
    "langchain_core",
    "langgraph",
    "opentelemetry",
    "prometheus_client",
    "pydantic",
)


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run this in a directory, which is first on the path of imports."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def test_the_names_are_those_of_the_service() -> None:
    """Each name is the service's own object, so that no state is there twice."""
    assert watchkeeper.watch is app.watch.watch
    assert watchkeeper.build_agent is app.agents.builder.build_agent
    assert watchkeeper.remaining is app.runs.remaining
    assert watchkeeper.tool_call_key is app.runs.tool_call_key
    assert dir(watchkeeper) == sorted(watchkeeper.__all__)


def test_every_name_is_documented() -> None:
    """Each name says what it returns."""
    for name in watchkeeper.__all__:
        assert (getattr(watchkeeper, name).__doc__ or "").startswith("Return "), name


def test_an_unknown_name() -> None:
    """A name that is not there raises AttributeError."""
    with pytest.raises(AttributeError, match="no attribute 'serve'"):
        getattr(watchkeeper, "serve")  # noqa: B009 - the type checker knows that it is not there


def test_the_import_is_light(tmp_path: Path) -> None:
    """Nothing heavy is loaded before it is used."""
    code = "import json, sys, watchkeeper; print(json.dumps(sorted(sys.modules)))"
    ended = python(code, tmp_path)
    assert ended.returncode == 0, ended.stderr
    loaded = {name.partition(".")[0] for name in json.loads(ended.stdout)}
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("name", ["app.py", "app/__init__.py"])
def test_a_program_with_its_own_app(tmp_path: Path, name: str) -> None:
    """A program whose own `app` hides ours gets an error with the path."""
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("")
    ended = python("import watchkeeper", tmp_path)
    assert "ImportError: watchkeeper needs its own package 'app'" in ended.stderr
    assert str(tmp_path / "app") in ended.stderr


def test_the_old_name_of_the_key() -> None:
    """`idempotency_key` returns the key of the tool call and warns."""
    token = tool_call.set("run:1.1:abc")
    try:
        with pytest.warns(DeprecationWarning, match=r"watchkeeper\.tool_call_key"):
            assert app.runs.idempotency_key() == "run:1.1:abc" == watchkeeper.tool_call_key()
    finally:
        tool_call.reset(token)
