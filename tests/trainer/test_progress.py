"""The trainer's status fields, in a file and on the real API server with the trainer's own rights."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from structlog.testing import capture_logs

from gemmatune_api.names import API_VERSION, ENV_SERVICE_ACCOUNT_DIR, ENV_STATUS_FILE, KIND, PLURAL
from gemmatune_api.runconfig import RunIdentity
from gemmatune_api.status import Artifacts, FineTuneStatus
from gemmatune_operator.manifests import access
from gemmatune_trainer import ownership
from gemmatune_trainer.apiserver import ApiServer
from gemmatune_trainer.backends.base import Step
from gemmatune_trainer.history import History
from gemmatune_trainer.ownership import Claim
from gemmatune_trainer.progress import ApiSink, FileSink, Reporter, open_sink
from gemmatune_trainer.storage import open_storage
from tests.support.chart import token
from tests.support.controlplane import ControlPlane
from tests.support.wait import wait_for

IDENTITY = RunIdentity(name="quotes", namespace="default", uid="uid-1")


def history(steps: int, loss: float = 2.0) -> History:
    made = History(1)
    for number in range(1, steps + 1):
        made.add(Step(number, loss, 1.0, 1e-4, tokens=100, labelled_tokens=60, seconds=0.5))
    return made


class Counting:
    """A sink that counts, and fails as often as it is told."""

    def __init__(self, interval: float, fail: int = 0) -> None:
        self.interval = interval
        self.writes: list[dict[str, Any]] = []
        self.fail = fail

    def read(self) -> dict[str, Any]:
        return {}

    def write(self, status: dict[str, Any]) -> None:
        if self.fail > 0:
            self.fail -= 1
            raise requests.ConnectionError("nobody there")
        self.writes.append(status)


def test_the_status_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state" / "status.json"
    monkeypatch.setenv(ENV_STATUS_FILE, str(path))
    sink = open_sink(IDENTITY)
    assert isinstance(sink, FileSink)
    reporter = Reporter(sink)
    reporter.start()
    reporter.progress(3, 40, 40, history(3, float("nan")), urgent=False)
    reporter.samples(["p" * 3000], ["before"], None)
    reporter.close()
    found = json.loads(path.read_text())
    progress = found["progress"]
    assert progress["stepText"] == "3/40"
    assert progress["eta"] == "18s"
    assert progress["tokensPerSecond"] == 200
    assert "loss" not in progress, "NaN is left out"
    assert found["samples"] == [{"prompt": "p" * 2000, "before": "before"}]
    FineTuneStatus.model_validate(found)
    again = Reporter(FileSink(path))
    again.start()
    again.checkpoint(4, "file:///x")
    again.close()
    assert json.loads(path.read_text()).keys() == {"progress", "checkpoint", "samples"}, "every write is in full"


def test_at_most_one_write_in_an_interval_but_important_ones_at_once() -> None:
    sink = Counting(interval=3600)
    reporter = Reporter(sink)
    reporter.start()
    for step in range(1, 200):
        reporter.progress(step, 200, 100, history(1), urgent=False)
        reporter.alive()
    assert len(sink.writes) <= 1
    before = len(sink.writes)
    reporter.checkpoint(100, "file:///x")
    wait_for(lambda: len(sink.writes) > before, "the checkpoint's write", seconds=5)
    assert sink.writes[-1]["progress"]["step"] == 199
    reporter.progress(200, 200, 100, history(40), urgent=False)
    reporter.close()
    assert sink.writes[-1]["progress"]["epoch"] == 2
    assert len(sink.writes[-1]["progress"]["historySteps"]) == 30
    assert len(sink.writes) <= before + 2


def test_a_sign_of_life_before_the_first_report_claims_no_speed(tmp_path: Path) -> None:
    """Step and curve of the attempt before stay; its speed under a new heartbeat would tell of a step of this one."""
    path = tmp_path / "status.json"
    first = Reporter(FileSink(path))
    first.start()
    first.progress(3, 40, 40, history(3), urgent=True)
    first.close()
    left = {**json.loads(path.read_text())["progress"], "heartbeat": "2026-03-01T12:00:00Z"}
    path.write_text(json.dumps({"progress": left}))
    second = Reporter(FileSink(path))
    second.start()
    second.alive()
    second.close()
    renewed = json.loads(path.read_text())["progress"]
    assert renewed.pop("heartbeat") > left["heartbeat"]
    assert renewed.keys() == left.keys() - {"heartbeat", "tokensPerSecond", "eta"}
    assert renewed["step"] == 3
    third = Reporter(FileSink(path))
    third.start()
    third.progress(4, 40, 40, history(1), urgent=True)
    third.alive()
    third.close()
    assert json.loads(path.read_text())["progress"]["tokensPerSecond"] == 200, "its own speed stays"


def test_trouble_with_the_status_never_reaches_training() -> None:
    sink = Counting(interval=0.01, fail=2)
    reporter = Reporter(sink)
    reporter.start()
    for step in range(1, 4):
        reporter.progress(step, 3, 3, history(step), urgent=True)
        wait_for(lambda step=step: sink.fail <= max(0, 2 - step) or sink.writes, "a try", seconds=5)
    reporter.close()
    assert sink.writes[-1]["progress"]["step"] == 3


def test_without_a_place_for_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_STATUS_FILE, raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert open_sink(IDENTITY) is None
    reporter = Reporter(None)
    reporter.start()
    reporter.alive()
    reporter.close()


JOB = "quotes-t1"


@pytest.fixture
def pod(
    crd: ControlPlane, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[bool], RunIdentity]:
    """Makes a resource, and the environment of a pod of its namespace; with or without the trainer's rights."""

    def make(allowed: bool) -> RunIdentity:
        api = crd.api
        account, *rest = access.objects(namespace, None)
        api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
        if allowed:
            grant(crd, namespace, rest)
        name = account["metadata"]["name"]
        containers = [{"name": "trainer", "image": "x"}]
        own = api.create(
            f"/api/v1/namespaces/{namespace}/pods",
            {"metadata": {"name": f"{JOB}-abcde"}, "spec": {"serviceAccountName": name, "containers": containers}},
        )
        folder = tmp_path / "account"
        folder.mkdir()
        (folder / "token").write_text(token(crd, namespace, name, own))
        (folder / "ca.crt").write_bytes(crd.ca_path.read_bytes())
        monkeypatch.setenv(ENV_SERVICE_ACCOUNT_DIR, str(folder))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(crd.port))
        spec = {
            "model": {"uri": "hf://google/gemma-3-270m"},
            "dataset": {"uri": "gs://b/x.jsonl", "text": {"template": "{a}"}},
            "output": {"uri": "gs://b/out"},
            "accelerator": {"cpu": {}},
        }
        made = api.create(
            f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}",
            {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "quotes"}, "spec": spec},
        )
        path = f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}/quotes/status"
        api.patch(path, {"status": {"job": JOB}})
        return RunIdentity(name="quotes", namespace=namespace, uid=made["metadata"]["uid"])

    return make


def grant(plane: ControlPlane, namespace: str, objects: list[dict[str, Any]]) -> None:
    kinds = {"Role": "roles", "RoleBinding": "rolebindings"}
    for item in objects:
        plane.api.create(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/{kinds[item['kind']]}", item)


def status_of(plane: ControlPlane, identity: RunIdentity) -> dict[str, Any]:
    path = f"/apis/{API_VERSION}/namespaces/{identity.namespace}/{PLURAL}/{identity.name}"
    found: dict[str, Any] = plane.api.get(path).get("status", {})
    return found


@pytest.mark.cluster
def test_the_status_on_the_api_server(crd: ControlPlane, pod: Callable[[bool], RunIdentity]) -> None:
    """Two attempts write one after the other; the second seeds what it does not know from the first."""
    identity = pod(True)
    sink = open_sink(identity)
    assert isinstance(sink, ApiSink)
    first = Reporter(sink)
    first.start()
    first.progress(3, 40, 20, history(3), urgent=True)
    first.checkpoint(3, "gs://b/out/checkpoints/step-00000003")
    first.samples(["prompt"], ["before \N{ROCKET}\u2028"], None)
    first.close()
    assert status_of(crd, identity)["checkpoint"]["step"] == 3
    second = Reporter(open_sink(identity))
    second.start()
    second.progress(40, 40, 20, history(40), urgent=True)
    second.artifacts(Artifacts(adapter="gs://b/out/adapter", sha256="0" * 64))
    second.close()
    status = status_of(crd, identity)
    assert status.keys() == {"job", "progress", "checkpoint", "artifacts", "samples"}
    assert status["progress"]["stepText"] == "40/40"
    assert status["samples"] == [{"prompt": "prompt", "before": "before \N{ROCKET}\u2028"}]
    stranger = Reporter(ApiSink(ApiServer.of_pod(), identity.model_copy(update={"uid": "another"})))  # type: ignore[arg-type]
    stranger.start()
    stranger.progress(1, 2, 1, history(1), urgent=True)
    stranger.close()
    assert status_of(crd, identity)["progress"]["step"] == 40, "a resource of the same name is not ours"


@pytest.mark.cluster
def test_samples_that_are_refused_cost_no_heartbeat(crd: ControlPlane, pod: Callable[[bool], RunIdentity]) -> None:
    """The status is written without them, and the log says what the API server said."""
    identity = pod(True)
    sink = open_sink(identity)
    assert sink is not None
    with capture_logs() as logs:
        for step in (1, 2):
            sink.write({"progress": {"step": step}, "samples": [{"prompt": "p"}] * 9})
    assert status_of(crd, identity) == {"job": JOB, "progress": {"step": 2}}
    (told,) = [entry for entry in logs if entry["event"] == "samples left out of the status"]
    assert "status.samples: Too many: 9: must have at most 8 items" in told["error"]


@pytest.mark.cluster
def test_a_refusal_is_retried(crd: ControlPlane, pod: Callable[[bool], RunIdentity]) -> None:
    """The pod may start before its rights are there."""
    identity = pod(False)
    reporter = Reporter(open_sink(identity))
    started = time.monotonic()
    reporter.start()
    reporter.progress(1, 2, 1, history(1), urgent=True)
    grant(crd, identity.namespace, access.objects(identity.namespace, None)[1:])
    wait_for(lambda: status_of(crd, identity).get("progress"), "the write after the rights came", seconds=25)
    reporter.close()
    assert time.monotonic() - started < 30


@pytest.mark.cluster
def test_whether_an_owner_is_gone(crd: ControlPlane, pod: Callable[[bool], RunIdentity], tmp_path: Path) -> None:
    identity = pod(True)
    storage = open_storage((tmp_path / "out").as_uri())
    owner = Claim(identity.uid, identity.namespace, identity.name, "hash", "data", "rev")
    assert ownership.is_gone(storage, owner) is False
    assert ownership.is_gone(storage, Claim("other", identity.namespace, identity.name, "hash", "data", "rev")) is True
    path = f"/apis/{API_VERSION}/namespaces/{identity.namespace}/{PLURAL}/{identity.name}"
    finished = {
        "type": "Finished",
        "status": "True",
        "reason": "Completed",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    crd.api.patch(f"{path}/status", {"status": {"conditions": [finished]}})
    assert ownership.is_gone(storage, owner) is True
    crd.api.delete(path)
    assert ownership.is_gone(storage, owner) is True
