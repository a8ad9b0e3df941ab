"""The arithmetic behind the manifests: resources, machines, deadlines and credentials."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_api import defaults
from gemmatune_api.names import ENV_DATASET_TOKEN, Role
from gemmatune_api.placement import ResourceSpec
from gemmatune_api.quantity import parse
from gemmatune_api.runconfig import RunIdentity, build
from gemmatune_api.spec import GemmaFineTune
from gemmatune_api.status import Attempt, Overrides, Plan, PlanMemory
from gemmatune_operator.manifests import access, attempt, credentials, prepare
from gemmatune_operator.manifests.quantities import GI, MI, text
from gemmatune_operator.manifests.resources import CPU, DISK, MEMORY, Resources, combine
from gemmatune_operator.settings import Settings

Object = dict[str, Any]


def resource(status: Object | None = None, **spec: Any) -> GemmaFineTune:
    whole = {
        "model": {"uri": "hf://google/gemma-2-2b", "secretRef": {"name": "hf-token"}},
        "dataset": {"uri": "hf://my-org/rows", "text": {"template": "{text}"}},
        "output": {"uri": "gs://bucket/run"},
        "accelerator": {"gpu": {"type": "nvidia-l4"}},
        **spec,
    }
    metadata = {"name": "quotes", "uid": "u-1"}
    found = GemmaFineTune.model_validate({"metadata": metadata, "spec": whole, "status": status})
    return found.model_copy(update={"spec": defaults.resolve(found.spec)})


def plan(host_memory: int = 8 * GI, disk: int = 10 * GI) -> Plan:
    return Plan(
        backend="torch",
        method="qlora",
        trainable_parameters=1,
        micro_batch_size=2,
        accumulation=8,
        gradient_checkpointing=False,
        memory=PlanMemory(weights=GI, optimizer=0, activations=GI, logits=0, total=2 * GI, capacity=22 * GI),
        weights_by_bits={},
        disk=disk,
        host_memory=host_memory,
        verdict="fits",
    )


def train(found: GemmaFineTune, planned: Plan | None = None, settings: Settings | None = None, **record: Any) -> Object:
    current = Attempt.model_validate({"number": 1, "job": "quotes-t1", **record})
    planned = planned or plan()
    identity = RunIdentity(name="quotes", namespace="default", uid="u-1")
    config = build(found.spec, identity, 1, planned, current.overrides)
    return attempt.job(found, config, planned, current, settings or Settings())


def container(job: Object) -> Object:
    return job["spec"]["template"]["spec"]["containers"][0]


amounts = st.integers(min_value=1, max_value=512).map(lambda size: f"{size}Gi")
blocks = st.dictionaries(st.sampled_from([MEMORY, DISK]), amounts)


@given(blocks, blocks, st.none() | st.integers(min_value=1, max_value=2**40))
def test_requests_never_exceed_limits(requests: dict[str, str], limits: dict[str, str], raised: int | None) -> None:
    for name in requests.keys() & limits.keys():
        if parse(requests[name]) > parse(limits[name]):
            requests[name] = limits[name]
    wanted = ResourceSpec(requests=dict(requests), limits=dict(limits))
    found = combine(Resources.of("4", 16 * GI, 20 * GI), wanted=wanted, raised={MEMORY: raised})
    for name in (MEMORY, DISK):
        assert parse(found.requests[name]) <= parse(found.limits[name])
    assert raised is None or parse(found.limits[MEMORY]) >= raised


@pytest.mark.parametrize(
    ("wanted", "requests", "limits"),
    [
        ({}, {CPU: "4", MEMORY: "16Gi"}, {MEMORY: "16Gi"}),
        ({"limits": {MEMORY: "8Gi"}}, {CPU: "4", MEMORY: "8Gi"}, {MEMORY: "8Gi"}),
        ({"requests": {MEMORY: "8Gi"}}, {CPU: "4", MEMORY: "8Gi"}, {MEMORY: "16Gi"}),
        ({"requests": {MEMORY: "32Gi"}}, {CPU: "4", MEMORY: "32Gi"}, {MEMORY: "32Gi"}),
        ({"limits": {CPU: 2}}, {CPU: "2", MEMORY: "16Gi"}, {MEMORY: "16Gi", CPU: "2"}),
        ({"limits": {CPU: 8}}, {CPU: "4", MEMORY: "16Gi"}, {MEMORY: "16Gi", CPU: "8"}),
    ],
)
def test_the_users_resources(wanted: Object, requests: Object, limits: Object) -> None:
    found = combine(Resources.of("4", 16 * GI, 20 * GI), wanted=ResourceSpec(**wanted), raised={})
    assert found.requests == {**requests, DISK: "20Gi"}
    assert found.limits == {**limits, DISK: "20Gi"}


def test_what_a_failure_raised_beats_the_users_limit() -> None:
    found = resource(pod={"resources": {"limits": {"memory": "12Gi"}}})
    limits = container(train(found, overrides={"memory": 20 * GI}))["resources"]["limits"]
    assert limits["memory"] == "20Gi"
    assert container(train(found, overrides={"memory": 10 * GI}))["resources"]["limits"]["memory"] == "12Gi"


@given(st.integers(min_value=1, max_value=2**50))
def test_bytes_as_text_are_whole_and_never_less(size: int) -> None:
    assert 0 <= parse(text(size)) - size < MI


def test_more_host_memory_takes_a_larger_machine() -> None:
    small, large = (container(train(resource(), plan(host_memory=size * GI)))["resources"] for size in (8, 60))
    assert parse(small["limits"]["memory"]) < 16 * GI
    assert 60 * GI < parse(large["limits"]["memory"]) < 128 * GI
    assert parse(large["requests"]["cpu"]) > parse(small["requests"]["cpu"])


def test_scratch_space_follows_the_plan_and_the_override() -> None:
    def cache(job: Object) -> str:
        return str(job["spec"]["template"]["spec"]["volumes"][0]["emptyDir"]["sizeLimit"])

    assert cache(train(resource(), plan(disk=40 * GI))) == "48Gi"
    assert cache(train(resource(), plan(disk=40 * GI), overrides={"ephemeralStorage": 103 * GI})) == "100Gi"


@pytest.mark.parametrize(
    ("limits", "active", "expected"),
    [
        ({}, 0, None),
        ({"deadline": "1h", "pendingDeadline": "30m"}, 0, 3600 + 1800 + 60),
        ({"deadline": "1h", "pendingDeadline": "30m"}, 600.7, 3000 + 1800 + 60),
        ({"deadline": "1h", "pendingDeadline": "30m"}, 7200, 1800 + 60),
    ],
)
def test_the_backstop_is_the_rest_of_the_deadline(limits: Object, active: float, expected: int | None) -> None:
    found = resource(status={"timers": {"activeSeconds": active}}, limits=limits)
    assert train(found)["spec"].get("activeDeadlineSeconds") == expected


def test_provisioning_is_the_attempts_and_not_the_specs() -> None:
    found = resource(provisioning={"mode": "spot"})
    spot, fallback = (train(found, provisioning=mode)["spec"]["template"] for mode in ("spot", "onDemand"))
    assert spot["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert "annotations" not in spot["metadata"]
    assert "cloud.google.com/gke-spot" not in fallback["spec"]["nodeSelector"]
    assert fallback["metadata"]["annotations"] == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}


def tokens(found: GemmaFineTune, role: Role) -> dict[str, tuple[str, str]]:
    variables = credentials.environment(found.spec, role)
    references = {variable["name"]: variable["valueFrom"]["secretKeyRef"] for variable in variables}
    return {name: (reference["name"], reference["key"]) for name, reference in references.items()}


def test_tokens_of_model_and_data() -> None:
    shared = resource()
    assert tokens(shared, Role.PREPARE) == tokens(shared, Role.TRAIN) == {"HF_TOKEN": ("hf-token", "HF_TOKEN")}
    own = {"uri": "hf://my-org/rows", "text": {"template": "{text}"}, "secretRef": {"name": "data", "key": "token"}}
    apart = resource(dataset=own)
    assert tokens(apart, Role.TRAIN) == {"HF_TOKEN": ("hf-token", "HF_TOKEN")}
    assert tokens(apart, Role.PREPARE) == {
        "HF_TOKEN": ("hf-token", "HF_TOKEN"),
        ENV_DATASET_TOKEN: ("data", "token"),
    }
    assert tokens(resource(model={"uri": "gs://models/gemma-2-2b"}), Role.TRAIN) == {}


def test_keys_of_trackers_go_to_the_attempt_alone() -> None:
    wandb = {"project": "gemma", "secretRef": {"name": "wandb"}}
    mlflow = {"uri": "https://mlflow.example", "secretRef": {"name": "tracking", "key": "token"}}
    found = resource(model={"uri": "gs://models/gemma-2-2b"}, tracking={"wandb": wandb, "mlflow": mlflow})
    assert tokens(found, Role.TRAIN) == {
        "WANDB_API_KEY": ("wandb", "WANDB_API_KEY"),
        "MLFLOW_TRACKING_TOKEN": ("tracking", "token"),
    }
    assert tokens(found, Role.PREPARE) == tokens(found, Role.MERGE) == {}


def test_tolerations_of_accelerators_stay_away_from_the_preparation() -> None:
    wanted = [
        {"key": "dedicated", "operator": "Exists"},
        {"key": "nvidia.com/gpu", "operator": "Exists"},
        {"operator": "Exists"},
    ]
    found = resource(pod={"tolerations": wanted})
    config = build(found.spec, RunIdentity(name="quotes", namespace="default", uid="u-1"), 1, None)
    pod = prepare.job(found, config, 1, Settings())["spec"]["template"]["spec"]
    assert [item["key"] for item in pod["tolerations"]] == [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
        "dedicated",
    ]
    assert train(found)["spec"]["template"]["spec"]["tolerations"][-3:] == wanted


def test_environment_of_the_installation_lies_between_ours_and_the_users() -> None:
    found = resource(pod={"env": [{"name": "B", "value": "user"}, {"name": "GEMMATUNE_RUN", "value": "user"}]})
    config = build(found.spec, RunIdentity(name="quotes", namespace="default", uid="u-1"), 1, None)
    settings = Settings(trainer_env={"A": "installation", "B": "installation", "HF_HOME": "/cache/elsewhere"})
    job = prepare.job(found, config, 1, settings)
    environment = {variable["name"]: variable.get("value") for variable in container(job)["env"]}
    assert (environment["A"], environment["B"], environment["HF_HOME"]) == ("installation", "user", "/cache/elsewhere")
    assert environment["GEMMATUNE_RUN"] == config.to_env()


def test_a_named_account_is_bound_and_never_created() -> None:
    assert [item["kind"] for item in access.objects("team-a", None)] == ["ServiceAccount", "Role", "RoleBinding"]
    role, binding = access.objects("team-a", "own")
    assert role["kind"] == "Role"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "own", "namespace": "team-a"}]
    assert binding["metadata"]["name"] != access.objects("team-a", None)[-1]["metadata"]["name"]
    assert access.objects("team-a", "gemmatune-trainer") == access.objects("team-a", None)


def test_overrides_reach_run_config() -> None:
    record = Overrides(micro_batch_size=1, gradient_checkpointing=True)
    job = train(resource(), overrides=record.model_dump(by_alias=True))
    value = container(job)["env"][0]["value"]
    assert '"microBatchSize":1,"gradientCheckpointing":true' in value
