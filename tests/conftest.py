"""Settings of every test: blocking calls in async code are errors."""

import gc
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings

from tests import fast
from tests.parts.postgres import Shared, cluster

# The time of an example, or of its generation, means nothing on a busy machine.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Modules whose tests hold something to a time: nothing runs beside them.
ALONE = {
    f"tests/{name}.py"
    for name in (
        "api/test_deadlines", "api/test_disconnects", "parts/test_chaos",
        "parts/test_database_silent", "parts/test_drills",
        "streams/test_memory", "streams/test_readers", "telemetry/test_runtime", "test_drain",
    )
}  # fmt: skip


# Modules that read the file of a store, or whose processes share one whatever STORE is.
ON_FILE = {
    f"tests/tasks/test_{name}.py"
    for name in ("lifetimes", "lost_runs", "overdue", "processes", "restart")
}


def pytest_configure(config: pytest.Config) -> None:
    """Hold fast tests to their rule."""
    rule = fast.Rule()
    rule.install()
    config.pluginmanager.register(rule, "rule of the fast tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is fast, what is to run alone, and what wants a file."""
    for item in items:
        fast.mark(item)
        module = item.path.relative_to(config.rootpath).as_posix()
        if module in ALONE:
            item.add_marker(pytest.mark.alone)
        if module in ON_FILE:
            item.add_marker(pytest.mark.on_file)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """To import every module takes longer than a test: with `-m alone`, only those of ALONE."""
    if config.option.markexpr != "alone" or not collection_path.name.startswith("test_"):
        return None
    return collection_path.relative_to(config.rootpath).as_posix() not in ALONE or None


def pytest_collection_finish() -> None:
    """What was collected stays until the end: to walk through all of it holds a test up."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Commands that tests start can be interrupted, also where tests run in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Services that tests start keep nothing in the working directory."""
    os.environ["WATCHKEEPER_DATA_DIR"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True, scope="session")
def server() -> Iterator[None]:
    """Where STORE=postgres asks for it, stores of tests are databases of one server, not files."""
    if os.environ.get("STORE") != "postgres":
        yield
        return
    with cluster(careful=False) as Shared.server:
        yield


@pytest.fixture(autouse=True)
def blockbuster() -> Iterator[BlockBuster]:
    """Raise when a blocking call is made on the event loop, by our code or what it calls."""
    with blockbuster_ctx("app") as detector:
        for function in detector.functions.values():
            # Building happens once, before anything is served.
            function.can_block_in(
                "app/main.py", {"assemble", "application", "load_agents", "lifespan"}
            )
            function.can_block_in("app/agents/factories.py", {"build", "_built_agent"})
            function.can_block_in("app/agents/inspection/source_inspection.py", {"_body"})
            # Sync code that runs on a loop can confirm its ownership only by blocking it.
            function.can_block_in("app/runs/background.py", {"confirm_owned_in_thread"})
        yield detector


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable(report: object) -> Generator[None, object, object]:
    """Let a captured line with half a character in it pass from one test process to another."""
    sections = getattr(report, "sections", None)
    if sections is not None:
        sections[:] = [
            (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in sections
        ]
    return (yield)
