"""What an installation allows its users to name, on the real API server."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from gemmatune_api import names
from tests.support import chart
from tests.support.api import MERGE, ApiError, Object
from tests.support.controlplane import ControlPlane
from tests.support.play import SPEC
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster
RELEASE = "allowing"
VALUES: Object = {
    "allowed.images": ["registry.example.com/ours/", "europe-docker.pkg.dev/my-project", "quay.io/tuning/trainer:1"],
    "allowed.buckets": ["ours"],
    "allowed.accelerators": ["nvidia-l4", "tpu-v5-lite-podslice"],
}
SOUND: Object = {
    **SPEC,
    "model": {"uri": "gs://ours/models/gemma"},
    "dataset": {"uri": "hf://Abirate/english_quotes", "text": {"template": "{quote}"}},
    "output": {"uri": "gs://ours"},
    "accelerator": {"gpu": {"type": "nvidia-l4"}},
    "pod": {"image": "registry.example.com/ours/trainer:1"},
}


@pytest.fixture(scope="module")
def create(crd: ControlPlane, make_namespace: Callable[..., str]) -> Callable[..., Object]:
    """Creates a run in a namespace where the policy is in force: `create("name", {"output": {...}})`."""
    namespace = make_namespace()
    documents = chart.render({**VALUES, "namespaces": [namespace]}, release=RELEASE)
    policies = [d for d in documents if "Policy" in d["kind"] and d["metadata"]["name"].endswith("-allowed")]
    assert len(policies) == 2, "the policy and its binding"
    chart.apply(crd, policies)
    path = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}"

    def make(name: str, changes: Object | None = None, **query: str) -> Object:
        spec = {**copy.deepcopy(SOUND), **(changes or {})}
        document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": name}, "spec": spec}
        made: Object = crd.api.call("POST", path, document, **query)
        return made

    def in_force() -> bool:
        try:
            make("probe", {"output": {"uri": "gs://theirs/x"}}, dryRun="All")
        except ApiError as error:
            return "gs://theirs/x is in no bucket" in str(error)
        return False

    wait_for(in_force, "the policy to be in force")
    assert not warnings(crd, policies[0])
    return make


def warnings(crd: ControlPlane, policy: Object) -> Any:
    """What the API server's type check says of a policy's expressions."""
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
    found = f"{path}/{policy['metadata']['name']}"
    wait_for(lambda: "typeChecking" in crd.api.get(found).get("status", {}), "the type check")
    return crd.api.get(found)["status"]["typeChecking"].get("expressionWarnings")


def test_what_is_listed_is_accepted(create: Callable[..., Object]) -> None:
    create("listed")
    create("slice", {"accelerator": {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x4"}}, "backend": "xla"})
    create("laptop", {"accelerator": {"cpu": {}}})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"output": {"uri": "gs://ours-not/x"}},
            "gs://ours-not/x is in no bucket that is allowed here; these are: ours",
        ),
        ({"model": {"uri": "gs://theirs/model"}}, "gs://theirs/model is in no bucket"),
        ({"dataset": {**SOUND["dataset"], "uri": "gs://theirs/d.jsonl"}}, "gs://theirs/d.jsonl is in no bucket"),
        ({"dataset": {**SOUND["dataset"], "evalUri": "gs://theirs/e.jsonl"}}, "gs://theirs/e.jsonl is in no bucket"),
        ({"pod": {"image": "registry.example.com/theirs:1"}}, "spec.pod.image: registry.example.com/theirs:1 is not"),
        ({"accelerator": {"gpu": {"type": "nvidia-h100-80gb"}}}, "spec.accelerator: nvidia-h100-80gb is not allowed"),
    ],
)
def test_what_is_not_listed_is_refused(create: Callable[..., Object], changes: Any, words: str) -> None:
    with pytest.raises(ApiError) as refused:
        create("refused", changes)
    assert refused.value.status == 403
    assert words in refused.value.body["message"]


@pytest.mark.parametrize(
    ("image", "accepted"),
    [
        ("europe-docker.pkg.dev/my-project/trainers/torch:1", True),
        ("europe-docker.pkg.dev/my-project", True),
        ("europe-docker.pkg.dev/my-project:1", True),
        ("europe-docker.pkg.dev/my-project@sha256:0f", True),
        ("europe-docker.pkg.dev/my-project-evil/t:1", False),
        ("europe-docker.pkg.dev/my-project:5000/t:1", False),
        ("europe-docker.pkg.dev/my-project@evil/t", False),
        ("europe-docker.pkg.dev/other/europe-docker.pkg.dev/my-project/t:1", False),
        ("quay.io/tuning/trainer:1", True),
        ("quay.io/tuning/trainer:1@sha256:0f", True),
        ("quay.io/tuning/trainer:10", False),
        ("quay.io/tuning/trainer", False),
        ("registry.example.com/ours", False),
        ("registry.example.com/ours-not/t:1", False),
    ],
)
def test_an_image_is_allowed_by_whole_names(create: Callable[..., Object], image: str, accepted: bool) -> None:
    """The project my-project-evil may be anybody's."""
    words = f"spec.pod.image: {image} is not allowed here; images and folders that are: registry.example.com/ours/, "
    with nullcontext() if accepted else pytest.raises(ApiError, match=re.escape(words)):
        create("image", {"pod": {"image": image}}, dryRun="All")


def test_a_run_that_exists_may_be_labelled_but_not_led_astray(create: Callable[..., Object], crd: ControlPlane) -> None:
    meta = create("existing")["metadata"]
    path = f"/apis/{names.API_VERSION}/namespaces/{meta['namespace']}/{names.PLURAL}/existing"
    crd.api.patch(path, {"metadata": {"labels": {"team": "a"}}}, MERGE)
    with pytest.raises(ApiError, match="is in no bucket"):
        crd.api.patch(path, {"spec": {"output": {"uri": "gs://theirs/run"}}}, MERGE)


def test_a_shortened_list_stops_no_run_that_exists(crd: ControlPlane, make_namespace: Callable[..., str]) -> None:
    """Its owner can suspend it, resume it and give it limits; what changes is checked."""
    namespace = make_namespace()
    path = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}"
    head = {"apiVersion": names.API_VERSION, "kind": names.KIND}
    crd.api.create(path, {**head, "metadata": {"name": "before"}, "spec": copy.deepcopy(SOUND)})
    rules: Object = {
        "images": ["registry.example.com/new/"],
        "buckets": ["new"],
        "accelerators": ["nvidia-h100-80gb"],
        "maxCost": 5,
    }
    prices = {"nvidia-h100-80gb": 10}
    rendered = chart.render({"allowed.byNamespace": {namespace: rules}, "prices": prices}, release="shortened")
    policies = [d for d in rendered if d["metadata"]["name"].endswith(f"-allowed-{namespace}")]
    chart.apply(crd, policies)
    assert not warnings(crd, policies[0])

    def answer(changes: Object) -> str:
        try:
            crd.api.patch(f"{path}/before", {"spec": changes}, MERGE, dryRun="All")
        except ApiError as error:
            return str(error.body["message"])
        return ""

    wait_for(lambda: "is in no bucket" in answer({"model": {"uri": "gs://theirs/model"}}), "the policy to be in force")
    crd.api.patch(f"{path}/before", {"spec": {"suspend": True}}, MERGE)
    assert answer({"limits": {"deadline": "2h"}}) == ""
    assert answer({"limits": {"maxCost": 4}}) == ""
    assert "of at most 5" in answer({"limits": {"maxCost": 6}})
    assert "spec.pod.image: registry.example.com/ours/trainer:2 is not" in answer(
        {"pod": {"image": "registry.example.com/ours/trainer:2"}}
    )
    assert "spec.accelerator: nvidia-l4 is not" not in answer({"accelerator": {"gpu": {"count": 2}}})
    assert "of at most 5" in answer({"accelerator": {"gpu": {"count": 2}}}), "another accelerator needs a budget"
    assert answer({"accelerator": {"gpu": {"count": 2}}, "limits": {"maxCost": 4}}) == ""
    assert "spec.accelerator: nvidia-a100-80gb is not" in answer(
        {"accelerator": {"gpu": {"type": "nvidia-a100-80gb"}}, "limits": {"maxCost": 4}}
    )
    crd.api.patch(f"{path}/before", {"spec": {"suspend": False}}, MERGE)


def test_a_namespace_may_have_rules_and_a_budget_of_its_own(
    crd: ControlPlane, make_namespace: Callable[..., str]
) -> None:
    ours, theirs = make_namespace(), make_namespace()
    values: Object = {"allowed.byNamespace": {ours: {"buckets": ["ours"], "maxCost": 5}}, "prices": {"nvidia-l4": 1}}
    policies = [d for d in chart.render(values, release="budget") if d["metadata"]["name"].endswith(f"-allowed-{ours}")]
    assert [policy["kind"] for policy in policies] == [
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    ]
    chart.apply(crd, policies)

    def answer(namespace: str, **changes: Any) -> str:
        path = f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}"
        document = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "probe"}}
        try:
            crd.api.call("POST", path, {**document, "spec": {**copy.deepcopy(SOUND), **changes}}, dryRun="All")
        except ApiError as error:
            return str(error.body["message"])
        return ""

    wait_for(lambda: "spec.limits.maxCost: a run must have one here, of at most 5" in answer(ours), "the policy")
    assert "of at most 5" in answer(ours, limits={"maxCost": 5.5})
    assert answer(ours, limits={"maxCost": 5}) == ""
    assert answer(ours, limits={"maxCost": 0.5}) == ""
    assert "is in no bucket" in answer(ours, limits={"maxCost": 5}, output={"uri": "gs://theirs/x"})
    assert answer(theirs, output={"uri": "gs://theirs/x"}) == "", "the rules are those of one namespace"
