"""The chart's values: each does something, none may be misspelt, and the operator gets what they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gemmatune_api import accelerators, prices
from gemmatune_api.placement import SecretRef, Toleration
from gemmatune_api.site_defaults import SiteDefaults
from gemmatune_operator import options
from tests.support import chart
from tests.support.api import Object

pytestmark = pytest.mark.usefixtures("helm")

VALUES: Object = {
    "image.repository": "registry.example.com/operator",
    "image.tag": "1.2.3",
    "image.pullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry"}],
    "replicas": 2,
    "serviceAccount.create": False,
    "serviceAccount.name": "somebody",
    "serviceAccount.annotations": {"iam.gke.io/gcp-service-account": "a@b.iam.gserviceaccount.com"},
    "namespaces": ["team-a", "team-b"],
    "trainer.image": "registry.example.com/trainer:1",
    "trainer.xlaImage": "registry.example.com/trainer-xla:1",
    "trainer.kerasImage": "registry.example.com/trainer-keras:1",
    "trainer.imagePullPolicy": "Always",
    "trainer.env": {"HF_ENDPOINT": "https://hub.example.com"},
    "trainer.tolerations": [{"key": "dedicated", "operator": "Exists"}],
    "defaults.outputPrefix": "gs://tuning/runs",
    "defaults.modelCache": "gs://tuning/models",
    "defaults.secretRef": {"name": "hf-token", "key": "token"},
    "defaults.serviceAccountName": "tuner",
    "defaults.priorityClassName": "low",
    "prices": {"nvidia-l4": 0.5},
    "hostMemory": "16Gi",
    "tpuWebhook": False,
    "logFormat": "console",
    "traces.endpoint": "http://collector.monitoring:4318/v1/traces",
    "traces.share": 0.5,
    "extraArgs": ["--workers=32"],
    "resources.requests": {"cpu": "2"},
    "resources.limits": {"memory": "1Gi"},
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "system", "operator": "Exists"}],
    "priorityClassName": "high",
    "podDisruptionBudget.enabled": False,
    "networkPolicy.enabled": False,
    "networkPolicy.apiServerPorts": [8443],
    "networkPolicy.scrapers": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
    "monitoring.labels": {"release": "prometheus"},
    "monitoring.interval": "15s",
    "monitoring.serviceMonitor": False,
    "monitoring.podMonitoring": False,
    "monitoring.alerts": False,
    "monitoring.dashboard": False,
    "allowed.images": ["registry.example.com/"],
    "allowed.buckets": ["tuning"],
    "allowed.accelerators": ["nvidia-l4"],
    "allowed.maxCost": 20,
    "allowed.byNamespace": {"team-a": {"maxCost": 5}},
    "rbac.aggregate": False,
    "crd.install": False,
    "policy.install": False,
}
"""Another value for each one of the chart, by dotted path."""
SLOTS = {"monitoring.alerts": "files/alerts.yaml", "monitoring.dashboard": "files/dashboard.json"}
"""Values that need a file of the chart."""
ON: Object = {
    "replicas": 3,
    "prices": {"nvidia-l4": 0.75},
    "networkPolicy.enabled": True,
    "traces.endpoint": "https://collector.example.com/v1/traces",
    "monitoring.serviceMonitor": True,
    "monitoring.podMonitoring": True,
    **{path: True for path, file in SLOTS.items() if (chart.CHART / file).exists()},
}
"""With these every other value can be seen."""


def test_every_value_changes_something() -> None:
    defaults = set(_paths(yaml.safe_load((chart.CHART / "values.yaml").read_text())))
    assert defaults == VALUES.keys(), "each value has another one here"
    plain = chart.render(ON)
    for path, value in VALUES.items():
        if SLOTS.get(path) is None or path in ON:
            assert chart.render({**ON, path: value}) != plain, f"{path} does nothing"


def _paths(values: Object, above: str = "") -> Iterator[str]:
    """Dotted paths of the values; a table of free keys, and what is below resources.limits, count as one."""
    for name, value in values.items():
        path = f"{above}{name}"
        if isinstance(value, dict) and value and not above.startswith("resources."):
            yield from _paths(value, f"{path}.")
        else:
            yield path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("imag.tag", "1"),
        ("image.tagg", "1"),
        ("trainer.imagePolicy", "Always"),
        ("namespaces", "team-a"),
        ("namespaces", ["Team A"]),
        ("trainer.env", {"A": "1,B=2"}),
        ("trainer.tolerations", [{"keys": "x"}]),
        ("defaults.outputPrefx", "gs://tuning"),
        ("defaults.outputPrefix", "s3://tuning"),
        ("defaults.outputPrefix", "gs://tuning/a b"),
        ("defaults.modelCache", "gs://tuning/a b"),
        ("defaults.modelCache", "hf://org/model"),
        ("defaults.secretRef", "hf-token"),
        ("defaults.secretRef", {"key": "token"}),
        ("defaults.secretRef", {"nam": "hf-token"}),
        ("defaults.serviceAccountName", "Tuner"),
        ("prices", {"nvidia-l4": "cheap"}),
        ("prices", {"nvidia-l4": {"onDemand": 1, "spott": 1}}),
        ("resources.request", {"cpu": "1"}),
        ("crd.install", "false"),
        ("logFormat", "text"),
        ("traces.endpoint", "collector:4318"),
        ("traces.share", 2),
        ("hostMemory", "16 GB"),
        ("extraArgs", ["workers=32"]),
        ("extraArgs", ["--port=9090"]),
        ("extraArgs", ["--leader-elect=true"]),
        ("tolerations", [{"keys": "x"}]),
        ("serviceAccount.annotation", {"a": "b"}),
        ("networkPolicy.apiServerPorts", ["https"]),
        ("monitoring.interval", "often"),
        ("monitoring.serviceMonitors", True),
        ("allowed.bucket", ["tuning"]),
        ("allowed.images", ["' + 'x"]),
        ("allowed.images", ["https://registry.example.com/"]),
        ("allowed.buckets", ["gs://tuning"]),
        ("allowed.buckets", ["tuning/"]),
        ("allowed.accelerators", ["nvidia-l44"]),
        ("allowed.byNamespace", {"team-a": {"buckets": ["gs://tuning"]}}),
        ("allowed.byNamespace", {"team-a": {"accelerators": ["nvidia-l44"]}}),
        ("prices", {"nvidia-l44": 1}),
    ],
)
def test_a_misspelt_value_is_refused(path: str, value: Any) -> None:
    done = chart.helm("template", "x", str(chart.CHART), *chart.values_flags({path: value}), check=False)
    assert done.returncode != 0
    assert path.split(".")[-1] in done.stderr or path.split(".")[0] in done.stderr, done.stderr


def test_accelerators_are_those_of_the_catalog() -> None:
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    known = ["cpu", *(found.type for found in (*accelerators.gpus(), *accelerators.tpus()))]
    assert schema["$defs"]["accelerators"]["items"]["enum"] == known
    assert list(schema["properties"]["prices"]["properties"]) == known
    chart.render({"allowed.accelerators": known, "prices": dict.fromkeys(known, 1)})


def test_every_option_of_the_operator_has_one_value() -> None:
    """Those that the chart does not set itself go by extraArgs, and no others: two would contradict each other."""
    of_the_chart = {"bind", "port", "lease-namespace"}  # the pod's own: probes and Services know the port
    of_the_chart |= {
        argument.partition("=")[0].removeprefix("--")
        for document in (*chart.render(VALUES), *chart.render({}))
        if document["kind"] == "Deployment"
        for argument in document["spec"]["template"]["spec"]["containers"][0]["args"]
    }
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    pattern = re.compile(schema["properties"]["extraArgs"]["items"]["pattern"])
    by_extra_args = {name for name in option_names() if pattern.match(f"--{name}=1")}
    assert by_extra_args == set(option_names()) - (of_the_chart - {"workers"})


def option_names() -> list[str]:
    """The operator's options, by its own help."""
    command = [sys.executable, "-m", "gemmatune_operator", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^  --([a-z-]+)", shown, re.MULTILINE)


def test_every_value_is_documented() -> None:
    """A comment above each, or above those inside it."""
    lines = (chart.CHART / "values.yaml").read_text().splitlines()
    for above, line, below in zip(lines, lines[1:], [*lines[2:], ""], strict=False):
        if line and not line.startswith((" ", "#")):
            assert above.startswith("#") or below.strip().startswith("#"), line


L4, H100 = "nvidia-l4", "nvidia-h100-80gb"


@pytest.mark.parametrize(
    ("prices", "allowed", "refused"),
    [
        ({}, {"maxCost": 20}, "allowed"),
        ({}, {"byNamespace": {"a": {"maxCost": 5}}}, "allowed.byNamespace.a"),
        ({L4: 1}, {"maxCost": 20, "accelerators": [H100]}, "allowed"),
        ({L4: 1}, {"maxCost": 20, "byNamespace": {"a": {"accelerators": [H100]}}}, "allowed.byNamespace.a"),
        ({L4: 1}, {"accelerators": [H100], "byNamespace": {"a": {"maxCost": 5}}}, "allowed.byNamespace.a"),
        ({L4: 1}, {"maxCost": 20}, ""),
        ({"cpu": 1}, {"accelerators": [L4], "byNamespace": {"a": {"maxCost": 5}}}, ""),
        ({L4: 1}, {"accelerators": [L4, H100], "byNamespace": {"a": {"maxCost": 5}}}, ""),
        ({L4: 1}, {"accelerators": [L4], "byNamespace": {"a": {"maxCost": 5, "accelerators": [L4, H100]}}}, ""),
        ({}, {"accelerators": [L4], "byNamespace": {"a": {"buckets": ["a"]}}}, ""),
    ],
)
def test_a_budget_that_lets_no_run_begin_is_refused(prices: Object, allowed: Object, refused: str) -> None:
    """The operator refuses a bound that it cannot keep, the policy a run without one."""
    flags = chart.values_flags({"prices": prices, "allowed": allowed})
    done = chart.helm("template", "gemmatune", str(chart.CHART), *flags, check=False)
    assert (done.returncode != 0) == bool(refused), done.stderr
    if refused:
        assert f"{refused}.maxCost lets no run begin: prices has no accelerator that runs may name" in done.stderr


def test_values_of_a_former_chart() -> None:
    """`helm upgrade --reuse-values` brings what that had: not the newer blocks, whose defaults then hold."""
    assert chart.render({"rbac": None, "traces": None}) == chart.render()


def test_the_operator_understands_its_arguments() -> None:
    taken = ("trainer.", "extraArgs", "namespaces", "logFormat", "traces", "hostMemory", "replicas", "tpuWebhook")
    documents = chart.render({path: VALUES[path] for path in VALUES if path.startswith(taken)})
    (container,) = chart.one(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python", "-m", "gemmatune_operator"]
    found = options.read(container["args"], {})
    assert found.namespaces == ("team-a", "team-b")
    assert found.workers == 32
    assert found.log_format == "console"
    assert (found.traces_endpoint, found.traces_share) == ("http://collector.monitoring:4318/v1/traces", 0.5)
    assert found.settings.image == "registry.example.com/trainer:1"
    assert found.settings.image_pull_policy == "Always"
    assert found.settings.trainer_env == {"HF_ENDPOINT": "https://hub.example.com"}
    assert found.settings.tolerations == (Toleration(key="dedicated", operator="Exists"),)
    assert found.settings.host_memory == 16 * 2**30
    assert found.settings.tpu_webhook is False
    assert found.election is not None
    assert found.election.name == chart.OPERATOR
    (port,) = container["ports"]
    assert port["containerPort"] == options.read([], {}).port


def test_prices_reach_the_operator(tmp_path: Path) -> None:
    table = {"nvidia-l4": 0.75, "tpu-v5-lite-podslice": dict.fromkeys(prices.MODES, 1.25)}
    documents = chart.render({"prices": table})
    file = tmp_path / "prices.yaml"
    file.write_text(chart.one(documents, "ConfigMap")["data"]["prices.yaml"])
    pod = chart.one(documents, "Deployment")["spec"]["template"]["spec"]
    assert "--prices=/etc/gemmatune/prices.yaml" in pod["containers"][0]["args"]
    assert pod["volumes"][1]["configMap"]["name"] == chart.one(documents, "ConfigMap")["metadata"]["name"]
    assert options.read([f"--prices={file}"], {}).settings.prices == table


def test_defaults_reach_the_operator(tmp_path: Path) -> None:
    given = {path: value for path, value in VALUES.items() if path.startswith("defaults.")}
    documents = chart.render(given)
    config_map = chart.one(documents, "ConfigMap")
    file = tmp_path / "defaults.yaml"
    file.write_text(config_map["data"]["defaults.yaml"])
    pod = chart.one(documents, "Deployment")["spec"]["template"]["spec"]
    assert "--defaults=/etc/gemmatune-defaults/defaults.yaml" in pod["containers"][0]["args"]
    assert pod["containers"][0]["volumeMounts"][1]["mountPath"] == "/etc/gemmatune-defaults"
    assert pod["volumes"][1]["configMap"]["name"] == config_map["metadata"]["name"]
    read = options.read([f"--defaults={file}"], {}).settings.defaults
    assert read == SiteDefaults(
        output_prefix="gs://tuning/runs",
        secret_ref=SecretRef(name="hf-token", key="token"),
        service_account_name="tuner",
        priority_class_name="low",
        model_cache="gs://tuning/models",
    )
    offered = {field.alias for field in SiteDefaults.model_fields.values()}
    assert offered == yaml.safe_load((chart.CHART / "values.yaml").read_text())["defaults"].keys()
