"""What Helm makes of the chart for several sets of values: `python -m tests.chart.matrix` writes the expected files."""

from __future__ import annotations

from pathlib import Path

from tests.support import chart
from tests.support.api import Object

FOLDER = Path(__file__).parent / "rendered"
CASES: dict[str, Object] = {
    "default": {},
    "one-team": {
        "namespaces": ["team-a"],
        "trainer.image": "registry.example.com/trainer-torch:0.1.0",
        "trainer.tolerations": [{"key": "dedicated", "operator": "Equal", "value": "tuning", "effect": "NoSchedule"}],
        "defaults": {
            "outputPrefix": "gs://tuning/runs",
            "secretRef": {"name": "hf-token"},
            "modelCache": "gs://tuning/models",
        },
        "prices": {"nvidia-l4": {"onDemand": 0.75, "spot": 0.3}, "tpu-v5-lite-podslice": 1.2},
        "allowed.images": ["registry.example.com/"],
        "allowed.buckets": ["tuning", "models"],
        "allowed.accelerators": ["nvidia-l4", "tpu-v5-lite-podslice"],
        "allowed.byNamespace": {"team-a": {"maxCost": 50}},
    },
    "available": {
        "replicas": 2,
        "image.repository": "registry.example.com/operator",
        "image.tag": "1.2.3",
        "imagePullSecrets": [{"name": "registry"}],
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"cloud.google.com/gke-nodepool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists", "effect": "NoSchedule"}],
        "traces.endpoint": "http://collector.monitoring:4318/v1/traces",
        "traces.share": 0.1,
        "networkPolicy.enabled": True,
        "networkPolicy.scrapers": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "monitoring.serviceMonitor": True,
        "monitoring.podMonitoring": True,
        "monitoring.labels": {"release": "prometheus"},
    },
    "given-account": {
        "serviceAccount.create": False,
        "serviceAccount.name": "tuning",
        "crd.install": False,
        "policy.install": False,
        "trainer.env": {"HF_ENDPOINT": "https://hub.example.com"},
        "defaults": {"serviceAccountName": "tuner", "priorityClassName": "low"},
        "hostMemory": "16Gi",
        "tpuWebhook": False,
        "logFormat": "console",
        "extraArgs": ["--workers=32"],
    },
}


def rendered(case: str) -> str:
    """Helm's text for a case, without the definition: that is a file of the tree already."""
    values = {"crd.install": False, **CASES[case]}
    flags = chart.values_flags(values)
    return chart.helm("template", "gemmatune", str(chart.CHART), "--namespace", chart.NAMESPACE, *flags).stdout


def file_of(case: str) -> Path:
    return FOLDER / f"{case}.yaml"


def main() -> None:
    """Writes every case's file and names those that changed; the diff is then read, line by line."""
    FOLDER.mkdir(exist_ok=True)
    for case in CASES:
        file, text = file_of(case), rendered(case)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")
            print(f"changed: {file.name}")


if __name__ == "__main__":
    main()
