"""The rules of manifests for shapes and capacity, each by itself: what a mode, a queue or a second pod changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_api import accelerators, gke
from gemmatune_api.accelerators import Machine
from gemmatune_api.layout import Layout
from gemmatune_api.names import LABEL_ATTEMPT, LABEL_ROLE, LABEL_RUN_UID
from gemmatune_api.placement import LimitsSpec
from gemmatune_api.quantity import parse
from gemmatune_api.spec import GemmaFineTune
from gemmatune_api.status import Overrides
from gemmatune_operator import options
from gemmatune_operator.manifests import capacity, gpu, launch, resources, tpu
from gemmatune_operator.manifests.quantities import GI
from gemmatune_operator.settings import Settings
from tests.unit.test_manifests import Object, container, plan, resource, train

DAY = 24 * 3600
LIMITS = {"deadline": "2h", "pendingDeadline": "30m"}


def with_labels(found: GemmaFineTune, labels: dict[str, str]) -> GemmaFineTune:
    return found.model_copy(update={"metadata": found.metadata.model_copy(update={"labels": labels})})


# --- capacity ---


@pytest.mark.parametrize(
    ("mode", "selector", "taint"),
    [
        ("onDemand", {}, None),
        ("spot", {"cloud.google.com/gke-spot": "true"}, "cloud.google.com/gke-spot"),
        ("flexStart", {"cloud.google.com/gke-flex-start": "true"}, "cloud.google.com/gke-flex-start"),
        (
            "reservation",
            {"cloud.google.com/reservation-name": "r", "cloud.google.com/reservation-affinity": "specific"},
            None,
        ),
    ],
)
def test_each_mode_selects_its_nodes_and_no_others(mode: str, selector: dict[str, str], taint: str | None) -> None:
    wanted = {"mode": mode, **({"reservation": "r"} if mode == "reservation" else {})}
    found = capacity.capacity(resource(provisioning=wanted), mode)
    assert found.node_selector == selector
    expected = [{"key": taint, "operator": "Equal", "value": "true", "effect": "NoSchedule"}] if taint else []
    assert found.tolerations == expected


def test_a_fallback_forgets_the_spot_selector() -> None:
    assert capacity.capacity(resource(provisioning={"mode": "spot"}), "onDemand").node_selector == {}


def test_a_shared_reservation_names_its_project() -> None:
    found = resource(provisioning={"mode": "reservation", "reservation": "other-project/block-7"})
    assert capacity.capacity(found, "reservation").node_selector == {
        gke.RESERVATION_NAME: "block-7",
        gke.RESERVATION_PROJECT: "other-project",
        gke.RESERVATION_AFFINITY: "specific",
    }


def test_the_grace_period_is_short_only_where_more_has_no_effect() -> None:
    graces = {mode: capacity.capacity(resource(), mode).grace for mode in ("spot", "onDemand", "flexStart")}
    assert graces == {"spot": 30, "onDemand": 120, "flexStart": 120}


@pytest.mark.parametrize(
    ("mode", "expected"), [("onDemand", 7200 + 1800 + 60), ("spot", 9060), ("flexStart", None), ("reservation", None)]
)
def test_a_wait_without_end_has_no_backstop(mode: str, expected: int | None) -> None:
    assert capacity.active_deadline(resource(limits=LIMITS), mode) == expected


# --- Kueue ---


def test_the_queue_is_a_label_of_the_attempts_job() -> None:
    job = train(resource(scheduling={"queueName": "research"}))
    assert job["metadata"]["labels"][gke.KUEUE_QUEUE] == "research"
    assert "suspend" not in job["spec"]
    assert gke.KUEUE_QUEUE not in job["spec"]["template"]["metadata"]["labels"]


def test_the_workload_priority_goes_from_the_resource_to_the_job_of_a_queue() -> None:
    labels = {gke.KUEUE_PRIORITY: "urgent", "team": "nlp"}
    queued = train(with_labels(resource(scheduling={"queueName": "research"}), labels))
    assert queued["metadata"]["labels"][gke.KUEUE_PRIORITY] == "urgent"
    assert "team" not in queued["metadata"]["labels"]
    assert gke.KUEUE_PRIORITY not in train(with_labels(resource(), labels))["metadata"]["labels"]


@pytest.mark.parametrize(
    ("deadline", "active", "expected"),
    [(None, 0, None), ("6h", 0, "21660"), ("6h", 3600, "18060"), ("1m", 0, "600"), ("30d", 0, "604800")],
)
def test_queued_flex_start_asks_for_the_rest_of_the_deadline(
    deadline: str | None, active: int, expected: str | None
) -> None:
    found = resource(
        status={"timers": {"activeSeconds": active}},
        scheduling={"queueName": "dws"},
        provisioning={"mode": "flexStart"},
        limits={"deadline": deadline} if deadline else {},
    )
    made = capacity.capacity(found, "flexStart")
    assert made.job_annotations.get(gke.KUEUE_MAX_RUN) == expected
    assert gke.QUEUED in [item["key"] for item in made.tolerations]
    assert capacity.capacity(found, "onDemand").job_annotations == {}


# --- how the trainer is started ---


def test_one_gpu_needs_no_launcher() -> None:
    assert container(train(resource()))["command"] == ["python", "-m", "gemmatune_trainer", "train"]


def test_the_launcher_of_one_node_meets_by_itself() -> None:
    command = launch.launcher("quotes-t1", Layout(1, 4, replicas=4), DAY)
    assert command == ["python", "-m", "gemmatune_trainer.launcher", "--per-node=4", "train"]


def test_the_launchers_of_several_nodes_meet_at_the_first_pod() -> None:
    command = launch.launcher("quotes-t2", Layout(4, 8, replicas=32), 3600)
    assert command[:3] == ["python", "-m", "gemmatune_trainer.launcher"]
    assert command[3:] == [
        "--per-node=8",
        "--nodes=4",
        "--node=$(JOB_COMPLETION_INDEX)",
        "--meet=quotes-t2-0.quotes-t2:29500",
        "--wait=3600",
        "train",
    ]


@pytest.mark.parametrize(
    ("blocks", "mode", "expected"),
    [
        ({}, "onDemand", DAY),
        ({"limits": {"pendingDeadline": "1h"}}, "spot", 3600),
        ({}, "flexStart", 7 * DAY),
        ({"scheduling": {"queueName": "q"}}, "onDemand", 7 * DAY),
    ],
)
def test_pods_wait_for_each_other_as_long_as_for_nodes(blocks: Object, mode: str, expected: int) -> None:
    found = resource(accelerator={"gpu": {"type": "nvidia-l4", "nodes": 2}}, **blocks)
    assert f"--wait={expected}" in container(train(found, provisioning=mode))["command"]


def test_without_a_bound_the_pods_wait_for_a_week() -> None:
    assert launch.longest_wait(None, unbounded=False) == launch.longest_wait(LimitsSpec(), unbounded=False) == 7 * DAY


# --- machines ---


MACHINES = [m for kind in (*accelerators.gpus(), *accelerators.tpus()) for m in kind.machines]


@given(machine=st.sampled_from(MACHINES), needed=st.integers(min_value=0, max_value=500 * GI))
def test_a_machine_can_always_give_what_is_asked_for(machine: Machine, needed: int) -> None:
    found = resources.whole(machine, needed)
    assert 0 < parse(found.requests["memory"]) == parse(found.limits["memory"]) <= machine.allocatable_memory
    assert 1 <= parse(found.requests["cpu"]) <= machine.allocatable_cpu
    assert needed <= parse(found.requests["ephemeral-storage"]) <= parse(found.limits["ephemeral-storage"])


def test_the_usual_disk_is_the_limit_where_less_is_needed() -> None:
    small, large = (resources.whole(MACHINES[0], size * GI) for size in (5, 100))
    assert small.limits["ephemeral-storage"] == "41Gi"
    assert parse(large.limits["ephemeral-storage"]) == parse(large.requests["ephemeral-storage"]) == 123 * GI


@pytest.mark.parametrize(
    ("accelerator", "name", "shared"),
    [
        ({"gpu": {"type": "nvidia-l4"}}, gke.GPU, "1Gi"),
        ({"gpu": {"type": "nvidia-h100-80gb", "count": 8}}, gke.GPU, "16Gi"),
        ({"tpu": {"type": "tpu-v6e-slice", "topology": "2x4", "chipsPerNode": 8}}, gke.TPU, "8Gi"),
        ({"tpu": {"type": "tpu-v6e-slice", "topology": "4x4"}}, gke.TPU, "4Gi"),
    ],
)
def test_shared_memory_grows_with_the_devices_of_a_pod(accelerator: Object, name: str, shared: str) -> None:
    job = train(resource(accelerator=accelerator))
    found = container(job)["resources"]
    assert found["requests"][name] == found["limits"][name]
    assert job["spec"]["template"]["spec"]["volumes"][2]["emptyDir"] == {"medium": "Memory", "sizeLimit": shared}


def test_several_processes_take_the_machine_with_enough_memory_for_all() -> None:
    def memory(host: int) -> int:
        found = resource(accelerator={"gpu": {"type": "nvidia-tesla-t4", "count": 4}})
        return int(parse(container(train(found, plan(host_memory=host * GI)))["resources"]["limits"]["memory"]))

    assert memory(8) < 60 * GI < memory(80) < 120 * GI < memory(150)


def test_an_unknown_type_gets_what_the_plan_needs() -> None:
    spec = resource(accelerator={"gpu": {"type": "nvidia-next"}}).spec
    assert spec.accelerator.gpu is not None
    found = gpu.needs(spec, spec.accelerator.gpu, Layout(1, 1, replicas=1), plan(), Overrides())
    assert found.resources.limits[gke.GPU] == "1"
    assert parse(found.resources.limits["memory"]) >= 8 * GI


# --- TPU slices ---


def test_other_attempts_of_the_same_run_are_kept_out_of_the_slice_too() -> None:
    labels = {LABEL_RUN_UID: "u", LABEL_ATTEMPT: "3", LABEL_ROLE: "train", "more": "x"}
    found = tpu.one_node_pool(labels)
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    (together,) = found["podAffinity"][required]
    assert together["labelSelector"]["matchLabels"] == {k: v for k, v in labels.items() if k != "more"}
    assert "namespaceSelector" not in together
    apart = found["podAntiAffinity"][required]
    assert {term["topologyKey"] for term in (together, *apart)} == {"cloud.google.com/gke-nodepool"}
    assert all(term["namespaceSelector"] == {} for term in apart)

    def repelled(uid: str, attempt: str, role: str) -> bool:
        pod = {LABEL_RUN_UID: uid, LABEL_ATTEMPT: attempt, LABEL_ROLE: role}
        return any(_selects(term["labelSelector"], pod) for term in apart)

    assert not repelled("u", "3", "train")
    assert repelled("u", "2", "train")
    assert repelled("v", "3", "train")
    assert not repelled("v", "3", "prepare")


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    matched = all(labels.get(key) == value for key, value in selector["matchLabels"].items())
    return matched and all(labels[item["key"]] not in item["values"] for item in selector["matchExpressions"])


def test_one_host_stays_without_affinity() -> None:
    job = train(resource(accelerator={"tpu": {"type": "tpu-v6e-slice", "topology": "2x2"}}))
    assert not job["spec"]["template"]["spec"].keys() & {"affinity", "subdomain"}


def test_who_tells_the_hosts_is_the_installations_decision() -> None:
    def names_of(settings: Settings) -> set[str]:
        found = resource(accelerator={"tpu": {"type": "tpu-v6e-slice", "topology": "4x4"}})
        return {variable["name"] for variable in container(train(found, settings=settings))["env"]}

    own = {"TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"}
    assert not names_of(options.read([], {}).settings) & own
    assert names_of(options.read(["--tpu-webhook=false"], {}).settings) >= own
    with pytest.raises(SystemExit):
        options.read(["--tpu-webhook=maybe"], {})


@pytest.mark.parametrize(
    ("backend", "image"),
    [("torch", "t:1"), ("xla", "gemmatune-trainer-xla:latest"), ("keras", "gemmatune-trainer-keras:latest")],
)
def test_each_backend_has_its_image(backend: str, image: str) -> None:
    assert Settings(image="t:1").image_of(backend) == image
