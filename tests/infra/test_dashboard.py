"""The Grafana dashboard asks for nothing that is not exported, and every number that we export is on it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import ray

from tests.infra.render import INFRA, ROOT, of_kind, ray_pods, render

DASHBOARD = INFRA / "dashboards" / "poisoncam.json"
RAY = Path(ray.__file__).parent / "dashboard" / "modules"


def panels() -> list[dict]:
    return json.loads(DASHBOARD.read_text())["panels"]


def queried() -> set[str]:
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    return {name for text in expressions for name in re.findall(r"\bray_[a-z_]+(?=\{)", text)}


def exported_by_ray() -> set[str]:
    """From the source of what exports them, and from the panels that Ray itself ships."""
    agent = (RAY / "reporter" / "reporter_agent.py").read_text()
    names = {f"ray_{name}" for name in re.findall(r'Gauge\(\s*"([a-z_]+)"', agent)}
    for file in (RAY / "metrics" / "dashboards").glob("*_panels.py"):
        names |= set(re.findall(r"\bray_[a-z_]+(?=\{)", file.read_text()))
    return names


def exported_by_us() -> set[str]:
    source = "\n".join(file.read_text() for file in (ROOT / "poisoncam_ray").rglob("*.py"))
    counters = re.findall(r'\bmetrics\.count\(\s*"(\w+)"', source)
    gauges = re.findall(r'\bmetrics\.gauge\(\s*"(\w+)"', source)
    return {f"ray_poisoncam_{name}_total" for name in counters} | {f"ray_poisoncam_{name}" for name in gauges}


def test_every_metric_is_exported():
    assert queried() <= exported_by_ray() | exported_by_us()


def test_every_metric_of_ours_is_shown():
    assert exported_by_us() <= queried()


def test_panels_are_whole():
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for panel in panels():
        assert panel["title"] and panel["targets"] and panel["datasource"]["type"] == "prometheus"
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24


def test_parentheses_close():
    for panel in panels():
        for target in panel["targets"]:
            for opening, closing in ("()", "[]", "{}"):
                assert target["expr"].count(opening) == target["expr"].count(closing), target["expr"]


def test_variables_exist():
    dashboard = json.loads(DASHBOARD.read_text())
    known = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"])))
    assert used - {"__rate_interval", "__range"} == known


def test_prometheus_finds_every_ray_pod():
    manifests = render("overlays/gpu-spot")
    (monitor,) = of_kind(manifests, "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    # The operator's own label, on every Ray pod.
    wanted = {
        k: v for k, v in monitor["spec"]["selector"]["matchLabels"].items() if not k.startswith("ray.io/")
    }
    for pod in ray_pods(manifests):
        assert wanted.items() <= pod.metadata["labels"].items()
        ports = {port["name"]: port["containerPort"] for port in pod.containers[0]["ports"]}
        assert ports[endpoint["port"]] == 8080
    policy = next(p for p in of_kind(manifests, "NetworkPolicy") if p["metadata"]["name"] == "poisoncam")
    assert any(port["port"] == 8080 for rule in policy["spec"]["ingress"] for port in rule.get("ports", []))
    label = {r["targetLabel"] for r in endpoint["relabelings"]}
    assert "ray_io_cluster" in label and "ray_io_cluster" in DASHBOARD.read_text()


def test_the_dashboard_travels_with_the_cluster():
    (settings, carried) = sorted(
        of_kind(render("overlays/gpu-spot"), "ConfigMap"),
        key=lambda m: "grafana_dashboard" in m["metadata"].get("labels", {}),
    )
    assert "poisoncam.json" not in settings["data"]
    assert json.loads(carried["data"]["poisoncam.json"]) == json.loads(DASHBOARD.read_text())
