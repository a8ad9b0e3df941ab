"""Faults of the store and of the schema, on a control plane of their own: other tests are not disturbed."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gemmatune_api import names
from tests.support import chart
from tests.support.api import ApiError, Object
from tests.support.controlplane import ControlPlane, missing_programs
from tests.support.fixtures import ROOT
from tests.support.operator_process import OperatorProcess
from tests.support.play import SPEC
from tests.support.proxy import ApiProxy
from tests.support.stage import Stage
from tests.support.story import INTERRUPTED, SIMPLE, Story
from tests.support.wait import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
CRD = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{names.PLURAL}.{names.GROUP}"


@pytest.fixture(scope="module")
def own(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """A second control plane, with the CustomResourceDefinition and the operator's rights."""
    assert not missing_programs()
    with ControlPlane() as running:
        running.api.create(CRD.rpartition("/")[0], definition())
        established(running)
        chart.install_access(running)
        yield running


@pytest.fixture
def place(own: ControlPlane, request: pytest.FixtureRequest) -> str:
    """A namespace of it."""
    name = f"test-{abs(hash(request.node.name)) % 10**8}"
    own.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    wait_for(lambda: own.api.find(f"/api/v1/namespaces/{name}/serviceaccounts/default"), "its service account")
    return name


@pytest.fixture
def operator(own: ControlPlane, place: str, tmp_path: Path) -> Iterator[Callable[..., OperatorProcess]]:
    """Starts an operator there; it must end well and without a stack in its log."""
    started: list[OperatorProcess] = []

    def begin(kubeconfig: Path | None = None) -> OperatorProcess:
        log = tmp_path / "operator.log"
        found = OperatorProcess(
            kubeconfig or own.operator_kubeconfig, log, namespaces=[place], arguments=["--resync", "5"]
        )
        started.append(found)
        return found.ready()

    try:
        yield begin
        for each in started:
            assert each.probe("healthz") == 200
            assert each.stop(30) == 0, each.server.tail()
            assert each.stacks() == []
        assert not [request for request in own.newly_audited() if request.lacked_rights]
    finally:
        for each in started:
            each.kill()


def definition() -> Object:
    (file,) = (ROOT / "crds").glob("*.yaml")
    document: Object = yaml.safe_load(file.read_text())
    return document


def established(own: ControlPlane) -> None:
    def served() -> bool:
        found = own.api.get(CRD).get("status", {}).get("conditions") or []
        return any(item["type"] == "Established" and item["status"] == "True" for item in found)

    wait_for(served, "the definition to be served")


def test_etcd_stands_still(own: ControlPlane, place: str, operator: Callable[..., OperatorProcess]) -> None:
    """20 s without the store, in the middle of a transition: the same process goes on and doubles nothing."""
    process = operator()
    story = Story(Stage(own.api, place), INTERRUPTED).create().to("t1 runs")
    story.stage.wait_phase("Training")
    story.stage.ends("t1", 30, {"message": "asked to stop", "step": 7})
    story.done.append("t1 exits 30")
    own.pause_etcd()
    began = time.monotonic()
    try:
        wait_for(lambda: time.monotonic() - began > 20.0, "20 s to pass")
        assert process.probe("healthz") == 200, "a store that is away is no reason to end the operator"
    finally:
        own.resume_etcd()
    story.to_the_end(240).check()
    assert process.ended is None


def test_history_is_forgotten_while_it_is_cut_off(
    own: ControlPlane, place: str, operator: Callable[..., OperatorProcess]
) -> None:
    """Watches that come back too late are answered with 410; what happened in the gap is found by listing anew."""
    with ApiProxy(own) as proxy:
        operator(proxy.kubeconfig)
        story = Story(Stage(own.api, place), INTERRUPTED).create().to("t1 runs")
        story.stage.wait_phase("Training")
        other = Stage(own.api, place, "other")
        other.create()
        other.job("p1")
        wait_for(lambda: own.api.get(f"{other.jobs}/other-p1").get("status", {}).get("active") == 1, "its pod")
        proxy.cut()
        story.stage.ends("t1", 30, {"message": "asked to stop", "step": 7})
        story.done.append("t1 exits 30")
        wait_for(lambda: story.stage.job("t1")["status"].get("failed"), "the Job controller to notice")
        other.api.delete(f"{other.runs}/other", {"propagationPolicy": "Background"})
        wait_for(lambda: "other-p1" not in other.job_names(), "the other run to go unseen")
        own.compact_etcd()
        own.restart_apiserver()
        proxy.mend()
        wait_for(lambda: proxy.gone > 0, "a watch that is too late", seconds=90)
        story.to_the_end(180).check()


def test_it_waits_for_its_definition(own: ControlPlane, place: str, tmp_path: Path) -> None:
    """Started before the CustomResourceDefinition is there, the same process begins when it comes."""
    own.api.delete(CRD)
    wait_for(lambda: own.api.find(CRD) is None, "the definition to go")
    process = OperatorProcess(own.operator_kubeconfig, tmp_path / "operator.log", namespaces=[place])
    try:
        wait_for(lambda: "not listed" in process.server.log.read_text(), "its first try", detail=process.server.tail)
        assert (process.probe("healthz"), process.probe("readyz")) == (200, 503)
        own.api.create(CRD.rpartition("/")[0], definition())
        established(own)
        process.ready()
        Story(Stage(own.api, place), SIMPLE).create().to_the_end().check()
        assert process.stop(30) == 0
        assert process.stacks() == []
    finally:
        process.kill()
        if own.api.find(CRD) is None:
            own.api.create(CRD.rpartition("/")[0], definition())
            established(own)


# --- resources that no schema has checked ---

LOOSE: Object = {"x-kubernetes-preserve-unknown-fields": True}


def loose() -> Object:
    """The definition as somebody might have installed it once: no schema, no rules."""
    found = definition()
    (version,) = found["spec"]["versions"]
    schema = {"type": "object", "properties": {"spec": LOOSE, "status": {"type": "object", **LOOSE}}}
    version["schema"]["openAPIV3Schema"] = schema
    return found


def spec(**blocks: Any) -> Object:
    found = {**copy.deepcopy(SPEC), **blocks}
    return {name: block for name, block in found.items() if block is not None}


BAD_SPECS: dict[str, Any] = {
    "no-spec": ...,
    "null": None,
    "text": "hf://google/gemma-2-2b",
    "number": 7,
    "list": [SPEC],
    "empty": {},
    "unknown-field": spec(surprise={"deep": [1, {"x": None}]}),
    "no-model": spec(model=None),
    "model-is-text": spec(model="hf://google/gemma-2-2b"),
    "uri-is-number": spec(model={"uri": 7}),
    "uri-without-scheme": spec(model={"uri": "google/gemma"}),
    "two-accelerators": spec(accelerator={"gpu": {"type": "nvidia-l4"}, "cpu": {}}),
    "no-accelerator": spec(accelerator={}),
    "negative": spec(training={"maxSteps": -1}),
    "huge": spec(training={"maxSteps": 10**30}),
    "fraction": spec(training={"maxSteps": 1.5}),
    "odd-duration": spec(limits={"deadline": "soon"}),
    "duration-is-number": spec(limits={"deadline": 90}),
    "brace": spec(dataset={"uri": "gs://b/x.jsonl", "text": {"template": "{quote"}}),
    "two-formats": spec(dataset={"uri": "gs://b/x", "text": {"template": "{a}"}, "chat": {"messages": "m"}}),
    "qlora-and-lora": spec(qlora={}, lora={}),
    "samples": spec(samples={"prompts": "one"}),
    "env": spec(pod={"env": {"A": "1"}}),
    "labels": spec(pod={"labels": ["a"]}),
    "zero-byte": spec(output={"uri": "gs://bucket/\u0000"}),
    "0-begins-with-a-digit": spec(),
    "with.dots": spec(),
    "long-" + "x" * 60: spec(),
    "very-long-" + "x" * 200: spec(),
}
ODD_STATUSES: dict[str, Any] = {
    "conditions-text": {"conditions": "none"},
    "conditions-odd": {"conditions": [{"type": 7}, "x", None]},
    "attempts-dict": {"attempts": {"1": "x"}},
    "attempts-odd": {"attempts": [{"number": "one"}, 3]},
    "counters": {"counters": {"attempts": "many"}, "timers": [], "plan": "big"},
    "trainer": {"progress": [1, 2], "samples": "x", "artifacts": 3, "checkpoint": None},
    "everything": dict.fromkeys(("phase", "reason", "message", "summary", "prepare", "job", "budgetBase"), 7),
}


@pytest.fixture
def unchecked(own: ControlPlane) -> Iterator[ControlPlane]:
    """The same control plane while its definition checks nothing."""
    _replace(own, loose())
    yield own
    _replace(own, definition())


def _replace(own: ControlPlane, document: Object) -> None:
    document["metadata"]["resourceVersion"] = own.api.get(CRD)["metadata"]["resourceVersion"]
    own.api.call("PUT", CRD, document)


def _create(stage: Stage, body: Any) -> bool:
    """Whether the API server takes it by now; a new schema takes a moment."""
    document: Object = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": stage.name}}
    try:
        stage.api.create(stage.runs, document if body is ... else {**document, "spec": body})
    except ApiError as error:
        if error.status in (400, 422):
            return False
        raise
    return True


def test_resources_that_no_schema_has_checked(
    unchecked: ControlPlane, place: str, operator: Callable[..., OperatorProcess]
) -> None:
    """Each is answered with Accepted=False in words; the operator lives on and serves a good one."""
    process = operator()
    for name, body in BAD_SPECS.items():
        stage = Stage(unchecked.api, place, name)
        wait_for(lambda stage=stage, body=body: _create(stage, body), f"{name} to be taken")  # type: ignore[misc]
    for name in BAD_SPECS:
        stage = Stage(unchecked.api, place, name)
        stage.wait(lambda now: now.get("phase") == "Failed", f"{name} to be refused")
        accepted = stage.condition("Accepted")
        assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec"), (name, accepted)
        assert "spec" in accepted["message"] or "metadata.name" in accepted["message"], (name, accepted)
        assert stage.condition("Finished")["status"] == "True"
        assert stage.status["remedy"], name
    assert Stage(unchecked.api, place).job_names() == []
    assert 'outcome="error"' not in process.metrics(), process.server.tail()
    Story(Stage(unchecked.api, place), SIMPLE).create().to_the_end()
    # The real schema comes back while they exist: their status may be refused, but nothing breaks.
    _replace(unchecked, definition())
    for name in BAD_SPECS:
        body = {"metadata": {"annotations": {names.ANNOTATION_RETRY: "1"}}}
        with contextlib.suppress(ApiError):  # some are refused as a whole now, also for a label
            unchecked.api.patch(f"{Stage(unchecked.api, place).runs}/{name}", body)
    good = Stage(unchecked.api, place, "good")
    good.create()
    good.job("p1")


def test_statuses_that_no_schema_has_checked(
    unchecked: ControlPlane, place: str, operator: Callable[..., OperatorProcess]
) -> None:
    """What cannot be read counts as absent: the run begins, and the status is readable again."""
    for name, status in ODD_STATUSES.items():
        stage = Stage(unchecked.api, place, name)
        wait_for(lambda stage=stage: _create(stage, spec(output={"uri": f"gs://b/{stage.name}"})), name)  # type: ignore[misc]

        def written(stage: Stage = stage, status: Any = status) -> bool:
            answer = unchecked.api.patch(f"{stage.runs}/{stage.name}/status", {"status": status})
            return json.dumps(answer.get("status"), sort_keys=True) != "null"

        wait_for(written, f"the status of {name}")
    process = operator()
    for name in ODD_STATUSES:
        stage = Stage(unchecked.api, place, name)
        stage.job("p1")
        stage.wait(lambda now: now.get("phase") == "Preparing", f"{name} to prepare")
        assert stage.condition("Accepted")["status"] == "True"
    assert 'outcome="error"' not in process.metrics(), process.server.tail()
