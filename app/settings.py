"""Every setting of the service, in one frozen tree: options override variables override the file.

Only `main` and `__main__` read it. They pass plain values to the other packages.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from app.runs.model import AgentInfo, EarlyStopping

_PREFIX = "WATCHKEEPER_"
# `create_app` reads these: it has no command line.
CONFIG_VARIABLE = "WATCHKEEPER_CONFIG"
AGENTS_VARIABLE = "WATCHKEEPER_SERVE"

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LogFormat(StrEnum):
    """The form of log lines. `auto` is readable text on a terminal, and JSON elsewhere."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class Docs(StrEnum):
    """Whether `/docs` is open: `auto` opens it on loopback only."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class AgentSettings(BaseModel):
    """The settings of one agent: a table `[agents.NAME]` of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str = Field("", description="Shown by `GET /agents`.")
    timeout_s: Seconds | None = Field(None, description="Default deadline of a run.")
    max_timeout_s: Seconds | None = Field(None, description="Longest deadline a caller may set.")
    max_iterations: int | None = Field(None, ge=1, description="Iteration limit.")
    early_stopping: EarlyStopping | None = Field(None, description="`generate` or `force`.")


class Settings(BaseSettings):
    """The settings of a service. Each is read from `WATCHKEEPER_` and its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    timeout_s: Seconds = Field(30.0, description="Deadline of a run whose caller sets none.")
    max_timeout_s: Seconds = Field(300.0, description="Longest deadline that a caller may set.")
    background_timeout_s: Seconds = Field(
        3600.0,
        description="Deadline of a background run, and the longest a caller may set. It counts "
        "from the run's first start.",
    )
    max_iterations: int = Field(10, ge=1, description="Iteration limit of an agent without one.")
    early_stopping: EarlyStopping = Field(
        EarlyStopping.GENERATE,
        description="What writes the answer at the iteration limit: `generate` or `force`.",
    )
    max_running_runs: int = Field(64, ge=1, description="Runs that may execute at the same time.")
    max_queued_runs: int = Field(64, ge=0, description="Runs that may wait for a slot.")
    max_background_runs: int = Field(
        16, ge=1, description="Background runs of one agent that this process executes at once."
    )
    max_background_runs_everywhere: int | None = Field(
        None,
        ge=1,
        description="The same limit for all processes on the store together. Unset: no limit.",
    )
    tool_threads: int = Field(16, ge=1, description="Threads for sync tools, models and nodes.")
    factory_s: Seconds = Field(
        300.0, description="How long a factory may take to return its agent, at start."
    )
    keep_finished_runs: int = Field(
        500, ge=0, description="Finished runs that `GET /runs` still lists."
    )
    data_dir: Path = Field(
        Path(".watchkeeper"), description="Where the store is, unless `store_url` names another."
    )
    store_url: str = Field(
        "",
        repr=False,
        description="The store of background runs and conversations: `sqlite:///PATH`, "
        "`postgresql://…`, or `none` for a service without a store. Unset: a file in `data_dir`.",
    )
    store_reserve_bytes: int = Field(
        64_000_000,
        ge=0,
        description="With less free space on the disk of the store, the service refuses new "
        "background runs.",
    )
    ready_requires: Annotated[tuple[Literal["store"], ...], NoDecode] = Field(
        (), description="`store`: `/health/ready` fails while the store is unreachable."
    )
    keep_tasks_s: Seconds = Field(
        7 * 24 * 3600.0,
        description="Ended background runs and idle threads are deleted after this long.",
    )
    max_body_bytes: int = Field(2_000_000, ge=1_000, description="Largest request body.")
    stream_write_s: Seconds = Field(
        10.0,
        description="The service closes a stream whose reader does not read for this long.",
    )
    drain_notice_s: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="How long a draining service still accepts runs, while readiness fails.",
    )
    drain_s: float = Field(
        20.0,
        ge=0,
        allow_inf_nan=False,
        description="How long a draining service lets runs finish before it stops them.",
    )
    log_format: LogFormat = Field(LogFormat.AUTO, description="`auto`, `json` or `console`.")
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="Least level of a log line."
    )
    commit: str = Field(
        "unknown", min_length=1, description="Shown by `agent_build_info`: the commit of the build."
    )
    prices_file: Path | None = Field(
        None, description="JSON with prices of models, which override the built-in table."
    )
    docs: Docs = Field(Docs.AUTO, description="`/docs`: `auto` (loopback only), `on` or `off`.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins that browsers may call from, separated by commas."
    )
    agents: dict[str, AgentSettings] = Field(
        default_factory=dict,
        description="Limits of each agent: tables `[agents.NAME]`, in the file only.",
    )

    @field_validator("cors_origins", "ready_requires", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("store_url")
    @classmethod
    def _says_where_its_password_ends(cls, url: str) -> str:
        """Otherwise two parsers of URLs disagree on where the password ends and the host starts."""
        _, _, address = url.partition("://")
        before, slash, path = address.partition("/")
        if not url.startswith("sqlite") and (before.count("@") > 1 or "@" in slash + path):
            raise PydanticCustomError(
                "store_url",
                "only one @ may stand in the URL, before the host: write every other one as %40, "
                "and a / of a password as %2F",
            )
        return url

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: options, then variables, then the file."""
        file = TomlConfigSettingsSource(settings_cls)
        if variable("agents") in os.environ:
            raise SettingsError(
                f"{variable('agents')}: only the file may set limits of agents; name the agents to "
                f"serve on the command line or in {AGENTS_VARIABLE}."
            )
        return (init_settings, env_settings, file)

    def served(self, name: str) -> AgentInfo:
        """Return what the settings say of an agent, before it is built."""
        own = self.agents.get(name, AgentSettings())
        max_timeout_s = own.max_timeout_s or self.max_timeout_s
        return AgentInfo(
            name=name,
            kind="",
            description=own.description,
            iteration_limit=own.max_iterations or self.max_iterations,
            early_stopping=own.early_stopping or self.early_stopping,
            timeout_s=min(own.timeout_s or self.timeout_s, max_timeout_s),
            max_timeout_s=max_timeout_s,
            background_timeout_s=self.background_timeout_s,
        )

    @field_serializer("store_url")
    def _masked(self, url: str) -> str:
        return masked(url)

    @property
    def store(self) -> str | None:
        """The URL of the store, or None for a service without a store."""
        if self.store_url == "none":
            return None
        return self.store_url or f"sqlite:///{self.data_dir.absolute() / 'store.sqlite'}"


def masked(url: str) -> str:
    """Return a URL of a store with every password replaced by `***`."""
    if "@" in url and "://" not in url:
        return "***"
    address, mark, query = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url).partition("?")
    parts = query.split("&")
    for place, part in enumerate(parts):
        name = part.partition("=")[0]
        if "password" in unquote(name).lower():
            parts[place] = f"{name}=***"
    return f"{address}{mark}{'&'.join(parts)}"


class SettingsError(Exception):
    """A setting is wrong. The message names it."""


def read(config: Path | None = None, **options: Any) -> Settings:
    """Read the settings. An option that is None is not set.

    Raises SettingsError, which names the option, the variable or the entry of the file to change.
    """
    if os.environ.get("WEB_CONCURRENCY", "1") not in ("", "1"):
        raise SettingsError(
            "WEB_CONCURRENCY asks for several server processes in one command, which would each "
            "have their own metrics and slots: unset it and run several services."
        )
    set_options = {name: value for name, value in options.items() if value is not None}
    if config is not None and not config.is_file():
        raise SettingsError(f"There is no settings file {config}.")

    class FileSettings(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    try:
        return FileSettings(**set_options)
    except ValidationError as wrong:
        raise SettingsError(" ".join(_sentences(wrong, set_options, config))) from wrong
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as wrong:
        raise SettingsError(f"{config} is not TOML: {wrong}.") from wrong


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return variables with the prefix of settings that are no settings: likely misspelt."""
    known = {variable(name) for name in Settings.model_fields} | {CONFIG_VARIABLE, AGENTS_VARIABLE}
    return sorted(n for n in environment if n.startswith(_PREFIX) and n not in known)


def variable(name: str) -> str:
    """Return the name of a setting's environment variable."""
    return f"{_PREFIX}{name.upper()}"


def _sentences(
    wrong: ValidationError, options: Mapping[str, Any], config: Path | None
) -> Iterator[str]:
    for fault in wrong.errors(include_url=False):
        name = str(fault["loc"][0])
        where = ".".join(map(str, fault["loc"]))
        if name in options:
            source = f"--{name.replace('_', '-')}"
        elif variable(name) in os.environ:
            source = variable(name)
        else:
            source = f"{where} in {config}"
        value = "" if name == "store_url" else f" (it is {fault['input']!r})"
        yield f"{source}: {fault['msg']}{value}."
