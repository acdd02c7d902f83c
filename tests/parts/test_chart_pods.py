"""The pods of the chart are restricted, stop gracefully, and start the right commands."""

import tomllib
from pathlib import Path

import pytest

from app import __main__ as command_line
from app import settings as configuration
from tests.parts import chart
from tests.parts.chart import ROOT

every_pod = pytest.mark.parametrize(
    ("name", "component"),
    [
        ("default", "api"),
        ("postgres", "api"),
        ("postgres", "worker"),
        ("monitoring", "api"),
        ("everything", "api"),
        ("everything", "worker"),
    ],
)


@every_pod
def test_pods_are_restricted(name: str, component: str) -> None:
    """Pods meet the restricted standard, with a root that nobody can write to and no token."""
    pod, container = chart.pod(name, component), chart.container(name, component)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]


@every_pod
def test_probes_have_their_own_paths(name: str, component: str) -> None:
    """Each probe has its own path, on a port that the container has."""
    container = chart.container(name, component)
    probes = {
        kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")
    }
    assert {kind: get["path"] for kind, get in probes.items()} == {
        "startup": "/health/startup",
        "liveness": "/health/live",
        "readiness": "/health/ready",
    }
    ports = {port["name"] for port in container["ports"]}
    assert {get["port"] for get in probes.values()} <= ports


@every_pod
def test_stop_lets_runs_finish(name: str, component: str) -> None:
    """A pod is killed only after its longest run could have ended."""
    pod, container = chart.pod(name, component), chart.container(name, component)
    variables = {v["name"]: v.get("value") for v in container["env"]}
    waits = (
        container["lifecycle"]["preStop"]["sleep"]["seconds"],
        float(variables["WATCHKEEPER_DRAIN_NOTICE_S"]),
        float(variables["WATCHKEEPER_DRAIN_S"]),
    )
    assert pod["terminationGracePeriodSeconds"] >= sum(waits) + 10
    assert float(variables["WATCHKEEPER_DRAIN_S"]) >= float(variables["WATCHKEEPER_MAX_TIMEOUT_S"])


@every_pod
def test_variables_are_settings(name: str, component: str) -> None:
    """Every variable of ours is a setting with a valid value."""
    container = chart.container(name, component)
    ours = {v["name"]: v for v in container["env"] if v["name"].startswith("WATCHKEEPER_")}
    assert configuration.unknown_variables(ours) == []
    plain = {v["name"]: v["value"] for v in ours.values() if "value" in v}
    with pytest.MonkeyPatch.context() as patch:
        for key, value in plain.items():
            patch.setenv(key, value)
        read = configuration.read()
    assert read.host == "0.0.0.0"
    if name == "everything":
        assert (read.max_body_bytes, read.drain_s) == (4_000_000, 240.5)


@every_pod
def test_kubernetes_adds_no_variables(name: str, component: str) -> None:
    """Kubernetes does not add WATCHKEEPER_PORT=tcp://… for a Service that has our name."""
    assert chart.pod(name, component)["enableServiceLinks"] is False


@every_pod
def test_commands_are_valid(name: str, component: str) -> None:
    """The arguments are a valid command line."""
    program, *arguments = chart.container(name, component)["args"]
    assert program == "watchkeeper"
    options = command_line._parser().parse_args(arguments)
    assert options.agents == chart_agents(name)
    assert (arguments[0] == "worker") == (component == "worker")
    has_workers = "worker" in chart.resources(name, "Deployment")
    assert ("--no-background" in arguments) == (has_workers and component == "api")


def chart_agents(name: str) -> list[str]:
    [read] = chart.documents(Path(chart.values(name)).read_text()) or [{}]
    agents: list[str] = read.get("agents", {}).get("serve", [])
    return agents


@pytest.mark.parametrize("name", ["postgres", "everything"])
def test_limits_are_a_settings_file(name: str, tmp_path: Path) -> None:
    """Limits of agents become a file that the service reads."""
    file = tmp_path / "settings.toml"
    file.write_text(chart.resources(name, "ConfigMap")["settings"]["data"]["settings.toml"])
    agents = configuration.read(file).agents
    if name == "postgres":
        assert (agents["orders"].max_iterations, agents["orders"].timeout_s) == (5, 20)
    else:
        assert agents["orders"].description == 'Says where "orders" are.'


def test_image_is_the_version() -> None:
    """Without a tag the image is of the project's own version; a digest wins."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert chart.container("default", "api")["image"] == f"watchkeeper:{version}"
    assert "@sha256:" in chart.container("everything", "api", 'image.tag="9"')["image"]


def test_volume_survives_the_release() -> None:
    """Without PostgreSQL the store is on a volume that stays, for one pod at a time."""
    claim = chart.resources("default", "PersistentVolumeClaim")["data"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert chart.resources("default", "Deployment")["api"]["spec"]["strategy"]["type"] == "Recreate"
    assert chart.resources("postgres", "PersistentVolumeClaim") == {}
