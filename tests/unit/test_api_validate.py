"""Documents into resources: the API server's types, every problem at once, and nothing but InvalidResourceError."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmatune_api import validate
from gemmatune_api.errors import InvalidResourceError, Problem
from gemmatune_api.location import arms, is_model
from gemmatune_api.names import Reason
from gemmatune_api.spec import GemmaFineTune
from tests.support.resources import MISSING, changed, resource


def problems(document: object) -> list[Problem]:
    with pytest.raises(InvalidResourceError) as refusal:
        validate.parse(document)
    return list(refusal.value.problems)


def problem(changes: dict[str, Any]) -> Problem:
    """The one problem of the base resource with these changes."""
    found = problems(resource(changes=changes))
    assert len(found) == 1, [str(item) for item in found]
    return found[0]


def test_the_smallest_resource_is_valid() -> None:
    parsed = validate.parse(resource())

    assert parsed.spec.method == "qlora"
    assert parsed.metadata.name == "quotes"


def test_a_spec_alone() -> None:
    assert validate.parse_spec(resource()["spec"]).output.uri == "gs://my-bucket/quotes"
    with pytest.raises(InvalidResourceError, match=r"spec\.lora\.rank: must be at least 1 \(found 0\)"):
        validate.parse_spec(changed(resource(), {"spec.lora": {"rank": 0}})["spec"])


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("spec.training.maxSteps", "8", 'must be a whole number (found "8"). Write a whole number without quotes.'),
        ("spec.training.maxSteps", True, "must be a whole number (found true)"),
        ("spec.training.maxSteps", 2.5, "must be a whole number (found 2.5)"),
        ("spec.training.maxSteps", [], "must be a whole number (found [])"),
        ("spec.training.learningRate", "2e-4", 'must be a number (found "2e-4"). Write a number without quotes.'),
        ("spec.training.learningRate", True, "must be a number (found true)"),
        ("spec.suspend", "true", "must be true or false"),
        ("spec.suspend", 1, "must be true or false (found 1)"),
        ("spec.dataset.split", 5, "must be a text (found 5)"),
        ("spec.dataset", [], "must be a block of fields (found [])"),
        ("spec.pod", {"labels": []}, "must be a block of fields (found [])"),
        ("spec.pod", {"labels": {"a": True}}, "must be a text (found true)"),
        ("spec.pod", {"resources": {"limits": {"cpu": 1.5}}}, "must be a text, or a whole number (found 1.5)"),
    ],
)
def test_types_are_those_of_json(path: str, value: object, said: str) -> None:
    assert said in str(problem({path: value}))


@pytest.mark.parametrize(("written", "read"), [(2.0, 2), (1e3, 1000)])
def test_a_whole_number_may_be_written_as_a_float(written: float, read: int) -> None:
    parsed = validate.parse(resource(changes={"spec.training": {"maxSteps": written}}))

    assert parsed.spec.training is not None
    assert parsed.spec.training.max_steps == read


def test_null_is_an_absent_field() -> None:
    parsed = validate.parse(
        resource(changes={"spec.training": None, "spec.pod": {"labels": {"a": None, "b": "c"}}, "spec.lora": None})
    )

    assert parsed.spec.training is None
    assert parsed.spec.pod is not None
    assert parsed.spec.pod.labels == {"b": "c"}
    for absent in ({"spec.output": None}, {"spec.output.uri": None}):
        assert validate.parse(resource(changes=absent)).spec.output.uri == ""


@pytest.mark.parametrize("path", ["spec.model", "spec.dataset.uri", "spec.accelerator", "metadata.name"])
def test_null_is_no_value_of_a_required_field(path: str) -> None:
    assert path in [item.path for item in problems(resource(changes={path: None}))]


@pytest.mark.parametrize(
    ("path", "value", "place", "remedy"),
    [
        ("spec.dataset.maxLen", 5, "spec.dataset.maxLen", "did you mean maxLength?"),
        ("spec.dataset.max_length", 5, "spec.dataset.max_length", "did you mean maxLength?"),
        ("spec.Backend", "torch", "spec.Backend", "did you mean backend?"),
        ("spec.training.maxsteps", 5, "spec.training.maxsteps", "did you mean maxSteps?"),
        ("spec.accelerator.gpu.zzz", 5, "spec.accelerator.gpu.zzz", "the fields here are type, count, nodes"),
        ("spec.zzz", None, "spec.zzz", "the fields here are model, backend"),
    ],
)
def test_an_unknown_field_is_answered_with_the_right_one(path: str, value: object, place: str, remedy: str) -> None:
    found = problem({path: value})

    assert (found.path, found.message) == (place, "is no field of this block")
    assert remedy in found.remedy


def test_words_of_every_kind_of_bound() -> None:
    said = {
        "spec.lora.rank": (0, "must be at least 1"),
        "spec.lora.alpha": (5000, "must be at most 4096"),
        "spec.lora.dropout": (1, "must be less than 1"),
        "spec.training.learningRate": (0, "must be more than 0"),
        "spec.training.schedule": ("step", "must be one of cosine, linear, constant, constant_with_warmup"),
        "spec.dataset.split": ("", "must not be empty"),
        "spec.model.revision": ("r" * 257, "must have at most 256 characters"),
        "spec.samples.prompts": (["a"] * 9, "must have at most 8 entries"),
        "spec.limits.deadline": ("5", "must be a duration: numbers with the units s, m, h, d"),
        "spec.dataset.text.template": (MISSING, "is required"),
    }
    found = problems(resource(changes={path: value for path, (value, _) in said.items()}))

    assert {item.path: item.message for item in found} == {path: words for path, (_, words) in said.items()}
    assert all(item.remedy for item in found)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("metadata.name", "Quotes", "must begin with a small letter"),
        ("spec.model.uri", "https://h/m", "must be an hf://, kaggle://, ms://, gs://, pvc:// or file:// URI"),
        ("spec.dataset.uri", "s3://b/d", "must be an hf://, ms://, gs://, pvc:// or file:// URI"),
        ("spec.output.uri", "hf://a/b", "must be a gs:// or file:/// URI"),
        ("spec.pod", {"env": [{"name": "1"}]}, "must be letters, digits and _"),
        ("spec.model.secretRef", {"name": "A"}, "must be the name of a Kubernetes object"),
        ("spec.model.secretRef", {"name": "a", "key": "a b"}, "must be a key of a Secret"),
    ],
)
def test_patterns_are_said_in_words(path: str, value: object, words: str) -> None:
    found = problem({path: value})

    assert found.message.startswith(words)
    assert "^" not in str(found)
    assert found.remedy.startswith("Write ")


def test_a_text_with_a_line_break_at_its_end_is_no_name() -> None:
    assert problem({"metadata.name": "quotes\n"}).path == "metadata.name"
    assert problem({"spec.limits": {"deadline": "5m\n"}}).path == "spec.limits.deadline"


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        (5, "spec.lora.targetModules", "must be one of all-linear, attention, or a list"),
        ("linear", "spec.lora.targetModules", "must be one of all-linear, attention"),
        ([], "spec.lora.targetModules", "must have at least 1 entry"),
        (["q_proj", 5], "spec.lora.targetModules[1]", "must be a text"),
        ({"a": 1}, "spec.lora.targetModules", "must be one of all-linear, attention, or a list"),
    ],
)
def test_a_union_speaks_of_the_branch_that_was_meant(value: object, path: str, words: str) -> None:
    found = problem({"spec.lora": {"targetModules": value}})

    assert (found.path, found.message) == (path, words)


@pytest.mark.parametrize(
    ("prompt", "path", "words"),
    [
        (5, "spec.samples.prompts[0]", "must be a text, or a block of fields"),
        ("", "spec.samples.prompts[0]", "must not be empty"),
        ({}, "spec.samples.prompts[0].text", "is required"),
        ({"text": 5}, "spec.samples.prompts[0].text", "must be a text"),
        ({"text": "a", "img": "b"}, "spec.samples.prompts[0].img", "is no field of this block"),
        (None, "spec.samples.prompts[0]", "must be a text, or a block of fields"),
    ],
)
def test_a_prompt_is_a_text_or_a_block(prompt: object, path: str, words: str) -> None:
    found = problem({"spec.samples": {"prompts": [prompt]}})

    assert (found.path, found.message) == (path, words)


def test_every_problem_comes_at_once() -> None:
    document = resource(
        "Quotes",
        {
            "spec.model.uri": "google/gemma",
            "spec.dataset.maxLen": 5,
            "spec.training": {"maxSteps": 1, "epochs": 1, "seed": "x"},
            "spec.accelerator": {"gpu": {"type": "l4", "count": "8"}},
            "spec.samples": {"prompts": [{"text": "a", "image": "b"}]},
        },
    )

    assert {item.path: item.reason for item in problems(document)} == {
        "metadata.name": Reason.INVALID_SPEC,
        "spec.model.uri": Reason.INVALID_SPEC,
        "spec.dataset.maxLen": Reason.INVALID_SPEC,
        "spec.training.seed": Reason.INVALID_SPEC,
        "spec.accelerator.gpu.count": Reason.INVALID_SPEC,
        "spec.accelerator.gpu.type": Reason.INVALID_SPEC,
        "spec.samples.prompts[0].image": Reason.INVALID_SPEC,
    }


def test_one_fault_is_told_once() -> None:
    """A format with a fault is not also called missing."""
    found = problems(resource(changes={"spec.dataset.text": {"template": 5}}))

    assert [item.path for item in found] == ["spec.dataset.text.template"]


@pytest.mark.parametrize("document", [None, 5, "text", [], True, 1.5])
def test_what_is_no_block_is_no_resource(document: object) -> None:
    (found,) = problems(document)

    assert found.path == "the resource"
    assert found.message == "must be a block of fields"


@pytest.mark.parametrize(("field", "value"), [("kind", "Job"), ("apiVersion", "gemmatune.dev/v1")])
def test_another_kind_is_refused(field: str, value: str) -> None:
    found = problem({field: value})

    assert found.path == field
    assert found.message in ("must be GemmaFineTune", "must be gemmatune.dev/v1alpha1")


def test_what_the_api_server_adds_is_no_problem() -> None:
    document = resource(
        changes={
            "metadata.uid": "u",
            "metadata.generation": 3,
            "metadata.managedFields": [{}],
            "metadata.ownerReferences": [],
            "status": {"phase": "Training", "unheard": 1},
        }
    )

    assert validate.parse(document).metadata.generation == 3


def test_nulls_of_generated_metadata_are_absent_fields() -> None:
    nulls = {f"metadata.{name}": None for name in ("creationTimestamp", "labels", "annotations", "namespace")}

    metadata = validate.parse(resource(changes=nulls)).metadata

    assert (metadata.creation_timestamp, metadata.labels, metadata.namespace) == ("", {}, "default")
    (found,) = problems(resource(changes={"metadata.name": None}))
    assert (found.path, found.message) == ("metadata.name", "is required")


def test_depth_does_not_exhaust_the_stack() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]

    document = resource()
    document["spec"]["dataset"] = deep

    (found,) = problems(document)
    assert "nested deeper" in found.message


def found_in(document: object) -> list[Problem]:
    """The problems of a document, none for a valid one; any other exception fails the test."""
    try:
        validate.parse(document)
    except InvalidResourceError as refusal:
        return list(refusal.problems)
    return []


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**4000, max_value=10**5000)
    | st.floats()
    | st.text(alphabet=st.characters(), max_size=20)
    | st.sampled_from(["hf://a/b", "gs://b/c", "1h", "nvidia-l4", "{column}", "}", "2x4", "\ud800", "4Gi"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def paths(model: Any = GemmaFineTune, prefix: str = "") -> list[str]:
    """Every field path of a resource, blocks included."""
    found = []
    for name, field in model.model_fields.items():
        path = f"{prefix}{field.alias or name}"
        found.append(path)
        for arm in arms(field.annotation):
            if is_model(arm):
                found += paths(arm, f"{path}.")
    return found


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(paths()), json_values, max_size=4))
def test_any_value_anywhere_is_accepted_or_refused_in_words(changes: dict[str, Any]) -> None:
    document = resource()
    for path, value in sorted(changes.items()):
        try:
            document = changed(document, {path: value})
        except (TypeError, AttributeError):
            continue  # a block on the way is no block any more
    for item in found_in(document):
        assert item.path
        assert item.message
        assert item.remedy
        str(item).encode()


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_any_document_is_accepted_or_refused_in_words(document: Any) -> None:
    with pytest.raises(InvalidResourceError):
        validate.parse(document)
