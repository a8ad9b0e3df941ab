"""Who may write what of a GemmaFineTune's status: the chart's policy, under pod-bound tokens of the real API server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from gemmatune_api import names
from gemmatune_api.names import Role, job_name
from gemmatune_operator.manifests import access
from tests.support import chart
from tests.support.api import APPLY, MERGE, Api, ApiError, Object
from tests.support.controlplane import ControlPlane
from tests.support.play import SPEC
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster
LONGEST = "x" * names.NAME_MAX_LENGTH
HIGHEST = 99_999_999
"""The highest number of an attempt at which names of pods are whole, for a name of 45 characters."""
FIELDS: Object = {
    "progress": {"step": 3, "totalSteps": 10, "stepText": "3/10", "loss": 1.25},
    "checkpoint": {"step": 2, "uri": "gs://bucket/a/checkpoints/step-00000002"},
    "artifacts": {"adapter": "gs://bucket/a/adapter"},
    "samples": [{"prompt": "p", "before": "b", "after": "a"}],
}
OPERATORS: Object = {
    "phase": "Training",
    "conditions": [
        {
            "type": "Accepted",
            "status": "True",
            "reason": "Valid",
            "message": "qlora",
            "lastTransitionTime": "2026-03-01T12:00:00Z",
        }
    ],
    "attempts": [{"number": 1, "job": "a-t1"}, {"number": 2, "job": "a-t2"}],
    "counters": {"attempts": 2},
}


@dataclass
class Theatre:
    """A namespace with runs, their Jobs, and pods that the Job controller made; nothing runs in them."""

    control_plane: ControlPlane
    namespace: str

    def path(self, run: str = "") -> str:
        base = f"/apis/{names.API_VERSION}/namespaces/{self.namespace}/{names.PLURAL}"
        return f"{base}/{run}" if run else base

    def run(self, name: str, job: str = "", **status: Any) -> None:
        """A resource whose status.job is `job`; with neither it has no status."""
        document = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name},
            "spec": {**SPEC, "output": {"uri": f"gs://bucket/{name}"}},
        }
        self.api.create(self.path(), document)
        wanted = {**status, **({"job": job} if job else {})}
        if wanted:
            self.api.patch(f"{self.path(name)}/status", {"status": wanted})

    def pod(self, job: str, index: int | None = None, account: str = names.TRAINER_SERVICE_ACCOUNT) -> Object:
        """A pod of a Job, which is made where it is missing; an index makes an Indexed Job of two pods."""
        jobs = f"/apis/batch/v1/namespaces/{self.namespace}/jobs"
        if self.api.find(f"{jobs}/{job}") is None:
            container = {"name": "trainer", "image": "x"}
            pod = {"restartPolicy": "Never", "serviceAccountName": account, "containers": [container]}
            spec: Object = {"backoffLimit": 0, "template": {"spec": pod}}
            if index is not None:
                spec |= {"completionMode": "Indexed", "completions": 2, "parallelism": 2}
            self.api.create(jobs, {"metadata": {"name": job}, "spec": spec})
        wanted = None if index is None else str(index)

        def made() -> Object | None:
            selector = f"batch.kubernetes.io/job-name={job}"
            found = self.api.get(f"/api/v1/namespaces/{self.namespace}/pods", labelSelector=selector)["items"]
            key = "batch.kubernetes.io/job-completion-index"
            return next((p for p in found if p["metadata"].get("annotations", {}).get(key) == wanted), None)

        pod_made = wait_for(made, f"pod {index} of {job}")
        assert pod_made is not None
        return pod_made

    @property
    def api(self) -> Api:
        return self.control_plane.api

    def as_pod(self, pod: Object) -> Api:
        """The API server as the pod's container reaches it."""
        account = pod["spec"]["serviceAccountName"]
        return self.control_plane.api_with_token(chart.token(self.control_plane, self.namespace, account, pod))

    def as_account(self, account: str) -> Api:
        """The API server with a token of an account that is bound to no pod."""
        return self.control_plane.api_with_token(chart.token(self.control_plane, self.namespace, account))

    def grant(self, account: str) -> None:
        """What the operator makes for an account, made by the administrator."""
        for obj in access.objects(self.namespace, account):
            group = "api/v1" if obj["kind"] == "ServiceAccount" else f"apis/{obj['apiVersion']}"
            plural = f"{obj['kind'].lower()}s"
            where = f"/{group}/namespaces/{self.namespace}/{plural}"
            if self.api.find(f"{where}/{obj['metadata']['name']}") is None:
                self.api.create(where, obj)

    def account(self, name: str) -> None:
        """An account without any right."""
        self.api.create(f"/api/v1/namespaces/{self.namespace}/serviceaccounts", {"metadata": {"name": name}})

    def status(self, run: str) -> Object:
        found: Object = self.api.get(self.path(run)).get("status", {})
        return found

    def apply(self, api: Api, run: str, status: Object | None = None) -> Object:
        """Server-side apply of status fields, as the trainer does it."""
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": run},
            "status": FIELDS if status is None else status,
        }
        query = {"fieldManager": names.FIELD_MANAGER_TRAINER, "force": "true"}
        return api.patch(f"{self.path(run)}/status", body, APPLY, **query)

    def merge(self, api: Api, run: str, status: Object | None) -> Object:
        """A merge patch of the status."""
        return api.patch(f"{self.path(run)}/status", {"status": status}, MERGE)


def denied(call: Callable[[], object]) -> str:
    """The words of a refusal with 403."""
    with pytest.raises(ApiError) as caught:
        call()
    assert caught.value.status == 403, caught.value
    assert caught.value.body["reason"] == "Forbidden"
    return str(caught.value.body["message"])


@pytest.fixture(scope="module")
def theatre(crd: ControlPlane, make_namespace: Callable[..., str]) -> Theatre:
    """Run `a` in its second attempt, beside others whose names are nearly the same; the policy is in force."""
    found = Theatre(crd, make_namespace())
    found.grant(names.TRAINER_SERVICE_ACCOUNT)
    found.run("a", "a-t2", **OPERATORS)
    found.run("a-b", "a-b-t1", phase="Training")
    found.run("fresh")
    unbound = found.as_account(names.TRAINER_SERVICE_ACCOUNT)

    def in_force() -> bool:
        try:
            found.apply(unbound, "fresh", {"progress": {"step": 1}})
        except ApiError as error:
            return "belongs to no pod" in str(error)
        return False

    wait_for(in_force, "the admission policy to be in force")
    return found


@pytest.fixture(scope="module")
def trainer(theatre: Theatre) -> Api:
    """The trainer's pod of run a's current attempt."""
    return theatre.as_pod(theatre.pod("a-t2"))


# --- allowed ---


def test_a_trainer_writes_its_four_fields(theatre: Theatre, trainer: Api) -> None:
    theatre.apply(trainer, "a")
    assert theatre.status("a") == {**OPERATORS, "job": "a-t2", **FIELDS} | {
        "counters": theatre.status("a")["counters"]
    }, "the operator's fields are as they were"
    theatre.merge(trainer, "a", {"progress": {"step": 4}})
    theatre.merge(trainer, "a", {"samples": None})
    theatre.apply(trainer, "a")
    assert trainer.get(theatre.path("a"))["status"]["progress"]["step"] == 3, "and reads its resource"


def test_the_operators_fields_may_be_sent_back_unchanged(theatre: Theatre, trainer: Api) -> None:
    theatre.merge(trainer, "a", {**OPERATORS, "progress": {"step": 5}})
    assert theatre.status("a")["progress"]["step"] == 5


def test_the_first_pod_of_an_indexed_job(theatre: Theatre) -> None:
    """Pod 0 reports for all; the others have nothing to write."""
    theatre.run("nodes", "nodes-t1", phase="Training")
    first, second = theatre.pod("nodes-t1", 0), theatre.pod("nodes-t1", 1)
    theatre.apply(theatre.as_pod(first), "nodes")
    assert theatre.status("nodes")["progress"]["step"] == 3
    words = denied(lambda: theatre.apply(theatre.as_pod(second), "nodes"))
    assert f"pod {second['metadata']['name']} may not write the status of nodes" in words
    assert "its status.job is nodes-t1, and only the first pod of that Job may" in words


def test_a_merge_pod_while_the_status_names_its_job(theatre: Theatre) -> None:
    job = job_name("merging", Role.MERGE, 1)
    theatre.run("merging", job, phase="Merging")
    theatre.apply(theatre.as_pod(theatre.pod(job)), "merging", {"artifacts": {"merged": "gs://bucket/merged"}})
    assert theatre.status("merging")["artifacts"]["merged"] == "gs://bucket/merged"


@pytest.mark.parametrize("index", [None, 0], ids=["one-pod", "indexed"])
def test_the_longest_names(theatre: Theatre, index: int | None) -> None:
    """45 characters and eight digits: the Job controller uses the whole name of the Job in the names of its pods."""
    run = LONGEST if index is None else f"{LONGEST[:-1]}y"
    job = job_name(run, Role.TRAIN, HIGHEST)
    theatre.run(run, job, phase="Training")
    pod = theatre.pod(job, index)
    assert pod["metadata"]["name"][:-6] == (job if index is None else f"{job}-0")
    theatre.apply(theatre.as_pod(pod), run)
    assert theatre.status(run)["progress"]["step"] == 3
    if index is not None:
        denied(lambda: theatre.apply(theatre.as_pod(theatre.pod(job, 1)), run))


def test_a_name_that_would_be_cut_is_denied(theatre: Theatre) -> None:
    """From 58 characters on a pod's name holds a part of its Job's: the rule denies rather than guesses."""
    job = job_name(LONGEST, Role.TRAIN, 10_000_000_000)
    theatre.run("cut", job, phase="Training")
    pod = theatre.pod(job)
    assert not pod["metadata"]["name"].startswith(f"{job}-")
    assert "only the first pod of that Job may" in denied(lambda: theatre.apply(theatre.as_pod(pod), "cut"))


def test_resources_with_longer_names_do_not_exist(theatre: Theatre) -> None:
    with pytest.raises(ApiError, match="45"):
        theatre.run(f"{LONGEST}x")


def test_an_account_that_the_resource_names(theatre: Theatre) -> None:
    """It gets a RoleBinding of its own, and the same rule holds for its pods."""
    theatre.account("science")
    theatre.grant("science")
    theatre.run("named", "named-t1", phase="Training")
    pod = theatre.pod("named-t1", account="science")
    theatre.apply(theatre.as_pod(pod), "named")
    assert theatre.status("named")["progress"]["step"] == 3
    assert "may not write the status of a" in denied(lambda: theatre.apply(theatre.as_pod(pod), "a"))
    assert "this token belongs to no pod" in denied(lambda: theatre.apply(theatre.as_account("science"), "named"))


def test_an_account_with_the_longest_name(theatre: Theatre) -> None:
    """The name of its RoleBinding is longer than names of most kinds may be, and is accepted."""
    account = ".".join(["y" * 50] * 4 + ["z" * 49])
    assert len(account) == 253
    theatre.account(account)
    theatre.grant(account)
    assert chart.allowed(
        theatre.control_plane,
        f"system:serviceaccount:{theatre.namespace}:{account}",
        "get",
        names.PLURAL,
        theatre.namespace,
    )


# --- denied ---


@pytest.mark.parametrize("run", ["a-b", "fresh"])
def test_another_resource(theatre: Theatre, trainer: Api, run: str) -> None:
    before = theatre.status(run)
    words = denied(lambda: theatre.apply(trainer, run))
    assert f"may not write the status of {run}" in words
    assert ("its status.job is empty" if run == "fresh" else "its status.job is a-b-t1") in words
    assert theatre.status(run) == before


def test_a_run_whose_name_begins_like_another(theatre: Theatre) -> None:
    """The pod of a-b-t1 is none of a's, though its name begins so; nor is the pod of a Job called like a's."""
    denied(lambda: theatre.apply(theatre.as_pod(theatre.pod("a-b-t1")), "a"))
    denied(lambda: theatre.apply(theatre.as_pod(theatre.pod("a-t22")), "a"))
    denied(lambda: theatre.apply(theatre.as_pod(theatre.pod("a-t2-t1")), "a"))


@pytest.mark.parametrize(
    ("status", "named"),
    [
        ({"phase": "Succeeded"}, "phase"),
        ({"job": "a-t1"}, "job"),
        ({"attempts": [{"number": 3, "job": "a-t3"}], "progress": {"step": 4}}, "attempts"),
        ({"counters": {"retries": 0}, "message": "m"}, "counters, message"),
        ({"phase": None}, "phase"),
        ({"conditions": None, "progress": {"step": 4}}, "conditions"),
        (None, "attempts, conditions, counters, job, phase"),
    ],
    ids=["changed", "job", "beside-progress", "added", "removed", "removed-beside-progress", "everything-removed"],
)
def test_the_operators_fields(theatre: Theatre, trainer: Api, status: Object | None, named: str) -> None:
    before = theatre.status("a")
    words = denied(lambda: theatre.merge(trainer, "a", status))
    told = words.rpartition("this request changes ")[2]
    assert sorted(told.split(", ")) == named.split(", "), words
    assert theatre.status("a") == before
    if status and None not in status.values():
        denied(lambda: theatre.apply(trainer, "a", {**FIELDS, **status}))


def test_only_the_status_is_written(theatre: Theatre, trainer: Api) -> None:
    """Through /status nothing else is stored; everywhere else RBAC says no."""
    before = theatre.api.get(theatre.path("a"))
    change: Object = {
        "metadata": {"labels": {"x": "y"}, "annotations": {"x": "y"}, "finalizers": ["example.com/x"]},
        "spec": {"suspend": True},
    }
    trainer.patch(f"{theatre.path('a')}/status", {**change, "status": {"progress": {"step": 6}}})
    after = theatre.api.get(theatre.path("a"))
    assert after["status"]["progress"]["step"] == 6
    assert after["spec"] == before["spec"]
    assert {k: v for k, v in after["metadata"].items() if k in change["metadata"]} == {}
    resource = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "new"}, "spec": SPEC}
    for call in (
        lambda: trainer.patch(theatre.path("a"), {"spec": {"suspend": True}}),
        lambda: trainer.patch(theatre.path("a"), {"metadata": {"labels": {"x": "y"}}}),
        lambda: trainer.call("PUT", f"{theatre.path('a')}/status", after),
        lambda: trainer.delete(theatre.path("a")),
        lambda: trainer.create(theatre.path(), resource),
        lambda: trainer.get(theatre.path()),
        lambda: trainer.get(f"/api/v1/namespaces/{theatre.namespace}/secrets"),
    ):
        assert "cannot" in denied(call)


def test_an_older_attempts_pod(theatre: Theatre) -> None:
    words = denied(lambda: theatre.apply(theatre.as_pod(theatre.pod("a-t1")), "a"))
    assert "its status.job is a-t2" in words


def test_a_preparations_pod(theatre: Theatre) -> None:
    denied(lambda: theatre.apply(theatre.as_pod(theatre.pod("a-p1")), "a"))
    theatre.run("preparing", phase="Preparing", prepare={"number": 1, "job": "preparing-p1"})
    denied(lambda: theatre.apply(theatre.as_pod(theatre.pod("preparing-p1")), "preparing"))


def test_a_token_without_a_pod(theatre: Theatre) -> None:
    words = denied(lambda: theatre.apply(theatre.as_account(names.TRAINER_SERVICE_ACCOUNT), "a"))
    assert "writes the status of a GemmaFineTune only with the token of a trainer pod" in words
    assert f"system:serviceaccount:{theatre.namespace}:{names.TRAINER_SERVICE_ACCOUNT}" in words


def test_an_account_of_the_namespace_with_wide_rights(theatre: Theatre) -> None:
    """Whatever RBAC gives an account of the namespace, the status of runs is the operator's and the trainers'."""
    theatre.account("wide")
    binding = {
        "metadata": {"name": "wide"},
        "roleRef": {"apiGroup": access.RBAC, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "wide", "namespace": theatre.namespace}],
    }
    theatre.api.create(f"/apis/{access.RBAC}/v1/namespaces/{theatre.namespace}/rolebindings", binding)
    wide = theatre.as_account("wide")
    user = f"system:serviceaccount:{theatre.namespace}:wide"
    wait_for(lambda: chart.allowed(theatre.control_plane, user, "patch", names.PLURAL, theatre.namespace), "its rights")
    assert "belongs to no pod" in denied(lambda: theatre.merge(wide, "a", {"phase": "Succeeded"}))
    wide.patch(theatre.path("fresh"), {"metadata": {"labels": {"team": "x"}}})


# --- not bound ---


def test_the_operator_is_not_bound(theatre: Theatre, crd: ControlPlane) -> None:
    """Also in its own namespace, where it is a ServiceAccount of the resource's namespace."""
    operator = crd.api_with_token(chart.token(crd, chart.NAMESPACE, chart.OPERATOR))
    own = Theatre(crd, chart.NAMESPACE)
    own.run("policy-test")
    try:
        for place, run in ((theatre, "fresh"), (own, "policy-test")):
            place.merge(operator, run, {"phase": "Pending", "message": "by the operator"})
            assert place.status(run)["message"] == "by the operator"
            place.merge(operator, run, None)
        own.account("neighbour")
        own.grant("neighbour")
        assert "belongs to no pod" in denied(lambda: own.merge(own.as_account("neighbour"), "policy-test", {}))
    finally:
        own.api.delete(own.path("policy-test"))


def test_an_administrator_is_not_bound(theatre: Theatre, crd: ControlPlane) -> None:
    patch = '{"status": {"message": "by hand"}}'
    flags = ("-n", theatre.namespace, "--subresource=status", "--type=merge", "-p")
    crd.kubectl("patch", "gft", "fresh", *flags, patch)
    assert theatre.status("fresh")["message"] == "by hand"
    crd.kubectl("patch", "gft", "fresh", *flags, '{"status": {"message": null}}')


def test_the_policys_types_are_checked_without_a_warning(theatre: Theatre) -> None:
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/gemmatune-operator-status"

    def checked() -> Object | None:
        found = theatre.api.get(path)
        status: Object = found.get("status", {})
        return status if status.get("observedGeneration") == found["metadata"]["generation"] else None

    status = wait_for(checked, "the policy to be checked")
    assert status is not None
    assert status.get("typeChecking", {}) == {}
