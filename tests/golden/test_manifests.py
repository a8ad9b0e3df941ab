"""Every resource gives exactly its golden manifests, and what must hold of all Jobs holds of each."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from gemmatune_api import names
from gemmatune_api.runconfig import RunConfig
from tests.golden.cases import FOLDER, cases, expected_file, manifests

Object = dict[str, Any]


def jobs(case: str) -> list[Object]:
    documents = list(yaml.safe_load_all(expected_file(case).read_text(encoding="utf-8")))
    return [document for document in documents if document["kind"] == "Job"]


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


@pytest.mark.parametrize("case", cases())
def test_a_job_makes_one_pod_and_never_a_second(case: str) -> None:
    for job in jobs(case):
        spec = job["spec"]
        assert spec["backoffLimit"] == 0
        assert spec["podReplacementPolicy"] == "Failed"
        assert spec["template"]["spec"]["restartPolicy"] == "Never"
        assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["FailJob", "FailJob"]
        assert "ttlSecondsAfterFinished" not in spec


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
def test_preparation_stays_off_the_accelerators(case: str) -> None:
    (prepare,) = (job for job in jobs(case) if job["metadata"]["labels"][names.LABEL_ROLE] == "prepare")
    pod = prepare["spec"]["template"]["spec"]
    assert "nodeSelector" not in pod
    assert not any(key.endswith(("/gpu", "/tpu")) for key in trainer(prepare)["resources"]["limits"])
    assert not any(item["key"] in ("nvidia.com/gpu", "cloud.google.com/gke-spot") for item in pod["tolerations"])


@pytest.mark.parametrize("case", cases())
def test_requests_are_never_above_limits(case: str) -> None:
    from gemmatune_operator.manifests.quantities import parse

    for job in jobs(case):
        resources = trainer(job)["resources"]
        for name, limit in resources["limits"].items():
            assert parse(resources["requests"][name]) <= parse(limit), (job["metadata"]["name"], name)
        scratch = sum(
            parse(volume["emptyDir"]["sizeLimit"])
            for volume in job["spec"]["template"]["spec"]["volumes"]
            if "medium" not in volume["emptyDir"]
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
