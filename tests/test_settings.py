"""The settings: precedence, refused values and their sentences."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app import settings
from app.runs.model import EarlyStopping
from app.settings import Docs, LogFormat, Settings, SettingsError

WriteFile = Callable[[str], Path]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("WATCHKEEPER"):
            monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path: Path) -> WriteFile:
    """Write a settings file."""

    def write(text: str) -> Path:
        file = tmp_path / "watchkeeper.toml"
        file.write_text(text)
        return file

    return write


def refusal(config: Path | None = None, **options: Any) -> str:
    """The sentence with which settings are refused."""
    with pytest.raises(SettingsError) as refused:
        settings.read(config, **options)
    return str(refused.value)


def test_defaults_are_those_of_the_contract() -> None:
    """Without configuration the service has the defaults of the contract."""
    read = settings.read()
    assert (read.host, read.port) == ("127.0.0.1", 8000)
    assert (read.timeout_s, read.max_timeout_s) == (30.0, 300.0)
    assert (read.max_iterations, read.early_stopping) == (10, EarlyStopping.GENERATE)
    assert (read.max_running_runs, read.max_queued_runs, read.tool_threads) == (64, 64, 16)
    assert (read.log_format, read.docs, read.cors_origins) == (LogFormat.AUTO, Docs.AUTO, ())


def test_options_win_over_variables_win_over_the_file(
    write: WriteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the three sources counts if those before it are silent."""
    file = write("port = 1001\nmax_iterations = 1\ntool_threads = 1\n")
    monkeypatch.setenv("WATCHKEEPER_PORT", "1002")
    monkeypatch.setenv("WATCHKEEPER_MAX_ITERATIONS", "2")
    read = settings.read(file, port="1003")
    assert (read.port, read.max_iterations, read.tool_threads) == (1003, 2, 1)


def test_missing_option_leaves_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that is None leaves the variable in force."""
    monkeypatch.setenv("WATCHKEEPER_HOST", "::1")
    assert settings.read(host=None, port=None).host == "::1"


def test_table_of_an_agent_beats_the_service(write: WriteFile) -> None:
    """An agent's table counts for that agent, and the service's settings for the others."""
    read = settings.read(
        write(
            "timeout_s = 20\n[agents.orders]\ntimeout_s = 5\nmax_timeout_s = 60\n"
            'max_iterations = 3\nearly_stopping = "force"\ndescription = "Orders"\n'
        )
    )
    mine, other = read.served("orders"), read.served("other")
    assert (mine.timeout_s, mine.max_timeout_s, mine.iteration_limit) == (5, 60, 3)
    assert (mine.early_stopping, mine.description) == (EarlyStopping.FORCE, "Orders")
    assert (other.timeout_s, other.max_timeout_s, other.iteration_limit) == (20, 300, 10)
    assert other.early_stopping is EarlyStopping.GENERATE


def test_default_never_exceeds_its_maximum(write: WriteFile) -> None:
    """If an agent's maximum deadline is below the default one, its default is the maximum."""
    read = settings.read(write("[agents.a]\nmax_timeout_s = 2\n"))
    assert (read.served("a").timeout_s, read.served("a").max_timeout_s) == (2, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("TIMEOUT_S", "0"),
        ("TIMEOUT_S", "-1"),
        ("TIMEOUT_S", "nan"),
        ("TIMEOUT_S", "inf"),
        ("MAX_TIMEOUT_S", "inf"),
        ("MAX_ITERATIONS", "0"),
        ("MAX_ITERATIONS", "1.5"),
        ("EARLY_STOPPING", "later"),
        ("MAX_RUNNING_RUNS", "0"),
        ("MAX_QUEUED_RUNS", "-1"),
        ("TOOL_THREADS", "0"),
        ("DRAIN_S", "-1"),
        ("DRAIN_S", "nan"),
        ("DRAIN_S", "inf"),
        ("DRAIN_NOTICE_S", "inf"),
        ("LOG_FORMAT", "xml"),
        ("LOG_LEVEL", "loud"),
        ("DOCS", "maybe"),
        ("READY_REQUIRES", "x"),
        ("READY_REQUIRES", "store, x"),
        ("AGENTS", "shop:orders"),
        ("AGENTS", '{"a": {"max_iterations": 0}}'),
    ],
)
def test_wrong_variable_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong variable is refused in one line that names it."""
    monkeypatch.setenv(f"WATCHKEEPER_{name}", value)
    message = refusal()
    assert message.startswith(f"WATCHKEEPER_{name}: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("port = 'http'", "port in"),
        ("prot = 8000", "prot in"),
        ("[agents.a]\nmax_iterations = 0", "agents.a.max_iterations in"),
        ("[agents.a]\nlimit = 3", "agents.a.limit in"),
        ("agents = 3", "agents in"),
        ("[agents]\na = 3", "agents.a in"),
    ],
)
def test_wrong_line_of_the_file_is_named(text: str, position: str, write: WriteFile) -> None:
    """A wrong line of the file is refused with its place and the file."""
    file = write(text)
    assert refusal(file).startswith(f"{position} {file}: ")


def test_wrong_option_is_named() -> None:
    """A wrong option is refused by its name on the command line."""
    assert refusal(port="http").startswith("--port: ")
    assert refusal(log_format="xml").startswith("--log-format: ")


def test_every_fault_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two wrong settings are reported together."""
    monkeypatch.setenv("WATCHKEEPER_PORT", "x")
    monkeypatch.setenv("WATCHKEEPER_TOOL_THREADS", "0")
    message = refusal()
    assert "WATCHKEEPER_PORT: " in message
    assert "WATCHKEEPER_TOOL_THREADS: " in message


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A settings file that is missing, or a directory, is named."""
    assert refusal(tmp_path / "no.toml") == f"There is no settings file {tmp_path / 'no.toml'}."
    assert refusal(tmp_path) == f"There is no settings file {tmp_path}."


def test_file_that_is_no_toml_is_named(write: WriteFile) -> None:
    """A file that is not TOML is named with the place of the fault."""
    file = write("port = \n")
    assert refusal(file).startswith(f"{file} is not TOML: ")
    assert "line 1" in refusal(file)


def test_file_that_is_no_text_is_named(write: WriteFile) -> None:
    """A file that is not UTF-8 is named."""
    file = write("")
    file.write_bytes(b"host = '\xff\xfe'\n")
    assert str(file) in refusal(file)


def test_empty_file_leaves_the_defaults(write: WriteFile) -> None:
    """An empty file leaves the defaults in force."""
    assert settings.read(write("")).model_dump() == settings.read().model_dump()


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("https://a.example", ("https://a.example",)),
        ("https://a.example, https://b.example,", ("https://a.example", "https://b.example")),
        ("", ()),
    ],
)
def test_origins_are_separated_by_commas(
    text: str, origins: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Origins are separated by commas."""
    monkeypatch.setenv("WATCHKEEPER_CORS_ORIGINS", text)
    assert settings.read().cors_origins == origins


def test_origins_in_the_file_are_a_list(write: WriteFile) -> None:
    """In the file origins are a list."""
    assert settings.read(write('cors_origins = ["https://a.example"]')).cors_origins == (
        "https://a.example",
    )


def test_settings_are_frozen() -> None:
    """No code can change a setting after it was read."""
    with pytest.raises(ValidationError):
        settings.read().port = 1  # type: ignore[misc]


def test_unknown_variables_are_reported() -> None:
    """A misspelt variable is reported; those that are read are not."""
    known = {settings.variable(name): "" for name in Settings.model_fields}
    known |= {settings.CONFIG_VARIABLE: "", settings.AGENTS_VARIABLE: "", "PATH": ""}
    assert settings.unknown_variables(known) == []
    assert settings.unknown_variables({"WATCHKEEPER_PROT": "", "HOME": ""}) == ["WATCHKEEPER_PROT"]


def test_every_setting_is_described() -> None:
    """Every setting has a description."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_no_env_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `.env` in the working directory is not read."""
    (tmp_path / ".env").write_text("WATCHKEEPER_PORT=1\n")
    monkeypatch.chdir(tmp_path)
    assert settings.read().port == 8000
