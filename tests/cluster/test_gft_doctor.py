"""`gft doctor` on the real control plane: as a person with a Role, with and without what a run needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from gemmatune_api import names
from tests.support import chart
from tests.support.controlplane import ControlPlane
from tests.support.fakegcs import FakeGcs
from tests.support.gft import Done, gft
from tests.support.nodeagent import NodeAgent
from tests.support.resources import resource
from tests.support.standin import write_small_model
from tests.support.wait import wait_for

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


@pytest.fixture
def installed(crd: ControlPlane) -> Iterator[Callable[..., None]]:
    """Installs the chart's Deployment and ConfigMaps, with values by their dotted path; no pod of it ever runs."""
    made: list[dict[str, Any]] = []

    def install(**values: Any) -> None:
        for document in chart.render({name.replace("__", "."): value for name, value in values.items()}):
            if document["kind"] in ("Deployment", "ConfigMap"):
                if document["kind"] == "Deployment":
                    document["spec"]["replicas"] = 0  # a node of the test would run it
                crd.kubectl("apply", "-f", "-", input=document)
                made.append(document)

    yield install
    for document in {item["kind"]: item for item in made}.values():
        crd.kubectl("delete", document["kind"], document["metadata"]["name"], "-n", document["metadata"]["namespace"])


@pytest.mark.timeout(300)
def test_a_namespace_from_nothing_to_a_run(
    crd: ControlPlane, namespace: str, tmp_path: Path, fake_gcs: FakeGcs, bucket: str
) -> None:
    write_small_model(tmp_path / "gemma-3-270m", "3")
    for name in ("rows", "held-out"):
        (tmp_path / f"{name}.jsonl").write_text('{"quote": "Be yourself.", "author": "Oscar Wilde"}\n')
    spec = {
        "model": {"uri": (tmp_path / "gemma-3-270m").as_uri()},
        "dataset": {
            "uri": (tmp_path / "rows.jsonl").as_uri(),
            "evalUri": (tmp_path / "held-out.jsonl").as_uri(),
            "text": {"template": "{quote}"},
        },
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
        "defaults": "unknown",
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
        for line in (
            f"gs://{bucket}/quotes can be written",
            "gemma-3-270m can be read",
            "rows.jsonl can be read\n",
            "held-out.jsonl can be read for evaluation",
        ):
            assert line in good.out
        assert fake_gcs.names(bucket) == [], "nothing is left behind"
        spec["output"] = {"uri": "gs://no-such-bucket/quotes"}
        spec["dataset"]["evalUri"] = "gs://no-such-bucket-either/held-out.jsonl"
        file.write_text(yaml.safe_dump(run))
        refused = doctor("--patience", "120")
        assert (refused.code, findings(refused)["access"]) == (1, "problem"), refused.out
        assert "gs://no-such-bucket/" in refused.out
        assert "gs://no-such-bucket-either/" in refused.out
        assert "rows.jsonl can be read" in refused.out, "one failure does not hide the rest"
    assert crd.api.get(f"/api/v1/namespaces/{namespace}/pods")["items"] == [], "no pod is left behind"


def test_what_an_administrator_sees(
    crd: ControlPlane, namespace: str, installed: Callable[..., None], tmp_path: Path
) -> None:
    installed()
    file = tmp_path / "quotes.json"
    file.write_text(json.dumps(yaml.safe_load((Path(__file__).parents[2] / "examples/minimal.yaml").read_text())))
    gpu = {"nvidia.com/gpu": "1", "cpu": "2", "memory": "4Gi"}
    label = {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    doctor = ("doctor", str(file), "-n", namespace, "--no-pod")
    none = gft(crd.kubeconfig, *doctor)
    assert findings(none)["operator"] == "problem"
    assert "has no ready pod" in none.out
    assert findings(none)["defaults"] == "ok"
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
    assert f"you may not create, get, list, watch, patch, delete {names.PLURAL} in namespace {namespace}" in done.out
    found = findings(done)
    assert {found[subject] for subject in ("operator", "ServiceAccount", "nodes", "quota")} == {"unknown"}


TOLERATION = {"key": "dedicated", "operator": "Equal", "value": "tuning", "effect": "NoSchedule"}
TPU = {
    "spec.accelerator": {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x2"}},
    "spec.model": {"uri": "hf://google/gemma-2-2b"},
    "spec.output": None,
}


def test_the_pod_is_as_the_installation_makes_it(
    crd: ControlPlane, namespace: str, installed: Callable[..., None], tmp_path: Path
) -> None:
    installed(
        trainer__xlaImage="registry.example/xla:1",
        trainer__imagePullPolicy="Always",
        trainer__env={"HTTPS_PROXY": "http://proxy:3128"},
        trainer__tolerations=[TOLERATION],
        defaults__outputPrefix="gs://site/runs",
        defaults__secretRef={"name": "site-token"},
        defaults__serviceAccountName="tuner",
    )
    crd.kubectl("create", "serviceaccount", "team-tuner", "-n", namespace)
    own = ("create", "configmap", names.DEFAULTS_CONFIG_MAP, "-n", namespace)
    crd.kubectl(*own, "--from-literal=serviceAccountName=team-tuner")
    file = tmp_path / "quotes.json"
    file.write_text(json.dumps(resource(changes=TPU)))
    pods = f"/api/v1/namespaces/{namespace}/pods"
    doctor = ("doctor", str(file), "-n", namespace, "--patience", "3")
    named = ("--image", "registry.example/other:2")
    for image, more in (("registry.example/xla:1", ()), ("registry.example/other:2", named)):
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(gft, crd.kubeconfig, *doctor, *more)
            (pod,) = wait_for(lambda: crd.api.get(pods)["items"], "the pod of the check", seconds=90)
            done = running.result()
        assert "outputPrefix: gs://site/runs, secretRef: site-token, serviceAccountName: team-tuner" in done.out
        assert findings(done)["Secret"] == "problem"
        assert "site-token does not exist" in done.out
        spec = pod["spec"]
        (container,) = spec["containers"]
        assert (container["image"], container["imagePullPolicy"]) == (image, "Always")
        assert spec["serviceAccountName"] == "team-tuner"
        assert TOLERATION in spec["tolerations"]
        env = {variable["name"]: variable for variable in container["env"]}
        assert env["HTTPS_PROXY"]["value"] == "http://proxy:3128"
        assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"]["name"] == "site-token"
        assert f"gs://site/runs/{namespace}/quotes" in env[names.ENV_RUN]["value"]


def test_a_namespace_that_no_operator_watches(
    crd: ControlPlane, namespace: str, installed: Callable[..., None], tmp_path: Path
) -> None:
    installed(namespaces=["team-a", "team-b"])
    doctor = ("doctor", "-n", namespace)
    done = gft(crd.kubeconfig, *doctor)
    assert (done.code, findings(done)["operator"]) == (1, "problem")
    assert f"no operator looks at namespace {namespace}, and a run would wait" in done.out
    assert "gemmatune-operator watches team-a, team-b" in done.out
    installed(namespaces=["team-a", namespace])
    assert "no operator looks" not in gft(crd.kubeconfig, *doctor).out


def test_a_run_whose_output_only_a_default_gives(
    crd: ControlPlane, namespace: str, installed: Callable[..., None], tmp_path: Path
) -> None:
    file = tmp_path / "quotes.json"
    file.write_text(json.dumps(resource(changes={"spec.output": None})))
    installed()
    none = gft(crd.kubeconfig, "doctor", str(file), "-n", namespace)
    assert findings(none)["output"] == "problem"
    assert "spec.output.uri is required, since no default gives a prefix" in none.out
    assert {"Secret", "nodes", "quota"} <= findings(none).keys(), "the rest is checked as well"
    crd.kubectl("create", "configmap", names.DEFAULTS_CONFIG_MAP, "-n", namespace, "--from-literal=outputPrefix=s3://x")
    wrong = gft(crd.kubeconfig, "doctor", str(file), "-n", namespace, "--no-pod")
    assert findings(wrong)["defaults"] == "problem"
    assert "a run would wait: ConfigMap gemmatune-defaults, outputPrefix" in wrong.out
    unknown = gft(person(crd, namespace, RULES), "doctor", str(file))
    assert {findings(unknown)[subject] for subject in ("defaults", "output")} == {"unknown"}
    assert f"ConfigMap {names.DEFAULTS_CONFIG_MAP} of the namespace" in unknown.out
