"""Every resource gives exactly its golden manifests, and what must hold of all Jobs holds of each."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import yaml

from gemmatune_api import names
from gemmatune_api.runconfig import RunConfig
from tests.golden.cases import FOLDER, cases, expected_file, manifests

Object = dict[str, Any]


@cache
def documents(case: str) -> tuple[Object, ...]:
    """The case's objects, read once; nobody changes them."""
    return tuple(yaml.safe_load_all(expected_file(case).read_text(encoding="utf-8")))


def of_kind(case: str, kind: str) -> list[Object]:
    return [document for document in documents(case) if document["kind"] == kind]


def jobs(case: str) -> list[Object]:
    return of_kind(case, "Job")


def trainer(job: Object) -> Object:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


def variables(job: Object) -> dict[str, Object]:
    return {variable["name"]: variable for variable in trainer(job)["env"]}


@pytest.mark.parametrize("case", cases())
def test_golden(case: str) -> None:
    assert manifests(case) == expected_file(case).read_text(encoding="utf-8"), (
        "python -m tests.golden.regenerate writes the files anew; read the diff"
    )


def test_no_expected_file_is_left_over() -> None:
    assert {file.name for file in FOLDER.iterdir()} == {
        name for case in cases() for name in (f"{case}.yaml", expected_file(case).name)
    }


def test_every_shape_has_its_cases() -> None:
    assert len(cases()) >= 40


@pytest.mark.parametrize("case", cases())
def test_a_job_makes_each_pod_once_and_never_a_second(case: str) -> None:
    for job in jobs(case):
        spec = job["spec"]
        assert spec.get("completions") == spec.get("parallelism")
        assert ("completionMode" in spec) == (spec.get("parallelism", 1) > 1)
        assert not spec.keys() & {"backoffLimitPerIndex", "maxFailedIndexes", "successPolicy", "suspend"}
        assert spec["backoffLimit"] == 0
        assert spec["podReplacementPolicy"] == "Failed"
        assert spec["template"]["spec"]["restartPolicy"] == "Never"
        assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["FailJob", "FailJob"]
        assert "ttlSecondsAfterFinished" not in spec


@pytest.mark.parametrize("case", cases())
def test_several_pods_find_each_other_by_a_service(case: str) -> None:
    several = [job for job in jobs(case) if job["spec"].get("parallelism", 1) > 1]
    assert [service["metadata"] for service in of_kind(case, "Service")] == [
        {key: job["metadata"][key] for key in ("name", "namespace", "labels", "ownerReferences")}
        | {"labels": {k: v for k, v in job["metadata"]["labels"].items() if not k.startswith("kueue")}}
        for job in several
    ]
    for service, job in zip(of_kind(case, "Service"), several, strict=True):
        name = job["metadata"]["name"]
        assert job["spec"]["template"]["spec"]["subdomain"] == name
        assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"] is True
        assert len(f"{name}-{job['spec']['parallelism'] - 1}") <= 63, "a host name is a label of DNS"


@pytest.mark.parametrize("case", cases())
def test_every_pod_gives_up_a_lost_node_soon(case: str) -> None:
    for job in jobs(case):
        pod = job["spec"]["template"]["spec"]
        away = {item["key"]: item["tolerationSeconds"] for item in pod["tolerations"] if "tolerationSeconds" in item}
        assert away == {"node.kubernetes.io/not-ready": 30, "node.kubernetes.io/unreachable": 30}
        assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("case", cases())
def test_only_spot_pods_may_be_moved(case: str) -> None:
    train = jobs(case)[1]["spec"]["template"]
    spot = train["spec"].get("nodeSelector", {}).get("cloud.google.com/gke-spot") == "true"
    marked = train["metadata"].get("annotations", {}).get(names.ANNOTATION_SAFE_TO_EVICT)
    assert marked == (None if spot else "false")
    assert train["spec"]["terminationGracePeriodSeconds"] == (30 if spot else 120)


@pytest.mark.parametrize("case", cases())
def test_run_config_reaches_the_trainer_whole(case: str) -> None:
    for job in jobs(case):
        value = variables(job)[names.ENV_RUN]["value"]
        assert "$" not in value
        config = RunConfig.from_env(value)
        assert config.run.uid == job["metadata"]["labels"][names.LABEL_RUN_UID]
        assert str(config.attempt) == job["metadata"]["labels"][names.LABEL_ATTEMPT]


def test_dollar_signs_come_back_as_they_were() -> None:
    for job in jobs("dollar-signs"):
        config = RunConfig.from_env(variables(job)[names.ENV_RUN]["value"])
        assert config.dataset.text is not None
        assert config.dataset.text.template == "$(HOME) costs $${price} or $HOME: {{ {price}"
        assert config.samples.prompts == ["A $(SECRET) is", "100$"]


@pytest.mark.parametrize("case", cases())
def test_no_secret_value_and_no_storage_double(case: str) -> None:
    text = expected_file(case).read_text(encoding="utf-8")
    assert "STORAGE_EMULATOR_HOST" not in text
    assert names.ENV_GCS_ENDPOINT not in text
    for job in jobs(case):
        for name, variable in variables(job).items():
            if name.endswith(("TOKEN", "KEY")):
                assert "value" not in variable, f"{name} must come from a Secret"


@pytest.mark.parametrize("case", cases())
def test_preparation_and_merge_stay_off_the_accelerators(case: str) -> None:
    cheap = [job for job in jobs(case) if job["metadata"]["labels"][names.LABEL_ROLE] != "train"]
    assert len(cheap) == (2 if case.startswith("merge") else 1)
    for job in cheap:
        pod = job["spec"]["template"]["spec"]
        assert not pod.keys() & {"nodeSelector", "affinity", "subdomain"}
        assert not any(label.startswith("kueue") for label in job["metadata"]["labels"])
        assert "completionMode" not in job["spec"]
        assert not any(key.endswith(("/gpu", "/tpu")) for key in trainer(job)["resources"]["limits"])
        taints = ("nvidia.com/gpu", "google.com/tpu", "cloud.google.com/gke-spot", "cloud.google.com/gke-flex-start")
        assert not any(item["key"] in taints for item in pod["tolerations"])


def test_a_merge_speaks_to_the_api_server_and_reads_the_model() -> None:
    _, _, merge = jobs("merge")
    assert merge["spec"]["template"]["spec"]["automountServiceAccountToken"] is True
    assert "HF_TOKEN" in variables(merge)
    assert names.ENV_DATASET_TOKEN not in variables(merge)
    assert RunConfig.from_env(variables(merge)[names.ENV_RUN]["value"]).device == "cpu"


def test_each_pod_mounts_read_only_the_claims_that_it_reads() -> None:
    claims = {job["metadata"]["labels"][names.LABEL_ROLE]: claims_of(job) for job in jobs("merge-claims")}
    models, data = f"{names.DEFAULT_CLAIMS}/models", f"{names.DEFAULT_CLAIMS}/team-data"
    assert claims == {
        "prepare": {models: "models", data: "team-data"},
        "train": {models: "models"},
        "merge": {models: "models"},
    }


def claims_of(job: Object) -> dict[str, str]:
    """Claims by the path that they are mounted at, all of them read-only."""
    volumes = {
        volume["name"]: volume.get("persistentVolumeClaim") for volume in job["spec"]["template"]["spec"]["volumes"]
    }
    found = {}
    for mount in trainer(job)["volumeMounts"]:
        if claim := volumes[mount["name"]]:
            assert mount["readOnly"] is True
            assert claim["readOnly"] is True
            found[mount["mountPath"]] = claim["claimName"]
    return found


@pytest.mark.parametrize("case", cases())
def test_requests_are_never_above_limits(case: str) -> None:
    from gemmatune_operator.manifests.quantities import parse

    for job in jobs(case):
        resources = trainer(job)["resources"]
        for name, limit in resources["limits"].items():
            assert parse(resources["requests"][name]) <= parse(limit), (job["metadata"]["name"], name)
            if name in ("nvidia.com/gpu", "google.com/tpu"):
                assert resources["requests"][name] == limit
        shared = [v for v in job["spec"]["template"]["spec"]["volumes"] if "medium" in v.get("emptyDir", {})]
        assert parse(shared[0]["emptyDir"]["sizeLimit"]) <= parse(resources["limits"]["memory"]) / 4
        scratch = sum(
            parse(volume["emptyDir"]["sizeLimit"])
            for volume in job["spec"]["template"]["spec"]["volumes"]
            if "medium" not in volume.get("emptyDir", {"medium": ""})
        )
        assert scratch <= parse(resources["limits"]["ephemeral-storage"])


def test_the_operator_keeps_what_it_needs_against_pod_overrides() -> None:
    _, train = jobs("pod-overrides")
    pod, labels = train["spec"]["template"]["spec"], train["spec"]["template"]["metadata"]["labels"]
    assert labels[names.LABEL_ROLE] == "train"
    assert labels["team"] == "research"
    assert pod["nodeSelector"]["cloud.google.com/gke-accelerator"] == "nvidia-l4"
    assert trainer(train)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert variables(train)["HF_HOME"]["value"] == "/cache/hub"
    assert variables(train)["HTTPS_PROXY"]["valueFrom"]["secretKeyRef"]["optional"] is True


def test_names_stay_within_the_limit_of_labels() -> None:
    for job in jobs("long-name"):
        assert len(job["metadata"]["name"]) <= 63 - len("-xxxxx")


def test_environment_is_plain_json() -> None:
    value = variables(jobs("minimal")[1])[names.ENV_RUN]["value"]
    assert json.loads(value)["dataset"]["text"] == {"template": "Quote: {quote}\nAuthor: {author}"}
