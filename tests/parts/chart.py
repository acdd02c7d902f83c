"""Renders the chart as helm does, and reads what comes out."""

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".tools/bin"
CHART = ROOT / "deploy/helm/watchkeeper"
VALUES = ("default", "postgres", "monitoring", "everything")

Resource = dict[str, Any]

_TO_JSON = (
    "import json, sys, yaml; print(json.dumps([d for d in yaml.safe_load_all(sys.stdin) if d]))"
)


def tool(
    name: str, *arguments: str, given: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run one of the tools that `make parts` installs."""
    if not (TOOLS / name).exists():
        raise RuntimeError(f"{name} is missing: run make parts.")
    return subprocess.run(
        [str(TOOLS / name), *arguments], input=given, capture_output=True, text=True, timeout=300
    )


def documents(text: str) -> list[Any]:
    """The documents of a YAML text."""
    completed = tool("python", "-c", _TO_JSON, given=text)
    assert completed.returncode == 0, completed.stderr
    read: list[Any] = json.loads(completed.stdout)
    return read


def values(name: str) -> str:
    """The file of one of the value sets."""
    return str(CHART / f"ci/{name}-values.yaml")


@cache
def text(name: str, *settings: str) -> str:
    """What helm renders of a value set, with some values set otherwise."""
    completed = _template(name, *settings)
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


@cache
def _rendered(name: str, *settings: str) -> list[Resource]:
    return documents(text(name, *settings))


def resources(name: str, kind: str, *settings: str) -> dict[str, Resource]:
    """The resources of a kind by name, without what all names begin with."""
    return {
        r["metadata"]["name"].removeprefix("wk-watchkeeper").removeprefix("-"): r
        for r in _rendered(name, *settings)
        if r["kind"] == kind
    }


def pod(name: str, component: str, *settings: str) -> Resource:
    """The specification of the pods of a Deployment."""
    found = resources(name, "Deployment", *settings)[component]
    specification: Resource = found["spec"]["template"]["spec"]
    return specification


def container(name: str, component: str, *settings: str) -> Resource:
    """The one container of the pods of a Deployment."""
    [only] = pod(name, component, *settings)["containers"]
    found: Resource = only
    return found


def refusal(name: str, *settings: str) -> str:
    """Helm's refusal to render."""
    completed = _template(name, *settings)
    assert completed.returncode != 0, "helm rendered it"
    return completed.stderr


def _template(name: str, *settings: str) -> "subprocess.CompletedProcess[str]":
    sets = [part for setting in settings for part in ("--set-json", setting)]
    return tool("helm", "template", "wk", str(CHART), "-n", "agents", "-f", values(name), *sets)
