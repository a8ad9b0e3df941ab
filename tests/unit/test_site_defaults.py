"""Defaults of a site as they are read, one over the other, and put where a resource says nothing."""

from __future__ import annotations

from typing import Any

import pytest

from gemmatune_api import defaults, validate
from gemmatune_api.errors import InvalidResourceError
from gemmatune_api.names import Reason
from gemmatune_api.placement import SecretRef
from gemmatune_api.site_defaults import SiteDefaults, applied, of_config_map, of_file, without_output
from gemmatune_api.spec import FineTuneSpec
from tests.support.situations import resource

WHOLE = """
outputPrefix: gs://runs/all
secretRef: {name: hf-token, key: token}
serviceAccountName: tuner
priorityClassName: low
modelCache: gs://models
"""
GIVEN = of_file(WHOLE)


def resolved(given: SiteDefaults, **blocks: Any) -> FineTuneSpec:
    return applied(validate.parse(resource(blocks)), given).spec


def test_the_installation_s_file() -> None:
    assert (
        SiteDefaults(
            output_prefix="gs://runs/all",
            secret_ref=SecretRef(name="hf-token", key="token"),
            service_account_name="tuner",
            priority_class_name="low",
            model_cache="gs://models",
        )
        == GIVEN
    )
    assert GIVEN.given
    assert not of_file("").given
    assert not of_file("{outputPrefix: '', secretRef: {}}").given


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"outputPrefx": "gs://a"},
            'outputPrefx: is no field of this block (found "gs://a"). Remove it, or correct its',
        ),
        (
            {"outputPrefix": "s3://a"},
            'outputPrefix: must be a gs:// or file:/// URI (found "s3://a"). Write a URI such',
        ),
        ({"outputPrefix": "gs://a/../b"}, "outputPrefix: has a .. in its path (found"),
        ({"outputPrefix": "gs://a/b c"}, "outputPrefix: has a space"),
        ({"outputPrefix": "gs://a/" + "b" * 900}, "outputPrefix: must have at most 896 characters"),
        ({"modelCache": "hf://org/model"}, "modelCache: must be a gs:// or file:/// URI"),
        ({"modelCache": "gs://a/../b"}, "modelCache: has a .. in its path (found"),
        ({"secretRef": "hf-token"}, 'secretRef: must name a Secret (found "hf-token"). Write {name: hf-token}.'),
        ({"secretRef": "{name: a"}, 'secretRef: must name a Secret (found "{name: a"). Write {name: hf-token}.'),
        ({"secretRef": "[" * 5000}, "secretRef: must name a Secret (found"),
        ({"secretRef": "{nam: a}"}, "secretRef.name: is required"),
        ({"serviceAccountName": "Not A Name"}, "serviceAccountName: must be the name of a Kubernetes object"),
        ({"priorityClassName": "UP"}, "priorityClassName: must be the name of a Kubernetes object"),
    ],
)
def test_a_wrong_config_map_names_key_value_and_remedy(data: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidResourceError) as found:
        of_config_map(data)
    assert f"ConfigMap gemmatune-defaults, {said}" in str(found.value)
    assert all(problem.reason is Reason.INVALID_DEFAULTS and problem.remedy for problem in found.value.problems)


def test_a_wrong_file() -> None:
    for text, said in (
        ("[a]", "must be a block of fields"),
        ("serviceAccount: a", "did you mean serviceAccountName?"),
        ("secretRef: hf-token", "Write {name: hf-token}"),
        ("a: [", "is no YAML"),
    ):
        with pytest.raises(InvalidResourceError, match=said):
            of_file(text)


def test_a_namespace_goes_before_the_installation_field_by_field() -> None:
    own = {
        "secretRef": "name: team-token",
        "priorityClassName": "",
        "outputPrefix": "gs://team/runs/",
        "modelCache": "",
    }
    both = of_config_map(own).over(GIVEN)
    assert both.output_prefix == "gs://team/runs/"
    assert both.secret_ref == SecretRef(name="team-token"), "a field is replaced as a whole"
    assert both.service_account_name == "tuner", "what the namespace does not name stays"
    assert both.priority_class_name is None, "an empty text takes the installation's away"
    assert both.model_cache is None
    assert of_config_map({}).over(GIVEN) == GIVEN


def test_a_resource_that_says_nothing_gets_all() -> None:
    spec = resolved(GIVEN, output=None)
    assert spec.output.uri == "gs://runs/all/team/quotes"
    assert spec.model.secret_ref == SecretRef(name="hf-token", key="token")
    assert spec.pod is not None
    assert (spec.pod.service_account_name, spec.pod.priority_class_name) == ("tuner", "low")
    assert defaults.resolve(spec).output.merge is False
    assert resolved(of_file("outputPrefix: gs://team/"), output={"merge": True}).output.merge is True


def test_what_a_resource_says_wins() -> None:
    said = {
        "output": {"uri": "gs://own/place"},
        "model": {"uri": "hf://google/gemma-2-2b", "secretRef": {"name": "own"}},
        "pod": {"serviceAccountName": "own", "priorityClassName": "own", "labels": {"a": "b"}},
    }
    assert resolved(GIVEN, **said) == validate.parse(resource(said)).spec
    spec = resolved(GIVEN, pod={"priorityClassName": "own"})
    assert spec.pod is not None
    assert (spec.pod.service_account_name, spec.pod.priority_class_name) == ("tuner", "own")


def test_nothing_given_changes_nothing() -> None:
    parsed = validate.parse(resource())
    assert applied(parsed, SiteDefaults()) is parsed


@pytest.mark.parametrize(
    ("model", "dataset", "of_model", "of_data"),
    [
        ("hf://google/gemma-2-2b", "hf://a/b", "token", None),
        ("ms://google/gemma-2-2b", "gs://a/b.jsonl", "token", None),
        ("kaggle://google/gemma-2/transformers/gemma-2-2b", "gs://a/b.jsonl", "", None),
        ("gs://models/gemma-2-2b", "hf://a/b", None, "token"),
        ("gs://models/gemma-2-2b", "gs://a/b.jsonl", None, None),
    ],
)
def test_the_secret_is_for_hubs(model: str, dataset: str, of_model: str | None, of_data: str | None) -> None:
    """`of_…` is the key: empty for a hub that needs two keys, None without a Secret."""
    found = resource({"model": {"uri": model}, "dataset": {"uri": dataset, "text": {"template": "{a}"}}})
    spec = applied(validate.parse(found, refused=()), GIVEN).spec
    keys = [block.secret_ref and (block.secret_ref.key or "") for block in (spec.model, spec.dataset)]
    assert keys == [of_model, of_data]


def test_a_dataset_s_own_secret_stays() -> None:
    data = {"uri": "hf://a/b", "text": {"template": "{a}"}, "secretRef": {"name": "own"}}
    spec = resolved(GIVEN, model={"uri": "gs://models/gemma-2-2b"}, dataset=data)
    assert spec.dataset.secret_ref == SecretRef(name="own")
    assert spec.model.secret_ref is None


def test_without_any_output() -> None:
    (problem,) = without_output(applied(validate.parse(resource({"output": None})), SiteDefaults()))
    assert problem.path == "spec.output.uri"
    assert "ConfigMap gemmatune-defaults" in problem.remedy
    assert without_output(validate.parse(resource())) == []
