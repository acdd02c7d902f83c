"""A user's own package `app` collides with ours, and the refusal explains it.

Each check is a process of its own in the user's directory, started as the command is: -P keeps that
directory from hiding our package instead.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.waits

LOAD = """
import asyncio, json, sys
import app.main
from app.agents import registry
from app.settings import Settings

async def said(spec):
    try:
        agents = await registry.load([spec] if spec else [], Settings().served)
    except registry.AgentLoadError as refused:
        return str(refused)
    except BaseException as raised:
        return f"NO SENTENCE: {type(raised).__name__}: {raised}"
    return f"served {', '.join(agents)}"

async def all_said():
    return {spec: await said(spec) for spec in sys.argv[1:]}

registry.import_from_working_directory()
print("ANSWER" + json.dumps(asyncio.run(all_said())))
"""
AGENT = """
from langgraph.graph import END, START, MessagesState, StateGraph
graph = StateGraph(MessagesState)
graph.add_node("echo", lambda state: {"messages": []})
graph.add_edge(START, "echo")
graph.add_edge("echo", END)
orders = graph.compile()
"""
SPECS = (
    "app.shop:orders",  # a module that we do not have
    "app.agents:orders",  # one that we have too
    "app.main:orders",
    "app:orders",
    "app.nested.agents:orders",
    "app.nested:orders",
)


def load_messages(directory: Path, *specs: str) -> Any:
    """The message of loading each of these in that directory."""
    ended = subprocess.run(
        [sys.executable, "-P", "-c", LOAD, *specs],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.partition("ANSWER")[2])


@pytest.fixture(scope="module")
def with_a_package(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The messages in a directory with a package `app` and modules beside it that use it."""
    here = tmp_path_factory.mktemp("theirs")
    for module in ("__init__", "shop", "agents", "main", "nested/__init__", "nested/agents"):
        file = here / "app" / f"{module}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(AGENT)
    (here / "beside.py").write_text("from app.shop import orders\n")
    (here / "unrelated.py").write_text(AGENT)
    answers = load_messages(here, *SPECS, "beside:orders", "unrelated:orders", "")
    assert isinstance(answers, dict)
    return answers | {"here": str(here)}


@pytest.mark.parametrize("spec", SPECS)
def test_hidden_package_is_explained(with_a_package: dict[str, str], spec: str) -> None:
    """A user who names a module of their own `app` reads that ours hides it, and the remedy."""
    words = with_a_package[spec]
    assert "Watchkeeper's own package" in words
    assert f"{with_a_package['here']}/app" in words
    assert "Rename yours" in words


def test_module_that_imports_the_hidden_package_is_explained(
    with_a_package: dict[str, str],
) -> None:
    """A user who serves a module that imports their own `app` reads of the collision."""
    words = with_a_package["beside:orders"]
    assert words.startswith("Importing beside failed") or "beside:orders" in words
    assert "Watchkeeper's own package" in words


def test_other_modules_are_served(with_a_package: dict[str, str]) -> None:
    """Beside a package `app`, modules that do not use it are served as usual."""
    assert with_a_package["unrelated:orders"] == "served orders"


def test_the_demo_is_served_beside_it(with_a_package: dict[str, str]) -> None:
    """Beside a package `app`, the demo agent is served as usual."""
    assert with_a_package[""] == "served demo"


def test_hidden_module_is_explained(tmp_path: Path) -> None:
    """A user with a module `app.py` reads that our package hides it."""
    (tmp_path / "app.py").write_text(AGENT)
    words = load_messages(tmp_path, "app:orders")["app:orders"]
    assert "Watchkeeper's own package" in words
    assert f"{tmp_path}/app.py" in words
    assert words.count("MODULE") == 0, "the advice names the module"


def test_without_an_own_app_the_module_is_missing(tmp_path: Path) -> None:
    """Without a user's own `app`, a missing module of it is just missing."""
    words = load_messages(tmp_path, "app.nowhere:orders")["app.nowhere:orders"]
    assert words.startswith("There is no module 'app.nowhere'")
