"""The operator as its chart installs it, and its runs, in containers of a real kubelet.

Real are the operator's image, built here from its Containerfile, the chart, kubelet, containerd and runc, Pod Security
`restricted`, the projected tokens and the admission policy. One run is a real one: the image of backend keras, built
here too, trains a tiny model from a storage server to the same. The others tell how containers end: their trainer is a
stand-in, added to the operator's image, which takes a second for each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemmatune_api.names import ENV_GCS_ENDPOINT, ConditionType, ExitCode, Reason
from tests.support import chart, realrun
from tests.support.api import Object
from tests.support.builds import built
from tests.support.fakegcs import FakeGcs
from tests.support.nodecluster import TEAM, NodeCluster
from tests.support.realnode import why_not
from tests.support.wait import wait_for
from tools import images, kube

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
STANDIN = Path(__file__).parent / "standin"
IMAGE = "docker.io/library/gemmatune-trainer-standin:1"
STEPS = 200
"""Of the real run: a suspension takes less than a second to reach it, the steps take several."""


@pytest.fixture(scope="module")
def gcs() -> Iterator[FakeGcs]:
    """The storage server of the real run."""
    with realrun.storage() as running:
        yield running


@pytest.fixture(scope="module")
def cluster(gcs: FakeGcs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeCluster]:
    """The installation; skipped with the reason where this machine cannot have one."""
    if reason := why_not():
        pytest.skip(reason)
    kube.ensure(("kubelet",))
    files = tmp_path_factory.mktemp("standin")
    package = files / "opt/gemmatune/gemmatune_trainer"
    package.mkdir(parents=True)
    for path in (STANDIN / "gemmatune_trainer").glob("*.py"):
        (package / path.name).write_text(path.read_text())
    with contextlib.ExitStack() as stack:
        with built("operator") as operator:
            running = stack.enter_context(NodeCluster())
            running.reach(gcs.port)
            endpoint = f"trainer.env.{ENV_GCS_ENDPOINT}={gcs.outside_endpoint}"
            running.install(operator, f"trainer.image={IMAGE}", endpoint)
            running.node.load_addition(operator, files, IMAGE)
        yield running


def run(cluster: NodeCluster, name: str, fault: str = "wait", **blocks: object) -> None:
    """Applies a run whose trainer does as `fault` says; one attempt, in little memory."""
    pod: Object = {
        "env": [{"name": "FAULT", "value": fault}, {"name": "ANOTHER_RUN", "value": "another"}],
        "resources": {"requests": {"cpu": "50m"}, "limits": {"memory": "256Mi", "ephemeral-storage": "1Gi"}},
    }
    spec: Object = {
        "model": {"uri": "hf://google/gemma-3-270m"},
        "dataset": {"uri": "gs://bucket/quotes.jsonl", "text": {"template": "{quote}"}},
        "output": {"uri": f"gs://bucket/{name}"},
        "training": {"maxSteps": 10},
        "limits": {"maxRetries": 0, "maxPreemptions": 0},
        "accelerator": {"cpu": {}},
        "pod": pod,
    }
    cluster.apply(name, {**spec, **blocks})


def test_helm_test_passes(cluster: NodeCluster) -> None:
    shown = cluster.helm("test", chart.RELEASE).stdout
    assert "Phase:          Succeeded" in shown


def test_the_operator_ends_when_the_kubelet_asks(cluster: NodeCluster) -> None:
    """The image's own process gets SIGTERM and ends by itself, long before it would be killed; another one follows."""
    selector = f"app.kubernetes.io/name=gemmatune,app.kubernetes.io/instance={chart.RELEASE}"
    pods = f"/api/v1/namespaces/{chart.NAMESPACE}/pods"
    api = cluster.control_plane.api
    (pod,) = api.get(pods, labelSelector=selector)["items"]
    state = cluster.end_of(chart.NAMESPACE, selector, lambda: api.delete(f"{pods}/{pod['metadata']['name']}"))
    assert (state["exitCode"], state["reason"]) == (0, "Completed"), state
    cluster.control_plane.kubectl("rollout", "status", "-n", chart.NAMESPACE, f"deployment/{chart.OPERATOR}",
                                  "--timeout=2m")  # fmt: skip


@pytest.mark.timeout(1800)
def test_a_real_trainer_is_suspended_and_goes_on_to_its_adapter(cluster: NodeCluster, gcs: FakeGcs) -> None:
    """Backend keras as its image is built: kubelet's SIGTERM, checkpoint, and a second attempt that resumes from it."""
    with built("keras", copies=3) as archive:
        cluster.node.load(archive)
    realrun.apply(
        cluster,
        "real",
        STEPS,
        {
            "backend": "keras",
            "lora": {"rank": 4, "targetModules": ["q_proj", "v_proj"]},
            "training": {"precision": "fp32"},
            # Compiled quickly, not well: there are seconds to train.
            "pod": {"env": [{"name": "JAX_DISABLE_MOST_OPTIMIZATIONS", "value": "1"}]},
        },
    )
    reached = realrun.suspend(cluster, "real", STEPS)
    realrun.resume(cluster, "real")
    status = realrun.check_end(cluster, gcs, "real", STEPS, images.image_name("keras"))
    assert [attempt.get("fromStep") for attempt in status["attempts"]] == [None, reached], status["attempts"]
    assert status["progress"]["loss"] < status["progress"]["historyLoss"][0]


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        (f"exit {int(ExitCode.DATA_INVALID)} row 7 has no quote", Reason.DATA_INVALID, "row 7 has no quote"),
        ("crash", Reason.CRASHED, "ValueError: the tensor is upside down"),
        ("oom", Reason.HOST_OUT_OF_MEMORY, "memory"),
        ("oom-child", Reason.HOST_OUT_OF_MEMORY, "memory"),
    ],
)
def test_how_a_container_ends_reaches_the_status(cluster: NodeCluster, fault: str, reason: Reason, words: str) -> None:
    """Exit codes, termination messages, last log lines and OOMKilled are the kubelet's own."""
    name = fault.split()[0]
    run(cluster, name, fault)
    status = cluster.finished(name)
    assert status["phase"] == "Failed"
    (attempt,) = status["attempts"]
    assert (attempt["reason"], attempt["number"]) == (reason, 1), cluster.told()
    assert words in attempt["message"], attempt


def test_a_token_writes_its_own_run_and_sigterm_is_answered(cluster: NodeCluster) -> None:
    """Progress comes by the pod's projected token, which another run refuses; suspending ends the pod in its grace."""
    run(cluster, "another", suspend=True)
    run(cluster, "waiting")
    said = cluster.wait("waiting", lambda s: s.get("progress", {}).get("step") == 4, "progress")["progress"]["stepText"]
    assert said == "200 403 1000 read-only", "own run, another's, user, root file system"
    path = f"/apis/gemmatune.dev/v1alpha1/namespaces/{TEAM}/gemmafinetunes/waiting"
    cluster.control_plane.api.patch(path, {"spec": {"suspend": True}})
    status = cluster.wait("waiting", lambda s: s.get("phase") == "Suspended", "its suspension", 100)
    assert status["checkpoint"]["step"] == 7, "the handler had its time"
    conditions = {item["type"]: item["status"] for item in status["conditions"]}
    assert conditions[ConditionType.SUSPENDED] == "True"
    selector = "gemmatune.dev/run=waiting,gemmatune.dev/role=train"
    pods = f"/api/v1/namespaces/{TEAM}/pods"
    list_pods = cluster.control_plane.api.get
    wait_for(lambda: not list_pods(pods, labelSelector=selector)["items"], "the kubelet to let the pod go", seconds=60)


def test_an_upgrade_and_the_way_back_leave_the_runs(cluster: NodeCluster) -> None:
    """A new revision's operator takes over a run that is under way; its pod, image and configuration stay."""
    run(cluster, "upgraded")
    cluster.wait("upgraded", lambda s: s.get("progress", {}).get("step") == 4, "progress")
    before = _pod(cluster, "upgraded")
    cluster.helm("upgrade", chart.RELEASE, str(chart.CHART), "--reuse-values", "--set=trainer.image=localhost/next:1",
                 "--set=extraArgs={--workers=4}", "--wait", "--timeout=4m")  # fmt: skip
    assert _pod(cluster, "upgraded") == before
    cluster.helm("rollback", chart.RELEASE, "1", "--wait", "--timeout=4m")
    assert _pod(cluster, "upgraded") == before
    run(cluster, "after", f"exit {int(ExitCode.ACCESS_DENIED)} no")
    assert cluster.finished("after")["reason"] == Reason.ACCESS_DENIED, "the operator works"
    cluster.helm("uninstall", chart.RELEASE, "--wait")
    assert cluster.status("upgraded")["phase"] == "Training", "runs outlive the chart"


def _pod(cluster: NodeCluster, name: str) -> Object:
    """What an upgrade must not change of a run's training pod."""
    selector = f"gemmatune.dev/run={name},gemmatune.dev/role=train"
    (pod,) = cluster.control_plane.api.get(f"/api/v1/namespaces/{TEAM}/pods", labelSelector=selector)["items"]
    container = pod["spec"]["containers"][0]
    return {"uid": pod["metadata"]["uid"], "image": container["image"], "env": container["env"]}
