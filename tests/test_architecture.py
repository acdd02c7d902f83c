"""The import contracts hold, and each of them catches what it forbids."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
APP = ROOT / "app"
LINT = Path(sys.executable).with_name("lint-imports")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]

LAYERS = "The rooms stand in layers, and those of one layer do not know each other"
CORE = "The core knows no library but tenacity"
LANGCHAIN = "Only agents knows LangChain"
FASTAPI = "Only api knows FastAPI"
WATCHING = "Only telemetry knows structlog, Prometheus and OpenTelemetry"
STORE = "Only tasks knows the task engine and SQL"
FACTS = "Telemetry knows of runs only what happened"
NOUNS = "Settings know only the nouns of the core"
CIRCLES = "Inside a room, modules do not import each other in circles"
CATALOGUE = "Dashboards and rules know of the product its catalogue"
UNSEEN = "The product knows nothing of its dashboards"
OFFERED = "The service does not import what it offers to programs"

# For each contract: the module in which a line is planted, and what that line imports.
PLANTED: tuple[tuple[str, str, str], ...] = (
    (LAYERS, "app.runs.model", "app.agents.inspection.introspection"),
    (LAYERS, "app.runs.deadline", "app.settings"),
    (LAYERS, "app.agents.handler.tool_context", "app.telemetry.logs"),
    (LAYERS, "app.agents.inspection.introspection", "app.settings"),
    (LAYERS, "app.api.deps", "app.agents.registry"),
    (LAYERS, "app.api.ops", "app.telemetry.logs"),
    (LAYERS, "app.api.agent", "app.settings"),
    (LAYERS, "app.telemetry.fanout", "app.api.ops"),
    (LAYERS, "app.settings", "app.telemetry.logs"),
    (LAYERS, "app.main", "app.__main__"),
    (CORE, "app.runs.admission", "pydantic"),
    (CORE, "app.runs.errors", "fastapi"),
    (CORE, "app.runs.threads", "langchain_core"),
    (CORE, "app.runs.live", "structlog"),
    (LANGCHAIN, "app.api.ops", "langchain_core"),
    (LANGCHAIN, "app.telemetry.logs", "langgraph"),
    (LANGCHAIN, "app.settings", "langchain"),
    (LANGCHAIN, "app.main", "langchain_openai"),
    (FASTAPI, "app.main", "fastapi"),
    (FASTAPI, "app.telemetry.fanout", "fastapi"),
    (FASTAPI, "app.agents.error_translation", "fastapi"),
    (WATCHING, "app.api.agent", "structlog"),
    (WATCHING, "app.agents.error_translation", "opentelemetry"),
    (WATCHING, "app.main", "prometheus_client"),
    (LAYERS, "app.tasks.rows", "app.agents.inspection.introspection"),
    (LAYERS, "app.api.tasks", "app.tasks.engine"),
    (LAYERS, "app.agents.conversations", "app.tasks.conversations"),
    (STORE, "app.api.threads", "sqlalchemy"),
    (STORE, "app.main", "dbos"),
    (CORE, "app.runs.background", "dbos"),
    (FACTS, "app.telemetry.fanout", "app.runs.runner"),
    (FACTS, "app.telemetry.logs", "app.runs.live"),
    (NOUNS, "app.settings", "app.runs.runner"),
    (CIRCLES, "app.runs.model", "app.runs.events"),
    (CIRCLES, "app.api.deps", "app.api.app"),
    (CIRCLES, "app.agents.handler.tool_context", "app.agents.handler.tool_guards"),
    (CATALOGUE, "dashboards.queries", "app.runs.model"),
    (CATALOGUE, "dashboards.rules.slo", "app.telemetry.metrics"),
    (CATALOGUE, "dashboards.boards.cost", "app.settings"),
    (UNSEEN, "app.telemetry.metrics", "dashboards.queries"),
    (OFFERED, "app.ask", "watchkeeper"),
)


def lint(directory: Path) -> tuple[int, str]:
    """The report of import-linter on the `app` in a directory, by this repository's contracts."""
    ended = subprocess.run(
        [str(LINT), "--config", str(ROOT / "pyproject.toml"), "--no-cache", "--no-logo"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory), "COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def sections(output: str) -> Mapping[str, str]:
    """The report on each broken contract."""
    _, _, broken = output.partition("Broken contracts")
    names = "|".join(re.escape(contract["name"]) for contract in CONTRACTS)
    parts = re.split(rf"^({names})$", broken, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def copied(directory: Path) -> Path:
    """A copy of the product that may be broken."""
    for part in (APP, ROOT / "dashboards"):
        left_out = shutil.ignore_patterns("__pycache__", "node_modules", "build", "dist")
        shutil.copytree(part, directory / part.name, ignore=left_out)
    return directory


def file_of(directory: Path, module: str) -> Path:
    """The file of a module in that directory."""
    return directory.joinpath(*module.split(".")).with_suffix(".py")


def test_contracts_hold() -> None:
    """The product keeps every contract."""
    code, output = lint(ROOT)
    assert code == 0, output
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken." in output


def test_every_contract_has_a_planted_violation() -> None:
    """No contract is without a planted violation."""
    assert {contract["name"] for contract in CONTRACTS} == {name for name, _, _ in PLANTED}


@pytest.mark.parametrize("contract", sorted({name for name, _, _ in PLANTED}))
def test_planted_violations_are_caught(tmp_path: Path, contract: str) -> None:
    """Each forbidden import breaks the contract that forbids it, which names it."""
    directory = copied(tmp_path)
    planted = [(module, imported) for name, module, imported in PLANTED if name == contract]
    for module, imported in planted:
        with file_of(directory, module).open("a") as file:
            file.write(f"\nimport {imported}\n")
    code, output = lint(directory)
    assert code == 1, output
    section = sections(output)[contract]
    for module, imported in planted:
        caught = f"{module} -> {imported} "
        if contract == CIRCLES:
            caught = f"No cycles are allowed in {module.rpartition('.')[0]}."
        assert caught in section


def test_new_module_needs_a_layer(tmp_path: Path) -> None:
    """A module in no layer breaks the contract of the layers."""
    directory = copied(tmp_path)
    (directory / "app" / "attic.py").write_text('"""Nobody thought of it."""\n')
    code, output = lint(directory)
    assert code == 1
    assert "attic" in sections(output)[LAYERS]


def imports(file: Path) -> set[str]:
    """The modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found.add(node.module or "")
    return found


def test_core_imports_the_standard_library_only() -> None:
    """The core imports itself, the standard library and anyio."""
    allowed = {*sys.stdlib_module_names, "tenacity"}
    for file in (APP / "runs").glob("*.py"):
        for module in imports(file):
            assert module.startswith("app.runs") or module.partition(".")[0] in allowed, file


@pytest.mark.parametrize(
    ("room", "libraries"),
    [
        ("agents", ("langchain", "langgraph", "langsmith", "openai")),
        ("api", ("fastapi", "uvicorn")),
        ("telemetry", ("structlog", "prometheus_client", "opentelemetry")),
    ],
)
def test_each_library_has_one_package(room: str, libraries: tuple[str, ...]) -> None:
    """Outside its own package no module imports a library or its parts."""
    for file in APP.rglob("*.py"):
        if APP / room not in file.parents:
            assert not [name for name in imports(file) if name.startswith(libraries)], file


def test_only_the_command_line_and_main_read_settings() -> None:
    """No other package reads the settings or the environment."""
    for file in APP.rglob("*.py"):
        if file.parent != APP:
            assert "app.settings" not in imports(file), file


def test_settings_import_only_the_nouns() -> None:
    """Of the core, settings import its nouns only."""
    known = {name for name in imports(APP / "settings.py") if name.startswith("app")}
    assert known <= {"app.runs.model"}


def test_importing_has_no_effect() -> None:
    """Importing the whole product starts no thread, opens no log and prints nothing."""
    code = (
        "import threading, logging, sys\n"
        "before = list(logging.getLogger().handlers)\n"
        "import app.main, app.__main__\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert logging.getLogger().handlers == before\n"
        "assert 'langchain_openai' not in sys.modules\n"
        "assert 'langchain_classic' not in sys.modules\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_every_module_has_a_docstring() -> None:
    """Every module starts with a sentence."""
    for file in APP.rglob("*.py"):
        docstring = ast.get_docstring(ast.parse(file.read_text()))
        assert docstring, file
        assert not docstring.startswith("This module"), file
