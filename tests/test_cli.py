"""The command line, as an operator uses it: one clear sentence for each fault.

Commands that end by themselves are run in one go and looked at afterwards.
"""

import json
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.command import Ended, environment, run, run_all, serving

SHOP = """
from tests import fakes

model = fakes.ScriptedModel(script=fakes.calls_then_answers("look"))
orders = fakes.build("create_agent", model, fakes.ToolDesk().tools()[:2])
graph = fakes.build("langgraph", model, fakes.ToolDesk().tools()[:1])
number = 42

def broken():
    raise RuntimeError("no database")
"""
SETTINGS = """
timeout_s = 21
max_iterations = 9
tool_threads = 3
[agents.orders]
timeout_s = 4
max_iterations = 2
"""


@dataclass(frozen=True)
class Case:
    """A command that ends by itself."""

    arguments: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)


SERVE = ("serve", "--port", "0")
# Each is refused with code 2, one line on stderr and these words in it.
REFUSED: dict[str, tuple[Case, str]] = {
    "wrong import string": (Case((*SERVE, "wk_shop")), "form [NAME=]MODULE:ATTRIBUTE"),
    "missing module": (Case((*SERVE, "wk_nowhere:orders")), "no module 'wk_nowhere'"),
    "missing attribute": (Case((*SERVE, "wk_shop:nothing")), "no attribute 'nothing'"),
    "no agent": (Case((*SERVE, "wk_shop:number")), "wk_shop:number is no agent"),
    "two of a name": (Case((*SERVE, "wk_shop:orders", "orders=wk_shop:graph")), "named 'orders'"),
    "bad name": (Case((*SERVE, "My Shop=wk_shop:orders")), "'My Shop' cannot be the name"),
    "broken factory": (Case((*SERVE, "wk_shop:broken")), "RuntimeError: no database"),
    "a module that exits": (Case((*SERVE, "wk_exits:orders")), "Importing wk_exits failed"),
    "agents of the same": (Case(("agents", "wk_nowhere:orders")), "no module 'wk_nowhere'"),
    "check of the same": (Case(("serve", "--check", "wk_nowhere:orders")), "no module"),
    "wrong port": (Case(("serve", "--port", "http")), "--port: "),
    "wrong variable": (Case(SERVE, {"WATCHKEEPER_TIMEOUT_S": "0"}), "WATCHKEEPER_TIMEOUT_S: "),
    "agents in a variable": (Case(SERVE, {"WATCHKEEPER_AGENTS": "a:b"}), "WATCHKEEPER_AGENTS"),
    "no such file": (Case((*SERVE, "--config", "no.toml")), "no settings file no.toml"),
    "no toml": (Case((*SERVE, "--config", "wk_shop.py")), "wk_shop.py is not TOML"),
    "unknown in the file": (Case((*SERVE, "--config", "odd.toml")), "prot in odd.toml"),
    "worker without a store": (
        Case(("worker", "--port", "0"), {"WATCHKEEPER_STORE_URL": "none"}),
        "A worker needs a store: set WATCHKEEPER_STORE_URL.",
    ),
    "check of such a worker": (
        Case(("worker", "--check"), {"WATCHKEEPER_STORE_URL": "none"}),
        "A worker needs a store: set WATCHKEEPER_STORE_URL.",
    ),
    "several processes": (Case(SERVE, {"WEB_CONCURRENCY": "4"}), "run several services"),
}
OTHERS: dict[str, Case] = {
    "check": Case(("serve", "--check", "--config", "s.toml", "wk_shop:orders", "wk_shop:graph")),
    "layers": Case(
        ("serve", "--check", "--config", "s.toml", "--port", "7001"),
        {
            "WATCHKEEPER_PORT": "7002",
            "WATCHKEEPER_MAX_ITERATIONS": "8",
            "WATCHKEEPER_LOG_FORMAT": "json",
        },
    ),
    "agents": Case(("agents", "wk_shop:orders", "b=wk_shop:graph")),
    "demo": Case(("agents",)),
    "one process": Case(("agents", "wk_shop:orders"), {"WEB_CONCURRENCY": "1"}),
    "help": Case(("--help",)),
    "nothing": Case(()),
    "wrong usage": Case(("serve", "--nonsense")),
    "wrong format": Case(("serve", "--log-format", "xml")),
    "bad address": Case(("serve", "--host", "203.0.113.7", "--port", "0")),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's working directory."""
    here = tmp_path_factory.mktemp("user")
    (here / "wk_shop.py").write_text(SHOP)
    (here / "wk_exits.py").write_text("import sys\nsys.exit(0)\n")
    (here / "s.toml").write_text(SETTINGS)
    (here / "odd.toml").write_text("prot = 1\n")
    return here


@pytest.fixture(scope="module")
def ended(here: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """What became of each command, by its name."""
    cases = {name: case for name, (case, _) in REFUSED.items()} | OTHERS
    commands = [(case.arguments, case.variables) for case in cases.values()]
    endings = run_all(commands, here, tmp_path_factory.mktemp("output"))
    return dict(zip(cases, endings, strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_fault_is_one_sentence_with_exit_code_2(ended: dict[str, Ended], name: str) -> None:
    """A fault is one sentence, with exit code 2, before any address is bound."""
    completed = ended[name]
    assert completed.code == 2, completed.err
    assert REFUSED[name][1] in completed.sentence()
    assert "--check" in REFUSED[name][0].arguments or completed.out == ""


@pytest.mark.parametrize("name", ["missing module", "agents"])
def test_installed_command_equals_the_module(
    ended: dict[str, Ended], here: Path, name: str
) -> None:
    """The installed command prints what its module prints."""
    case = OTHERS[name] if name in OTHERS else REFUSED[name][0]
    assert run(*case.arguments, cwd=here, variables=case.variables) == ended[name]


@pytest.mark.parametrize("name", ["nothing", "wrong usage", "wrong format"])
def test_wrong_usage_exits_with_2(ended: dict[str, Ended], name: str) -> None:
    """An unknown command prints the usage, with exit code 2."""
    completed = ended[name]
    assert completed.code == 2
    assert completed.err.startswith("usage: watchkeeper")


def test_help_names_every_command(ended: dict[str, Ended]) -> None:
    """The help names every command."""
    completed = ended["help"]
    assert (completed.code, completed.err) == (0, "")
    assert {"serve", "agents"} <= set(completed.out.split())


def test_agents_lists_what_would_be_served(ended: dict[str, Ended]) -> None:
    """`agents` lists the agents, one on a line, the default first."""
    completed = ended["agents"]
    assert (completed.code, completed.err) == (0, "")
    assert completed.out.splitlines() == [
        "orders: create_agent, model unknown, tools look, nap",
        "b: langgraph, model unknown, tools look",
    ]


def test_agents_alone_lists_the_demo(ended: dict[str, Ended]) -> None:
    """`agents` alone lists the demo agent, and nothing else."""
    completed = ended["demo"]
    assert completed.code == 0
    (line,) = completed.out.splitlines()
    assert line.startswith("demo: create_agent, model demo, tools query_order")


def settings_of(completed: Ended) -> tuple[dict[str, object], str]:
    """The settings that `serve --check` printed, and what came after them."""
    assert completed.code == 0, completed.err
    settings, end = json.JSONDecoder().raw_decode(completed.out)
    assert isinstance(settings, dict)
    return settings, completed.out[end:].strip()


def test_check_shows_settings_and_agents(ended: dict[str, Ended]) -> None:
    """`serve --check` prints the effective settings and the agents, and stops."""
    settings, rest = settings_of(ended["check"])
    assert (settings["timeout_s"], settings["port"]) == (21.0, 8000)
    assert [line.partition(":")[0] for line in rest.splitlines()] == ["orders", "graph"]


def test_options_win_over_variables_win_over_the_file(ended: dict[str, Ended]) -> None:
    """An option beats a variable, and a variable beats the file."""
    settings, _ = settings_of(ended["layers"])
    assert (settings["port"], settings["max_iterations"]) == (7001, 8)
    assert (settings["tool_threads"], settings["log_format"]) == (3, "json")


def test_one_process_is_accepted(ended: dict[str, Ended]) -> None:
    """WEB_CONCURRENCY=1, which some platforms set, is accepted."""
    assert ended["one process"].code == 0


def test_foreign_address_is_refused(ended: dict[str, Ended]) -> None:
    """An address of another machine is refused with exit code 1."""
    completed = ended["bad address"]
    assert completed.code == 1
    assert completed.err.splitlines()[-1].startswith(
        "watchkeeper: Cannot listen on 203.0.113.7:0: "
    )
    assert "Traceback" not in completed.err


def test_port_in_use_is_refused(here: Path) -> None:
    """A port in use is refused with exit code 1 and the setting."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        completed = run("serve", "--port", str(port), "wk_shop:orders", cwd=here)
    assert completed.code == 1
    assert completed.sentence() == (
        f"Cannot listen on 127.0.0.1:{port}: address already in use; "
        "choose another with --host or --port."
    )


def test_named_agents_are_served(here: Path, tmp_path: Path) -> None:
    """The named agents are served with their limits; a misspelt variable causes a warning."""
    (tmp_path / "wk_shop.py").write_text(SHOP)
    (tmp_path / "s.toml").write_text(SETTINGS)
    arguments = ("--config", "s.toml", "wk_shop:orders", "wk_shop:graph")
    with serving(tmp_path, *arguments, variables={"WATCHKEEPER_PROT": "1"}) as service:
        listed = httpx.get(f"{service.url}/agents", timeout=30).json()["agents"]
        limits = [(a["name"], a["default"], a["timeout_s"], a["iteration_limit"]) for a in listed]
        assert limits == [("orders", True, 4.0, 2), ("graph", False, 21.0, 9)]
        answer = httpx.post(f"{service.url}/agent", json={"question": "q"}, timeout=30).json()
        assert (answer["agent"], answer["answer"]) == ("orders", "done: q: order 1 shipped")
        lines = [json.loads(line) for line in service.out.read_text().splitlines()]
        (warning,) = [line for line in lines if line["event"] == "unknown_setting"]
        assert (warning["level"], warning["variable"]) == ("warning", "WATCHKEEPER_PROT")
        assert "curl" in service.err.read_text()
        assert "demo" not in service.err.read_text()


def test_printed_address_answers(tmp_path: Path) -> None:
    """Once the address is printed it answers."""
    with serving(tmp_path, patient=False) as service:
        assert httpx.get(f"{service.url}/health", timeout=30).json() == {"status": "ok"}


UVICORN = (sys.executable, "-m", "uvicorn", "--factory", "app.main:create_app")


def test_plain_uvicorn_serves_the_factory(tmp_path: Path) -> None:
    """Plain uvicorn serves the factory as the variables set it, and stops in order."""
    (tmp_path / "wk_shop.py").write_text(SHOP)
    (tmp_path / "s.toml").write_text(SETTINGS)
    variables = {
        "WATCHKEEPER_SERVE": "wk_shop:graph,wk_shop:orders",
        "WATCHKEEPER_CONFIG": "s.toml",
    }
    with serving(
        tmp_path,
        command=UVICORN,
        variables=variables,
        announcement=r"running on (http://127\.0\.0\.1:\d+)",
    ) as service:
        listed = httpx.get(f"{service.url}/agents", timeout=30).json()["agents"]
        assert [(a["name"], a["iteration_limit"]) for a in listed] == [("graph", 9), ("orders", 2)]
        answer = httpx.post(
            f"{service.url}/agents/orders", json={"question": "q"}, timeout=30
        ).json()
        assert answer["outcome"] == "completed"
        service.signal()
        assert service.wait(60) in (0, -15)
        assert "Traceback" not in service.out.read_text() + service.err.read_text()


def test_several_processes_are_refused(tmp_path: Path) -> None:
    """Several server processes are refused in every place, with the same sentence."""
    ended = subprocess.run(
        [sys.executable, "-P", "-c", "from app.main import create_app; create_app()"],
        cwd=tmp_path,
        env=environment({"WEB_CONCURRENCY": "2"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode != 0
    assert "run several services" in ended.stderr
