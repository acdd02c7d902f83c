"""Which agents are served; anything else is refused in one clear sentence."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import main
from app.agents.registry import AgentLoadError, import_from_working_directory
from app.api.deps import Service
from app.settings import Settings

SHOP = """
from contextlib import asynccontextmanager

from tests import fakes

closed = []
model = fakes.ScriptedModel(script=fakes.calls_then_answers("look"))
tools = fakes.ToolDesk().tools()
orders = fakes.build("create_agent", model, tools)
graph = fakes.build("langgraph", model, tools)
executor = fakes.build("agent_executor", model, tools, max_iterations=7)
number = 42


def factory():
    return orders


async def async_factory():
    return graph


async def broken_async_factory():
    raise OSError("no database")


def broken_factory():
    raise RuntimeError("no database")


def leaving_factory():
    raise SystemExit("use --help")


def wants_arguments(settings, *more, store, **others):
    return orders


def with_defaults(settings=None, *more, **others):
    return orders


async def generator():
    yield graph


@asynccontextmanager
async def context():
    yield orders
    closed.append("context")


@asynccontextmanager
async def wants_config(config):
    yield orders


def gives_nothing():
    return None


class Shop:
    agent = orders


Agent = orders
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, not on the import path; its modules are unloaded afterwards."""
    known = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - known:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def shop(here: Path) -> Path:
    """A working directory with `wk_shop.py`, a module of agents."""
    (here / "wk_shop.py").write_text(SHOP)
    return here


async def load(*specs: str, settings: Settings | None = None) -> Service:
    """Load agents as a start does."""
    parts = main.assemble(settings or Settings())
    await main.load_agents(parts, specs)
    return parts.service


async def refusal(*specs: str) -> str:
    """The sentence with which a start is refused: one line that ends as a sentence does."""
    with pytest.raises(AgentLoadError) as refused:
        await load(*specs)
    message = str(refused.value)
    assert "\n" not in message.strip()
    return message


@pytest.mark.parametrize(
    ("spec", "name", "kind"),
    [
        ("wk_shop:orders", "orders", "create_agent"),
        ("wk_shop:graph", "graph", "langgraph"),
        ("wk_shop:executor", "executor", "agent_executor"),
        ("wk_shop:factory", "factory", "create_agent"),
        ("wk_shop:async_factory", "async_factory", "langgraph"),
        ("wk_shop:with_defaults", "with_defaults", "create_agent"),
        ("wk_shop:generator", "generator", "langgraph"),
        ("wk_shop:context", "context", "create_agent"),
        ("my-shop=wk_shop:Shop.agent", "my-shop", "create_agent"),
        ("wk_shop:Shop.agent", "agent", "create_agent"),
    ],
)
async def test_agent_or_factory_is_served(shop: Path, spec: str, name: str, kind: str) -> None:
    """An agent or a factory of one is found in the working directory and named."""
    service = await load(spec)
    (info,) = [agent.info for agent in service.agents.values()]
    assert (info.name, info.kind) == (name, kind)
    assert "look" in info.tools
    assert not info.demo


async def test_the_first_one_is_the_default(shop: Path) -> None:
    """Agents are served in the order they were named, the first by default."""
    service = await load("wk_shop:graph", "b=wk_shop:orders", "a=wk_shop:executor")
    assert list(service.agents) == ["graph", "b", "a"]
    assert service.agent().info.name == "graph"


async def test_no_argument_serves_the_demo() -> None:
    """Without a named agent the demo agent is served, and marked as one."""
    service = await load()
    assert list(service.agents) == ["demo"]
    assert service.demo
    assert service.agent().info.demo


async def test_one_object_under_two_names(shop: Path) -> None:
    """One agent may be served under two names."""
    service = await load("a=wk_shop:orders", "b=wk_shop:orders")
    assert [agent.info.name for agent in service.agents.values()] == ["a", "b"]


@pytest.mark.parametrize(
    "spec", ["wk_shop", "wk_shop:", ":orders", "a=wk_shop", "a=", "wk_shop:a:b", "", "=:"]
)
async def test_wrong_import_string_is_quoted(shop: Path, spec: str) -> None:
    """A wrong import string is quoted, with the required form."""
    assert await refusal(spec) == f"{spec!r} is not of the form [NAME=]MODULE:ATTRIBUTE."


@pytest.mark.parametrize(
    "name", ["Agent", "-a", "_a", "a b", "a/b", "ä", "a" * 64, "", "a.b", "a=b", "a\n"]
)
async def test_invalid_name_is_refused(shop: Path, name: str) -> None:
    """A name that cannot be in an address is refused, with an example of a valid one."""
    message = await refusal(f"{name}=wk_shop:orders")
    assert message.startswith(f"{name!r} cannot be the name of an agent")
    assert message.endswith("as in my-agent=wk_shop:orders.")


async def test_attribute_that_is_no_name_needs_one(shop: Path) -> None:
    """An attribute that cannot be a name asks for one."""
    assert "my-agent=wk_shop:Agent" in await refusal("wk_shop:Agent")
    assert list((await load("a=wk_shop:Agent")).agents) == ["a"]


async def test_duplicate_name_is_refused(shop: Path) -> None:
    """Two agents of one name are refused before any module is imported."""
    message = await refusal("orders=wk_nothing:a", "wk_shop:orders")
    assert message == "Two agents are named 'orders'; give one another name: OTHER=wk_shop:orders."


async def test_missing_module_is_named(here: Path) -> None:
    """A missing module is named, with the places that were searched."""
    message = await refusal("wk_nowhere.agents:orders")
    assert message == (
        "There is no module 'wk_nowhere' for wk_nowhere.agents:orders; it was looked for in "
        f"{here} and among the installed packages."
    )


async def test_missing_module_of_a_package_is_named_in_full(here: Path) -> None:
    """A module that is missing in its package is named in full."""
    (here / "wk_package").mkdir()
    assert "no module 'wk_package.agents'" in await refusal("wk_package.agents:orders")


@pytest.mark.parametrize("missing", ["wk_nowhere", "wk", "wk_sho"])
async def test_missing_import_of_a_module_is_named(here: Path, missing: str) -> None:
    """A module that exists but imports a missing one is not called missing itself."""
    (here / "wk_shop.py").write_text(f"import {missing}\n")
    message = await refusal("wk_shop:orders")
    assert message.startswith("Importing wk_shop failed: ModuleNotFoundError: No module named ")
    assert repr(missing) in message


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ValueError('no key')", "ValueError: no key"),
        ("def broken(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("from wk_shop import itself", "ImportError"),
    ],
    ids=["raises", "no python", "divides", "exits", "circular"],
)
async def test_failing_module_is_named(here: Path, code: str, words: str) -> None:
    """A module that raises on import is named, with its exception."""
    (here / "wk_shop.py").write_text(code)
    message = await refusal("wk_shop:orders")
    assert message.startswith("Importing wk_shop failed: ")
    assert words in message


@pytest.mark.parametrize("attribute", ["nothing", "Shop.nothing", "orders.nothing.more"])
async def test_missing_attribute_is_named(shop: Path, attribute: str) -> None:
    """A missing attribute of the module is named."""
    message = await refusal(f"a=wk_shop:{attribute}")
    assert message == f"Module wk_shop has no attribute {attribute!r}."


@pytest.mark.parametrize(
    ("attribute", "given"),
    [("number", "int"), ("tools", "list"), ("model", "ScriptedModel"), ("gives_nothing", "None")],
)
async def test_object_that_is_no_agent_is_named(shop: Path, attribute: str, given: str) -> None:
    """An object that is no agent is named by its type, with the types that are accepted."""
    message = await refusal(f"a=wk_shop:{attribute}")
    assert message.startswith(f"wk_shop:{attribute} is no agent: it is a {given}")
    assert "expected is a compiled LangGraph graph over 'messages'" in message


async def test_class_is_refused(shop: Path) -> None:
    """A class is neither an agent nor a factory."""
    message = await refusal("a=wk_shop:Shop")
    assert message == "wk_shop:Shop is a class, not an agent or a function."


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("broken_factory", "RuntimeError: no database"),
        ("broken_async_factory", "OSError: no database"),
        ("leaving_factory", "SystemExit: use --help"),
    ],
)
async def test_failing_factory_is_named(shop: Path, factory: str, words: str) -> None:
    """A factory that raises is named, with its exception."""
    message = await refusal(f"wk_shop:{factory}")
    assert message.startswith(f"The factory wk_shop:{factory} failed: {words}")


@pytest.mark.parametrize(
    ("factory", "wanted"),
    [("wants_arguments", "'settings', 'store'"), ("wants_config", "'config'")],
)
async def test_factory_with_required_arguments_is_refused(
    shop: Path, factory: str, wanted: str
) -> None:
    """A factory that cannot be called without arguments is refused, naming them."""
    message = await refusal(f"wk_shop:{factory}")
    assert message.startswith(
        f"The factory wk_shop:{factory} wants {wanted}, and Watchkeeper calls"
    )
    assert "give it a default" in message


async def test_failed_start_closes_earlier_agents(shop: Path) -> None:
    """A start that fails closes what earlier agents opened."""
    assert "is no agent" in await refusal("wk_shop:context", "wk_shop:number")
    assert sys.modules["wk_shop"].closed == ["context"]


async def test_one_broken_agent_stops_the_start(shop: Path) -> None:
    """One broken agent among good ones stops the start."""
    assert "wk_shop:number is no agent" in await refusal("wk_shop:orders", "wk_shop:number")


async def test_settings_are_the_limits_of_each_kind(shop: Path) -> None:
    """Settings of an agent are its limits; a limit set on an executor by hand wins."""
    settings = Settings.model_validate(
        {"max_iterations": 5, "agents": {"orders": {"max_iterations": 3}, "executor": {}}}
    )
    service = await load("wk_shop:orders", "wk_shop:graph", "wk_shop:executor", settings=settings)
    limits = {name: agent.info.iteration_limit for name, agent in service.agents.items()}
    assert limits == {"orders": 3, "graph": 5, "executor": 7}


def test_the_working_directory_is_added_once(here: Path) -> None:
    """The working directory comes first on the import path, however often agents are loaded."""
    for _ in range(3):
        import_from_working_directory()
    assert sys.path[0] == str(here)
    assert sys.path.count(str(here)) == 1
