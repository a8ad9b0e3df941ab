"""`gft doctor` on the real control plane: as a person with a Role, with and without what a run needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gemmatune_api import names
from tests.support.controlplane import ControlPlane
from tests.support.fakegcs import FakeGcs
from tests.support.gft import Done, gft
from tests.support.nodeagent import NodeAgent
from tests.support.standin import write_small_model

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

RULES = [
    {"apiGroups": [names.GROUP], "resources": [names.PLURAL], "verbs": ["*"]},
    {"apiGroups": [""], "resources": ["serviceaccounts", "secrets", "resourcequotas"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "get", "delete"]},
]


def person(crd: ControlPlane, namespace: str, rules: list[dict[str, Any]]) -> Path:
    """The kubeconfig of a person with these rights in the namespace alone."""
    user = f"person-{namespace}"
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "person", "namespace": namespace},
        "rules": rules,
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "person", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "person"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    }
    for document in (role, binding):
        crd.kubectl("apply", "-f", "-", input=document)
    return crd.kubeconfig_for(user, namespace=namespace)


def findings(done: Done) -> dict[str, str]:
    """The verdict by subject; of several the worst that is no success."""
    found: dict[str, str] = {}
    for line in done.out.splitlines():
        word, _, rest = line.partition(" ")
        if word in ("ok", "warning", "problem", "unknown"):
            subject = rest.split()[0]
            if found.get(subject, "ok") == "ok":
                found[subject] = word
    return found


def deployment(ready: int) -> dict[str, Any]:
    container = {"name": "operator", "image": "x", "args": ["--trainer-image=registry.example/trainer:1"]}
    labels = {"app.kubernetes.io/name": "gemmatune"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "gemmatune-operator", "labels": labels},
        "spec": {
            "replicas": ready,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


@pytest.mark.timeout(300)
def test_a_namespace_from_nothing_to_a_run(
    crd: ControlPlane, namespace: str, tmp_path: Path, fake_gcs: FakeGcs, bucket: str
) -> None:
    write_small_model(tmp_path / "gemma-3-270m", "3")
    (tmp_path / "rows.jsonl").write_text('{"quote": "Be yourself.", "author": "Oscar Wilde"}\n')
    spec = {
        "model": {"uri": (tmp_path / "gemma-3-270m").as_uri()},
        "dataset": {"uri": (tmp_path / "rows.jsonl").as_uri(), "text": {"template": "{quote}"}},
        "output": {"uri": f"gs://{bucket}/quotes"},
        "tracking": {"wandb": {"project": "quotes", "secretRef": {"name": "wandb"}}},
        "accelerator": {"cpu": {}},
        "pod": {"image": "trainer"},
    }
    run = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "quotes"}, "spec": spec}
    file = tmp_path / "quotes.yaml"
    file.write_text(yaml.safe_dump(run))
    kubeconfig = person(crd, namespace, RULES)

    def doctor(*more: str) -> Done:
        return gft(kubeconfig, "doctor", str(file), "--model", "gemma-3-270m", *more, seconds=200)

    bare = doctor("--no-pod")
    assert bare.code == 1
    assert findings(bare) == {
        "resource": "ok",
        "rights": "ok",
        "operator": "unknown",
        "ServiceAccount": "warning",
        "Secret": "problem",
        "nodes": "unknown",
        "quota": "ok",
    }
    assert f"kubectl create secret generic wandb -n {namespace} --from-literal=WANDB_API_KEY=..." in bare.out
    assert "access is not checked" in doctor().out

    crd.kubectl("create", "secret", "generic", "wandb", "-n", namespace, "--from-literal=OTHER=1")
    crd.kubectl("create", "serviceaccount", names.TRAINER_SERVICE_ACCOUNT, "-n", namespace)
    crd.kubectl("create", "quota", "small", "-n", namespace, "--hard=requests.memory=1Mi")
    wrong = doctor("--no-pod")
    assert "wandb has no key WANDB_API_KEY" in wrong.out
    assert "small has no room: requests.memory (0 of 1Mi used" in wrong.out
    crd.kubectl("delete", "secret/wandb", "quota/small", "-n", namespace)
    crd.kubectl("create", "secret", "generic", "wandb", "-n", namespace, "--from-literal=WANDB_API_KEY=planted")

    environment = {names.ENV_GCS_ENDPOINT: fake_gcs.endpoint}
    with NodeAgent(crd, tmp_path / "node", environment=environment):
        good = doctor("--patience", "120")
        assert (good.code, findings(good)["access"]) == (0, "ok"), good.out
        for line in (f"gs://{bucket}/quotes can be written", "gemma-3-270m can be read", "rows.jsonl can be read"):
            assert line in good.out
        assert fake_gcs.names(bucket) == [], "nothing is left behind"
        spec["output"] = {"uri": "gs://no-such-bucket/quotes"}
        file.write_text(yaml.safe_dump(run))
        refused = doctor("--patience", "120")
        assert (refused.code, findings(refused)["access"]) == (1, "problem"), refused.out
        assert "no-such-bucket" in refused.out
        assert "rows.jsonl can be read" in refused.out, "one failure does not hide the rest"
    assert crd.api.get(f"/api/v1/namespaces/{namespace}/pods")["items"] == [], "no pod is left behind"


def test_what_an_administrator_sees(crd: ControlPlane, namespace: str, tmp_path: Path) -> None:
    crd.kubectl("apply", "-n", namespace, "-f", "-", input=deployment(0))
    file = tmp_path / "quotes.json"
    resource = yaml.safe_load((Path(__file__).parents[2] / "examples/minimal.yaml").read_text())
    file.write_text(json.dumps(resource))
    gpu = {"nvidia.com/gpu": "1", "cpu": "2", "memory": "4Gi"}
    label = {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    doctor = ("doctor", str(file), "-n", namespace, "--no-pod")
    none = gft(crd.kubeconfig, *doctor)
    assert findings(none)["operator"] == "problem"
    assert findings(none)["nodes"] == "warning"
    assert "scales from zero" in none.out
    with NodeAgent(crd, tmp_path / "small", "small-gpu", resources=gpu, labels=label):
        small = gft(crd.kubeconfig, *doctor)
        assert findings(small)["nodes"] == "problem"
        assert "small-gpu lacks cpu (has 2, asked" in small.out
    with NodeAgent(crd, tmp_path / "large", "large-gpu", resources={"nvidia.com/gpu": "1"}, labels=label):
        assert findings(gft(crd.kubeconfig, *doctor))["nodes"] == "ok"
        general = gft(crd.kubeconfig, "doctor", "-n", namespace)
        assert "nvidia-l4" in general.out


def test_a_person_without_rights_is_told_what_to_ask_for(crd: ControlPlane, namespace: str) -> None:
    done = gft(person(crd, namespace, []), "doctor")
    assert done.code == 1
    assert f"you may not create, get, watch, patch, delete {names.PLURAL} in namespace {namespace}" in done.out
    found = findings(done)
    assert {found[subject] for subject in ("operator", "ServiceAccount", "nodes", "quota")} == {"unknown"}
