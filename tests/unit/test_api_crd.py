"""The generated CustomResourceDefinition keeps to what a structural schema may hold, and to the rules of the house."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from gemmatune_api import cel, crd, docgen, generate, names
from gemmatune_api.location import arms, is_model
from gemmatune_api.patterns import PATTERNS
from gemmatune_api.spec import FineTuneSpec
from gemmatune_api.status import FineTuneStatus
from gemmatune_api.supported import REFUSED

ROOT = Path(__file__).resolve().parents[2]
VERSION = crd.definition()["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]
SPEC, STATUS = SCHEMA["properties"]["spec"], SCHEMA["properties"]["status"]

STATUS_KEYS = {
    "description",
    "type",
    "properties",
    "items",
    "additionalProperties",
    "maxItems",
    "x-kubernetes-list-type",
    "x-kubernetes-preserve-unknown-fields",
}


def nodes(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a schema with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from nodes(schema[name], f"{path}[]")


def model_paths(model: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every field of a model with its path."""
    for name, field in model.model_fields.items():
        below = f"{path}.{field.alias or name}"
        yield below, field
        for arm in arms(field.annotation):
            if is_model(arm):
                yield from model_paths(arm, below)
            elif get_origin(arm) is list:
                for inner in arms(get_args(arm)[0]):
                    if is_model(inner):
                        yield from model_paths(inner, f"{below}[]")


def test_the_names() -> None:
    definition = crd.definition()

    assert definition["metadata"]["name"] == "gemmafinetunes.gemmatune.dev"
    assert definition["spec"]["names"]["shortNames"] == ["gft"]
    assert definition["spec"]["scope"] == "Namespaced"
    assert VERSION["subresources"] == {"status": {}}
    assert (VERSION["served"], VERSION["storage"]) == (True, True)


def test_the_schema_is_structural() -> None:
    for path, node in nodes(SCHEMA, ""):
        forbidden = {"$ref", "$defs", "allOf", "oneOf", "title", "default", "nullable", "const", "format"}
        assert not forbidden & node.keys(), path
        if "x-kubernetes-int-or-string" in node:
            assert "type" not in node, path
        elif "x-kubernetes-preserve-unknown-fields" in node:
            assert node.get("type") in (None, "object"), path
            for branch in node.get("anyOf", []):
                assert "type" not in branch, path
        else:
            assert node["type"] in ("object", "array", "string", "integer", "number", "boolean"), path
            assert "anyOf" not in node, path
        if node.get("type") == "array":
            assert "items" in node, path
            assert node["x-kubernetes-list-type"] in ("atomic", "map"), path
        assert not ("properties" in node and "additionalProperties" in node), path


def test_nothing_has_a_default() -> None:
    assert not [path for path, node in nodes(SCHEMA, "") if "default" in node]


def test_the_status_has_types_and_longest_lists_only() -> None:
    for path, node in nodes(STATUS, "status"):
        allowed = set(STATUS_KEYS)
        if path in ("status.conditions", "status.attempts"):
            allowed.add("x-kubernetes-list-map-keys")
        if path in ("status.conditions[]", "status.attempts[]"):
            allowed.add("required")
        assert node.keys() <= allowed, path
    assert STATUS["properties"]["conditions"]["x-kubernetes-list-map-keys"] == ["type"]
    assert STATUS["properties"]["conditions"]["items"]["required"] == ["type"]
    assert STATUS["properties"]["attempts"]["x-kubernetes-list-map-keys"] == ["number"]
    assert STATUS["properties"]["attempts"]["maxItems"] == 20
    assert STATUS["properties"]["samples"]["maxItems"] == 8
    assert STATUS["properties"]["resolved"]["x-kubernetes-preserve-unknown-fields"] is True


@pytest.mark.parametrize(
    ("model", "schema", "name"), [(FineTuneSpec, SPEC, "spec"), (FineTuneStatus, STATUS, "status")]
)
def test_every_field_of_the_models_is_there_and_nothing_else(model: Any, schema: dict[str, Any], name: str) -> None:
    fields = {path for path, _ in model_paths(model, name)}
    found = {path for path, _ in nodes(schema, name) if path != name and not path.endswith("[]")}

    assert found == fields


def test_bounds_and_choices_of_the_models_are_in_the_schema() -> None:
    by_path = dict(nodes(SPEC, "spec"))

    assert by_path["spec.lora.rank"] == {
        "description": "Rank r. Default 8.",
        "type": "integer",
        "minimum": 1,
        "maximum": 1024,
    }
    assert by_path["spec.lora.dropout"] | {"description": ""} == {
        "description": "",
        "type": "number",
        "minimum": 0,
        "maximum": 1,
        "exclusiveMaximum": True,
    }
    assert by_path["spec.dataset"]["required"] == ["uri"]
    assert SPEC["required"] == ["model", "dataset", "accelerator"]
    for path, field in model_paths(FineTuneSpec, "spec"):
        if path not in by_path or "x-kubernetes-preserve-unknown-fields" in by_path[path]:
            continue
        choices = [choice for arm in arms(field.annotation) if get_origin(arm) is Literal for choice in get_args(arm)]
        assert by_path[path].get("enum", []) == choices, path


def test_every_text_pattern_of_the_models_has_words_and_a_rule() -> None:
    rules = [rule["rule"] for _, node in nodes(SPEC, "") for rule in node.get("x-kubernetes-validations", [])]

    assert not [path for path, node in nodes(SPEC, "") if "pattern" in node]
    for pattern in PATTERNS:
        if pattern != names.NAME_PATTERN:
            assert f"self.matches('{pattern}')" in rules


def test_the_name_rule_is_first_and_the_only_one_that_is_no_transition_rule() -> None:
    first, *rest = SCHEMA["x-kubernetes-validations"]

    assert (
        first["rule"] == r"size(self.metadata.name) <= 45 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')"
    )
    assert first["message"].startswith("metadata.name must have at most 45 characters")
    assert all("oldSelf" in rule["rule"] for rule in rest)
    assert all(rule["reason"] == "FieldValueForbidden" for rule in rest)
    paths = [rule["fieldPath"] for rule in rest]
    assert (
        len(set(paths))
        == len(paths)
        == len(cel.FIXED) + len(cel.PAUSED) + len(SPEC["properties"]["training"]["properties"])
    )
    for rule in rest:
        assert rule["message"].startswith(rule["fieldPath"].removeprefix("."))
        assert ("phase == 'Failed'" in rule["rule"]) == ("suspended or failed" in rule["message"])


def test_every_block_of_rules_has_its_place() -> None:
    """A rule at a path that does not exist would never be attached."""
    paths = {path for path, _ in nodes(SPEC, "spec")}

    assert set(cel.BLOCKS) <= paths


def test_rules_below_the_root_do_not_look_at_the_past() -> None:
    for path, node in nodes(SPEC, "spec"):
        for rule in node.get("x-kubernetes-validations", []):
            assert "oldSelf" not in rule["rule"], path
            assert rule["message"], path


def test_the_columns() -> None:
    columns = VERSION["additionalPrinterColumns"]

    assert [column["name"].upper() for column in columns if "priority" not in column] == [
        "PHASE",
        "MODEL",
        "METHOD",
        "ACCELERATOR",
        "STEP",
        "LOSS",
        "ETA",
        "RETRIES",
        "AGE",
    ]
    assert [column["name"].upper() for column in columns if column.get("priority") == 1] == [
        "SPEED",
        "REASON",
        "OUTPUT",
    ]
    paths = {f".{path}": node for path, node in [*nodes(SPEC, "spec"), *nodes(STATUS, "status")]}
    for column in columns:
        if column["jsonPath"] != ".metadata.creationTimestamp":
            assert paths[column["jsonPath"]]["type"] == column["type"], column["name"]


def test_the_definition_fits_into_the_annotation_of_kubectl_apply() -> None:
    assert len(generate.files()["crds/gemmafinetunes.gemmatune.dev.yaml"].encode()) < 262_144 * 0.8


def test_the_generated_files_are_current() -> None:
    assert generate.difference(ROOT, generate.files()) == ""


def test_a_stale_file_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate.write(tmp_path, generate.files())
    monkeypatch.setattr("sys.argv", ["generate", "--check", "--root", str(tmp_path)])
    assert generate.main(generate.files(), "") == 0

    (tmp_path / "docs/api.md").write_text("old\n")
    assert generate.main(generate.files(), "") == 1
    shown = capsys.readouterr()
    assert "-old\n" in shown.out
    assert "make generate" in shown.err

    monkeypatch.setattr("sys.argv", ["generate", "--root", str(tmp_path)])
    assert generate.main(generate.files(), "") == 0
    assert generate.difference(tmp_path, generate.files()) == ""


def test_the_reference_names_everything() -> None:
    text = docgen.document()

    for path, field in [*model_paths(FineTuneSpec, "spec"), *model_paths(FineTuneStatus, "status")]:
        assert f"| `{path.rsplit('.', 1)[1]}` |" in text, path
        assert field.description, path
    for phase in names.Phase:
        assert f"`{phase}`" in text
    for reason, words in names.REASONS.items():
        assert f"| `{reason}` | {words.meaning} |" in text
    for code in names.ExitCode:
        assert f"| {code.value} |" in text
    for item in REFUSED:
        assert f"| {item.why} | {item.remedy} |" in text
    assert "| `spec.accelerator.tpu` | of several hosts, with backend xla | backend xla on slices of several" in text
    assert "| `spec.accelerator.tpu.type` | `tpu7x` | each of its chips is two devices" in text


def test_every_reason_has_words() -> None:
    assert set(names.REASONS) == set(names.Reason)


def test_units_and_defaults_in_the_reference() -> None:
    text = docgen.document()

    assert (
        "| `maxLength` | whole number; ≥ 16, ≤ 131,072 | 1024 | Longest row in tokens, without those of its image. |"
        in text
    )
    assert "| `stallTimeout` | duration | 15m | Longest time without a step or heartbeat. |" in text
    assert "| `maxGradNorm` | number; > 0, ≤ 1,000,000 | 1.0 |" in text
    assert "| `dropout` | number; ≥ 0, < 1 | 0 | Dropout before the adapter. |" in text
    assert "| `schedule` | `cosine`, `linear`, `constant`, `constant_with_warmup` | cosine |" in text
    assert "| `model` | block | **required** | The model to tune. |" in text
