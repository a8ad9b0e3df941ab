"""gft's commands for operating, as processes against the real control plane and, where they act, the operator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gemmatune_api import names
from tests.support.controlplane import ControlPlane
from tests.support.gft import Terminal, gft
from tests.support.nodeagent import NodeAgent
from tests.support.operator_process import OperatorProcess
from tests.support.resources import resource
from tests.support.stage import Stage
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster

TIME = "2026-01-02T03:04:05Z"
ACCEPTED = {"type": "Accepted", "status": "True", "reason": "Valid", "message": "It fits.", "lastTransitionTime": TIME}
FINISHED = {**ACCEPTED, "type": "Finished", "reason": "Completed"}


@pytest.fixture
def run(crd: ControlPlane, namespace: str) -> str:
    """The path of a new resource, which no operator looks at."""
    crd.kubectl("apply", "-n", namespace, "-f", "-", input=resource())
    return f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}/quotes"


def write(crd: ControlPlane, run: str, **status: Any) -> None:
    crd.api.patch(f"{run}/status", {"status": status})


def test_wait_tells_the_end_by_its_exit_code(crd: ControlPlane, namespace: str, run: str) -> None:
    wait = ("wait", "quotes", "-n", namespace)
    write(crd, run, phase="Provisioning", message="No node can take the pod.", remedy="Add a node pool.")
    late = gft(crd.kubeconfig, *wait, "--timeout", "1s")
    assert late.code == 2
    assert "has not ended within 1s: it is Provisioning. No node can take the pod." in late.error
    assert "Add a node pool." in late.error

    failed = {"phase": "Failed", "reason": "DataInvalid", "message": "Row 7 is empty.", "remedy": "Correct row 7."}
    write(crd, run, **failed, observedGeneration=1, conditions=[FINISHED])
    ended = gft(crd.kubeconfig, *wait)
    assert ended.code == 1
    assert "has failed, DataInvalid: Row 7 is empty.\nCorrect row 7." in ended.error

    write(crd, run, phase="Succeeded", message="It is written.", conditions=[FINISHED])
    assert gft(crd.kubeconfig, *wait).code == 0
    missing = gft(crd.kubeconfig, "wait", "nothing", "-n", namespace)
    assert (missing.code, f"{namespace}/nothing does not exist" in missing.error) == (1, True)
    assert "no duration" in gft(crd.kubeconfig, *wait, "--timeout", "soon").error


def test_a_failure_before_a_retry_or_a_correction_is_no_end(crd: ControlPlane, namespace: str, run: str) -> None:
    """With the operator away, which has not seen them yet."""
    where = ("quotes", "-n", namespace)
    failed = {"phase": "Failed", "reason": "DataInvalid", "message": "Row 7 is empty.", "conditions": [FINISHED]}
    write(crd, run, **failed, observedGeneration=1)
    assert gft(crd.kubeconfig, "retry", *where).code == 0
    late = gft(crd.kubeconfig, "wait", *where, "--timeout", "2s")
    assert (late.code, "no operator has looked at the correction or the retry yet" in late.error) == (2, True)
    asked = crd.api.get(run)["metadata"]["annotations"][names.ANNOTATION_RETRY]
    with Terminal(crd.kubeconfig, ["watch", *where]) as watch:
        watch.shows("It had failed (DataInvalid); waits for the operator to take it up again")
        write(crd, run, observedRetry=asked)
        assert watch.process.wait(timeout=60) == 1
        assert "Failed, DataInvalid: Row 7 is empty." in watch.text
    assert gft(crd.kubeconfig, "wait", *where).code == 1
    corrected = resource(changes={"spec.dataset.maxLength": 512})
    crd.kubectl("apply", "-n", namespace, "-f", "-", input=corrected)
    assert gft(crd.kubeconfig, "wait", *where, "--timeout", "2s").code == 2
    write(crd, run, observedGeneration=2)
    assert gft(crd.kubeconfig, "wait", *where).code == 1


def test_a_policys_words_are_shown(crd: ControlPlane, namespace: str, run: str) -> None:
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
            "resourceRules": [
                {
                    "apiGroups": [names.GROUP],
                    "apiVersions": ["*"],
                    "operations": ["UPDATE"],
                    "resources": [names.PLURAL],
                }
            ],
        },
        "validations": [{"expression": "false", "message": "No changes until Monday.", "reason": "Forbidden"}],
    }
    head = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": f"freeze-{namespace}"}}
    policy = {**head, "kind": "ValidatingAdmissionPolicy", "spec": spec}
    bound = {"policyName": f"freeze-{namespace}", "validationActions": ["Deny"]}
    binding = {**head, "kind": "ValidatingAdmissionPolicyBinding", "spec": bound}
    for document in (policy, binding):
        crd.kubectl("apply", "-f", "-", input=document)

    def denied() -> str:
        """A policy takes a moment to come into force."""
        done = gft(crd.kubeconfig, "suspend", "quotes", "-n", namespace)
        if done.code == 0:
            gft(crd.kubeconfig, "resume", "quotes", "-n", namespace)
        return done.error

    try:
        said = wait_for(denied, "the policy in force", seconds=120)
        assert f"{namespace}/quotes may not be changed: " in said
        assert "denied request: No changes until Monday." in said
        assert "do what the message asks" in said
    finally:
        for document in (binding, policy):
            crd.kubectl("delete", document["kind"], f"freeze-{namespace}")


def test_wait_and_watch_outlive_an_api_server(crd: ControlPlane, namespace: str, run: str) -> None:
    write(crd, run, phase="Training", message="Attempt 1 trains.", conditions=[ACCEPTED])
    with Terminal(crd.kubeconfig, ["watch", "quotes", "-n", namespace]) as watch:
        watch.shows("Attempt 1 trains.")
        crd.stop_apiserver()
        crd.start_apiserver()
        write(crd, run, phase="Succeeded", message="It is written.", conditions=[ACCEPTED, FINISHED])
        assert watch.process.wait(timeout=60) == 0


def test_watch_draws_the_loss_and_top_the_table(crd: ControlPlane, namespace: str, run: str) -> None:
    steps = list(range(10, 110, 10))
    progress = {
        "step": 100,
        "totalSteps": 400,
        "stepText": "100/400",
        "loss": 1.25,
        "tokensPerSecond": 5321.0,
        "eta": "1h12m",
        "historySteps": steps,
        "historyLoss": [3.5, 2.9, 2.4, 2.1, 1.9, 1.7, 1.5, 1.4, 1.3, 1.25],
    }
    write(crd, run, phase="Training", message="Attempt 1 trains.", conditions=[ACCEPTED], progress=progress)
    crd.kubectl("apply", "-n", namespace, "-f", "-", input=resource("waits"))
    waits = {"phase": "Provisioning", "reason": "Unschedulable", "timers": {"pendingSince": TIME}}
    crd.api.patch(f"{run.removesuffix('quotes')}waits/status", {"status": waits})
    with Terminal(crd.kubeconfig, ["watch", "quotes", "-n", namespace]) as watch:
        watch.shows(" 3.5 ┤")
        watch.shows("1.25 ┤")
        watch.shows("100/400")
        watch.press(b"\x03")
        assert watch.process.wait(timeout=30) == 130
    with Terminal(crd.kubeconfig, ["top", "-n", namespace]) as top:
        top.shows("5,321")
        write(crd, run, progress={**progress, "tokensPerSecond": 6000.0})
        top.shows("6,000")
        top.press(b"\x03")
        assert top.process.wait(timeout=30) == 0
    once = gft(crd.kubeconfig, "top", "-A")
    rows = [line.split() for line in once.out.splitlines() if line.startswith(namespace)]
    assert [row[1] for row in rows] == ["quotes", "waits"], "what trains comes first"
    assert rows[0][2:7] == ["Training", "100/400", "1.2500", "6,000", "1h12m"]
    assert rows[1][2] == "Provisioning"
    assert rows[1][-1] == "Unschedulable"
    assert rows[1][3].endswith("d") or "d" in rows[1][3], "how long it waits"
    empty = gft(crd.kubeconfig, "top", "-n", "kube-system")
    assert (empty.code, empty.out.split()[0]) == (0, "NAME")


@pytest.mark.timeout(240)
def test_suspend_resume_and_retry_move_a_run(crd: ControlPlane, namespace: str, tmp_path: Path) -> None:
    stage = Stage(crd.api, namespace)
    operator = OperatorProcess(crd.operator_kubeconfig, tmp_path / "operator.log", namespaces=[namespace])

    def tell(command: str) -> str:
        done = gft(crd.kubeconfig, command, "quotes", "-n", namespace)
        assert done.code == 0, done.error
        return done.out

    try:
        stage.create()
        stage.job("p1")
        assert "is not suspended; it is" in tell("resume")
        assert "saves a checkpoint and stops" in tell("suspend")
        stage.wait_phase("Suspended", seconds=60)
        assert "told to stand still already" in tell("suspend")
        refused = gft(crd.kubeconfig, "retry", "quotes", "-n", namespace)
        assert refused.code == 1
        assert "is Suspended: only a run that has failed is tried again" in refused.error
        assert "goes on" in tell("resume")
        stage.wait_phase("Preparing", seconds=60)
        number = stage.status["prepare"]["number"]
        stage.ends(f"p{number}", 12, {"reason": "DataInvalid", "message": "Row 7 is empty.", "remedy": "Correct it."})
        stage.wait_phase("Failed", seconds=60)
        assert "A failed run is tried again by `gft retry quotes`." in tell("resume")
        over = gft(crd.kubeconfig, "suspend", "quotes", "-n", namespace)
        assert (over.code, "there is nothing to suspend" in over.error) == (1, True)
        assert "DataInvalid: Row 7 is empty." in tell("retry")
        stage.job(f"p{number + 1}")
        stage.wait_phase("Preparing", seconds=60)
    finally:
        assert operator.stop() == 0


def pod(name: str, uid: str, attempt: int, script: str, role: str = "train") -> dict[str, Any]:
    labels = {names.LABEL_RUN: "quotes", names.LABEL_RUN_UID: uid, names.LABEL_ROLE: role}
    container = {"name": names.CONTAINER, "image": "x", "command": ["sh", "-c", script]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {**labels, names.LABEL_ATTEMPT: str(attempt)}},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }


@pytest.mark.timeout(180)
def test_logs_go_from_pod_to_pod(crd: ControlPlane, namespace: str, run: str, node: NodeAgent, tmp_path: Path) -> None:
    uid = crd.api.get(run)["metadata"]["uid"]
    pods = f"/api/v1/namespaces/{namespace}/pods"
    logs = ("logs", "quotes", "-n", namespace)
    write(crd, run, message="The preparation waits.")
    none = gft(crd.kubeconfig, *logs)
    assert (none.code, "has no such pod. The preparation waits." in none.error) == (1, True)

    go_on = tmp_path / "go-on"
    script = f"echo first; echo second; while ! test -e {go_on}; do sleep 0.1; done; echo last"
    crd.api.create(pods, pod("quotes-p1-abcde", uid, 1, "echo prepared", "prepare"))
    wait_for(lambda: crd.api.get(f"{pods}/quotes-p1-abcde")["status"]["phase"] == "Succeeded", "its end")
    crd.api.create(pods, pod("quotes-t1-abcde", uid, 1, script))
    with Terminal(crd.kubeconfig, [*logs, "--follow"]) as follow:
        follow.shows("==> quotes-t1-abcde")
        follow.shows("second")
        newest = gft(crd.kubeconfig, *logs, "--tail", "1")
        assert newest.out.strip() == "second"
        assert gft(crd.kubeconfig, *logs, "--role", "prepare").out.strip() == "prepared"
        go_on.touch()
        follow.shows("last")
        wait_for(lambda: crd.api.get(f"{pods}/quotes-t1-abcde")["status"]["phase"] == "Succeeded", "its end")
        crd.api.create(pods, pod("quotes-t2-abcde", uid, 2, "echo again"))
        follow.shows("==> quotes-t2-abcde")
        follow.shows("again")
        write(crd, run, phase="Succeeded", conditions=[FINISHED])
        assert follow.process.wait(timeout=30) == 0
        assert follow.text.count("first") == follow.text.count("last") == 1
    assert gft(crd.kubeconfig, *logs, "--attempt", "1").out.split() == ["first", "second", "last"]
    assert gft(crd.kubeconfig, *logs, "--attempt", "7").code == 1
