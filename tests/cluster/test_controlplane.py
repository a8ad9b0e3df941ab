"""The test cluster itself: a real control plane, and a node that runs pods as processes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.support.controlplane import ControlPlane
from tests.support.nodeagent import NodeAgent
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
# A trainer finds both folders by environment variables, as these programs do.
TERMINATION_LOG = 'open(os.environ["GEMMATUNE_TERMINATION_LOG"], "w")'
ACCOUNT_DIR = 'os.environ["GEMMATUNE_SERVICE_ACCOUNT_DIR"]'


def job(name: str, program: str, *, grace: int = 30, **container: Any) -> dict[str, Any]:
    """A Job of one pod that runs a Python program, with the rules of gemmatune's own Jobs."""
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace,
        "enableServiceLinks": False,
        "containers": [{"name": "trainer", "image": "trainer:test", "command": ["python", "-c", program], **container}],
    }
    rules = [{"action": "FailJob", "onExitCodes": {"containerName": "trainer", "operator": "In", "values": [20]}}]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": rules},
            "template": {"spec": pod},
        },
    }


def run_job(control_plane: ControlPlane, namespace: str, manifest: dict[str, Any]) -> str:
    """Create the Job with kubectl; its path."""
    control_plane.kubectl("create", "-n", namespace, "-f", "-", input=manifest)
    return f"/apis/batch/v1/namespaces/{namespace}/jobs/{manifest['metadata']['name']}"


def conditions(control_plane: ControlPlane, path: str) -> dict[str, dict[str, Any]]:
    """The true conditions of a Job by type."""
    found = control_plane.api.get(path)["status"].get("conditions", [])
    return {condition["type"]: condition for condition in found if condition["status"] == "True"}


def the_pod(control_plane: ControlPlane, namespace: str) -> dict[str, Any] | None:
    pods = control_plane.api.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
    assert len(pods) <= 1, [pod["metadata"]["name"] for pod in pods]
    return pods[0] if pods else None


def terminated(pod: dict[str, Any]) -> dict[str, Any]:
    end: dict[str, Any] = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return end


def wait_running(control_plane: ControlPlane, node: NodeAgent, namespace: str, output: str) -> dict[str, Any]:
    """The pod, once it is Running and has printed `output`."""

    def ready() -> dict[str, Any] | None:
        pod = the_pod(control_plane, namespace)
        running = pod and pod["status"]["phase"] == "Running" and output in node.log(namespace, pod["metadata"]["name"])
        return pod if running else None

    return wait_for(ready, f"a running pod that has printed {output!r}")


def test_it_starts_within_15_seconds(control_plane: ControlPlane) -> None:
    assert control_plane.seconds["ready"] < 15, control_plane.seconds
    assert control_plane.kubectl_json("version")["serverVersion"]["gitVersion"].startswith("v1.")


def test_an_exit_code_of_the_contract_fails_the_job_with_the_pods_message(
    control_plane: ControlPlane, node: NodeAgent, namespace: str
) -> None:
    program = f'import os, sys; {TERMINATION_LOG}.write("out of memory at step 3"); sys.exit(20)'
    path = run_job(control_plane, namespace, job("exit-20", program))

    failed = wait_for(lambda: conditions(control_plane, path).get("Failed"), "the Job to fail")

    assert failed["reason"] == "PodFailurePolicy"
    assert "exit code 20" in failed["message"]
    pod = the_pod(control_plane, namespace)
    assert pod
    assert pod["status"]["phase"] == "Failed"
    end = terminated(pod)
    assert (end["exitCode"], end["reason"], end["message"]) == (20, "Error", "out of memory at step 3")
    assert end["startedAt"] <= end["finishedAt"]


def test_a_finished_job_is_complete_and_saw_its_environment(
    control_plane: ControlPlane, node: NodeAgent, namespace: str
) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub"}, "stringData": {"token": "hf_x"}}
    control_plane.kubectl("create", "-n", namespace, "-f", "-", input=secret)
    program = "import os, json; print(json.dumps(dict(os.environ)))"
    env = [
        {"name": "HUB_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "GREETING", "value": "$(POD) costs $$5 and $(NOTHING)"},
    ]
    path = run_job(control_plane, namespace, job("prints", program, env=env))

    wait_for(lambda: conditions(control_plane, path).get("Complete"), "the Job to complete")

    pod = the_pod(control_plane, namespace)
    assert pod
    name = pod["metadata"]["name"]
    seen = json.loads(node.log(namespace, name))
    assert seen["HUB_TOKEN"] == "hf_x"
    assert seen["GREETING"] == f"{name} costs $5 and $(NOTHING)"
    assert "PYTEST_CURRENT_TEST" not in seen, "the environment of the tests leaks into pods"


def test_a_missing_secret_shows_and_the_pod_starts_once_it_is_there(
    control_plane: ControlPlane, node: NodeAgent, namespace: str
) -> None:
    env = [{"name": "HUB_TOKEN", "valueFrom": {"secretKeyRef": {"name": "later", "key": "token"}}}]
    path = run_job(control_plane, namespace, job("waits", "pass", env=env))

    def waiting() -> dict[str, Any] | None:
        statuses = (the_pod(control_plane, namespace) or {"status": {}})["status"].get("containerStatuses", [])
        found: dict[str, Any] | None = statuses[0]["state"].get("waiting") if statuses else None
        return found if found and found["reason"] == "CreateContainerConfigError" else None

    shown = wait_for(waiting, "the missing secret to show in the pod")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "later"}, "stringData": {"token": "x"}}
    control_plane.kubectl("create", "-n", namespace, "-f", "-", input=secret)

    assert "later" in shown["message"]
    wait_for(lambda: conditions(control_plane, path).get("Complete"), "the Job to complete")


def test_without_a_message_the_end_of_the_log_is_the_message(
    control_plane: ControlPlane, node: NodeAgent, namespace: str
) -> None:
    program = "import sys; print('loading', flush=True); sys.exit('no such model')"
    policy = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    path = run_job(control_plane, namespace, job("logs", program, **policy))

    wait_for(lambda: conditions(control_plane, path).get("Failed"), "the Job to fail")

    pod = the_pod(control_plane, namespace)
    assert pod
    assert terminated(pod)["exitCode"] == 1
    assert terminated(pod)["message"] == "loading\nno such model\n"


def test_deleting_a_job_asks_its_pod_to_stop_first(
    control_plane: ControlPlane, node: NodeAgent, namespace: str, tmp_path: Any
) -> None:
    proof = tmp_path / "proof"
    program = f"""
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path({str(proof)!r}).write_text("asked")
    sys.exit(30)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True: time.sleep(0.05)
"""
    path = run_job(control_plane, namespace, job("stops", program))
    wait_running(control_plane, node, namespace, "ready")

    control_plane.api.delete(path, {"propagationPolicy": "Foreground"})

    wait_for(lambda: control_plane.api.find(path) is None, "the Job to go")
    assert proof.read_text() == "asked"
    assert the_pod(control_plane, namespace) is None


def test_a_pod_that_ignores_sigterm_is_killed_after_its_grace(
    control_plane: ControlPlane, node: NodeAgent, namespace: str
) -> None:
    program = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True: time.sleep(0.05)
"""
    path = run_job(control_plane, namespace, job("stubborn", program, grace=1))
    wait_running(control_plane, node, namespace, "ready")

    begin = time.monotonic()
    control_plane.api.delete(path, {"propagationPolicy": "Foreground"})
    wait_for(lambda: control_plane.api.find(path) is None, "the Job to go")

    assert time.monotonic() - begin >= 0.9


def test_out_of_memory_is_a_sigkill_with_its_reason(
    control_plane: ControlPlane, node: NodeAgent, namespace: str
) -> None:
    program = "import time; print('ready', flush=True); time.sleep(60)"
    path = run_job(control_plane, namespace, job("hungry", program))
    pod = wait_running(control_plane, node, namespace, "ready")

    node.out_of_memory(namespace, pod["metadata"]["name"])

    wait_for(lambda: conditions(control_plane, path).get("Failed"), "the Job to fail")
    pod = the_pod(control_plane, namespace)
    assert pod
    assert (terminated(pod)["exitCode"], terminated(pod)["reason"]) == (137, "OOMKilled")


def test_the_token_is_bound_to_the_pod(control_plane: ControlPlane, node: NodeAgent, namespace: str) -> None:
    program = f"""
import json, os, pathlib, ssl, time, urllib.request
account = pathlib.Path({ACCOUNT_DIR})
server = f"https://{{os.environ['KUBERNETES_SERVICE_HOST']}}:{{os.environ['KUBERNETES_SERVICE_PORT']}}"
review = {{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}}
request = urllib.request.Request(
    server + "/apis/authentication.k8s.io/v1/selfsubjectreviews",
    data=json.dumps(review).encode(),
    headers={{"Authorization": "Bearer " + (account / "token").read_text(), "Content-Type": "application/json"}},
)
context = ssl.create_default_context(cafile=str(account / "ca.crt"))
answer = json.load(urllib.request.urlopen(request, context=context))
print(json.dumps({{
    "namespace": (account / "namespace").read_text(),
    "user": answer["status"]["userInfo"],
}}), flush=True)
print("ready", flush=True)
time.sleep(60)
"""
    run_job(control_plane, namespace, job("who-am-i", program, grace=1))
    pod = wait_running(control_plane, node, namespace, "ready")
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    said = json.loads(node.log(namespace, name).splitlines()[0])

    assert said["namespace"] == namespace
    assert said["user"]["username"] == f"system:serviceaccount:{namespace}:default"
    assert said["user"]["extra"]["authentication.kubernetes.io/pod-name"] == [name]
    assert said["user"]["extra"]["authentication.kubernetes.io/pod-uid"] == [uid]
    mounts = pod["spec"]["containers"][0]["volumeMounts"]
    assert [mount["mountPath"] for mount in mounts] == [SERVICE_ACCOUNT]


def test_a_gpu_node_takes_the_pods_that_ask_for_it(
    control_plane: ControlPlane, node: NodeAgent, namespace: str, tmp_path: Any
) -> None:
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    labels = {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    manifest = job("on-gpu", "print('ready')", resources={"limits": {"nvidia.com/gpu": "1"}})
    pod = manifest["spec"]["template"]["spec"]
    pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    pod["nodeSelector"] = labels
    path = run_job(control_plane, namespace, manifest)

    with NodeAgent(
        control_plane, tmp_path / "gpu", "gpu-1", resources={"nvidia.com/gpu": "1"}, labels=labels, taints=[taint]
    ):
        wait_for(lambda: conditions(control_plane, path).get("Complete"), "the Job to complete")
        found = the_pod(control_plane, namespace)
        assert found
        assert found["spec"]["nodeName"] == "gpu-1"


@pytest.mark.parametrize("namespace", ["restricted"], indirect=True)
def test_a_restricted_namespace_refuses_an_ordinary_pod(control_plane: ControlPlane, namespace: str) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "plain"},
        "spec": {"containers": [{"name": "trainer", "image": "trainer:test"}]},
    }
    done = control_plane.kubectl("create", "-n", namespace, "-f", "-", input=pod, check=False)

    assert done.returncode != 0
    assert 'violates PodSecurity "restricted' in done.stderr


def test_pods_go_on_while_the_api_server_restarts(
    control_plane: ControlPlane, node: NodeAgent, namespace: str, tmp_path: Any
) -> None:
    go_on = tmp_path / "go-on"
    program = f"""
import pathlib, time
print("ready", flush=True)
while not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.05)
"""
    path = run_job(control_plane, namespace, job("survivor", program))
    wait_running(control_plane, node, namespace, "ready")

    control_plane.stop_apiserver()
    go_on.touch()
    control_plane.start_apiserver()

    wait_for(lambda: conditions(control_plane, path).get("Complete"), "the Job to complete")
