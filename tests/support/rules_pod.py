"""The rules for what a spec adds to pods: specs that keep and break each."""

from __future__ import annotations

from typing import Any

Changes = dict[str, Any]


def pod(**fields: Any) -> Changes:
    return {"spec.pod": fields}


GOOD: dict[str, Changes] = {
    "larger GPU machines": pod(nodeSelector={"cloud.google.com/gke-accelerator-count": "8"}),
    "labels": pod(labels={"team": "nlp", "example.com/x": ""}, annotations={"note": "any text: {}"}),
    "tolerations": pod(tolerations=[{"operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoSchedule"}]),
    "toleration for a time": pod(
        tolerations=[{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]
    ),
    "resources": pod(resources={"requests": {"cpu": "500m", "memory": "1.5Gi"}, "limits": {"cpu": 1, "memory": "2e9"}}),
    "a request as large as its limit": pod(resources={"requests": {"memory": "2Gi"}, "limits": {"memory": "2048Mi"}}),
    "variables": pod(
        env=[
            {"name": "A"},
            {"name": "B", "value": ""},
            {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}},
        ]
    ),
}

BAD: dict[str, tuple[Changes, str, str, str]] = {
    # rule: (changes, path, message, remedy)
    "labels: ours": (
        pod(labels={"gemmatune.dev/x": "a"}),
        'spec.pod.labels["gemmatune.dev/x"]',
        "the operator's",
        "of your own",
    ),
    "labels: our manager": (
        pod(labels={"app.kubernetes.io/managed-by": "me"}),
        'spec.pod.labels["app.kubernetes.io/managed-by"]',
        "the operator's",
        "of your own",
    ),
    "labels: our annotation": (
        pod(annotations={"gemmatune.dev/retry": "a"}),
        'spec.pod.annotations["gemmatune.dev/retry"]',
        "the operator's",
        "of your own",
    ),
    "labels: key": (pod(labels={"a b": "c"}), 'spec.pod.labels["a b"]', "a key has 1 to 63 letters", "Correct it"),
    "selectors: of the accelerator": (
        pod(nodeSelector={"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"}),
        'spec.pod.nodeSelector["cloud.google.com/gke-accelerator"]',
        "follows from spec.accelerator",
        "Remove it, and set spec.accelerator",
    ),
    "selectors: chips of a TPU's node": (
        {
            **pod(nodeSelector={"cloud.google.com/gke-accelerator-count": "8"}),
            "spec.accelerator": {"tpu": {"type": "tpu-v6e-slice", "topology": "4x4"}},
        },
        'spec.pod.nodeSelector["cloud.google.com/gke-accelerator-count"]',
        "follows from spec.accelerator.tpu.chipsPerNode",
        "Remove it",
    ),
    "selectors: spot beside another mode": (
        pod(nodeSelector={"cloud.google.com/gke-spot": "true"}),
        'spec.pod.nodeSelector["cloud.google.com/gke-spot"]',
        "follows from spec.provisioning.mode",
        "Remove it",
    ),
    "labels: prefix": (pod(labels={"A_/b": "c"}), 'spec.pod.labels["A_/b"]', "a domain name", "Correct it"),
    "labels: value": (pod(labels={"a": "b c"}), 'spec.pod.labels["a"]', "a label value has at most 63", "Correct it"),
    "labels: node selector": (
        pod(nodeSelector={"a": "-"}),
        'spec.pod.nodeSelector["a"]',
        "a label value",
        "Correct it",
    ),
    "labels: annotations too long": (
        pod(annotations={f"a{n}": "x" * 8192 for n in range(33)}),
        "spec.pod.annotations",
        "must have at most 262144 bytes",
        "Shorten",
    ),
    "tolerations: Equal without key": (
        pod(tolerations=[{"value": "a"}]),
        "spec.pod.tolerations[0]",
        "without a key needs operator Exists",
        "Set operator to Exists",
    ),
    "tolerations: Exists with value": (
        pod(tolerations=[{"key": "a", "operator": "Exists", "value": "b"}]),
        "spec.pod.tolerations[0].value",
        "has no meaning with operator Exists",
        "Remove it",
    ),
    "tolerations: seconds": (
        pod(tolerations=[{"key": "a", "operator": "Exists", "tolerationSeconds": 5}]),
        "spec.pod.tolerations[0].tolerationSeconds",
        "without effect NoExecute",
        "Remove it",
    ),
    "tolerations: key": (
        pod(tolerations=[{"key": "a b", "operator": "Exists"}]),
        "spec.pod.tolerations[0]",
        "a key has 1 to 63",
        "Correct it",
    ),
    "resources: quantity": (
        pod(resources={"limits": {"memory": "16GB"}}),
        'spec.pod.resources.limits["memory"]',
        "is no quantity",
        "16Gi",
    ),
    "resources: negative": (
        pod(resources={"requests": {"cpu": -1}}),
        'spec.pod.resources.requests["cpu"]',
        "is no quantity",
        "Write such as 4",
    ),
    "resources: device": (
        pod(resources={"limits": {"nvidia.com/gpu": 2}}),
        'spec.pod.resources.limits["nvidia.com/gpu"]',
        "follows from spec.accelerator",
        "Remove it",
    ),
    "resources: name": (
        pod(resources={"limits": {"a b": 2}}),
        'spec.pod.resources.limits["a b"]',
        "a key has 1 to 63",
        "Correct the resource's name",
    ),
    "resources: above its limit": (
        pod(resources={"requests": {"memory": "2Gi"}, "limits": {"memory": "2000Mi"}}),
        'spec.pod.resources.requests["memory"]',
        "is more than the limit 2000Mi",
        "Lower it",
    ),
    "environment: reserved": (
        pod(env=[{"name": "GEMMATUNE_RUN"}]),
        "spec.pod.env[0].name",
        "are reserved",
        "another name",
    ),
    "environment: twice": (
        pod(env=[{"name": "A"}, {"name": "A"}]),
        "spec.pod.env[1].name",
        "repeats spec.pod.env[0]",
        "Remove",
    ),
    "environment: two sources": (
        pod(env=[{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
        "spec.pod.env[0]",
        "at most one of value and valueFrom",
        "Remove one",
    ),
    "environment: empty source": (
        pod(env=[{"name": "A", "valueFrom": {}}]),
        "spec.pod.env[0].valueFrom",
        "exactly one of secretKeyRef and configMapKeyRef",
        "Set one",
    ),
}
