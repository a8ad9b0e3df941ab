"""The CustomResourceDefinition, generated from the models: schema, rules, columns, names."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from gemmatune_api import cel, names
from gemmatune_api.base import ApiModel
from gemmatune_api.spec import FineTuneSpec
from gemmatune_api.status import FineTuneStatus

Schema = dict[str, Any]

_ANYTHING = "x-kubernetes-preserve-unknown-fields"
_INT_OR_STRING = "x-kubernetes-int-or-string"
_BOUNDS = (
    "enum",
    "format",
    "maximum",
    "minimum",
    "maxLength",
    "minLength",
    "maxItems",
    "minItems",
    "maxProperties",
    "minProperties",
)
_LIST_KEYS = {"conditions": ["type"], "attempts": ["number"]}
"""Lists of the status that several writers share, by the fields that identify an entry."""

_COLUMNS = (
    ("Phase", "string", ".status.phase", "State in one word"),
    ("Model", "string", ".status.summary.model", "Model"),
    ("Method", "string", ".status.summary.method", "Method and rank"),
    ("Accelerator", "string", ".status.summary.accelerator", "Accelerators of an attempt"),
    ("Step", "string", ".status.progress.stepText", "Optimizer steps done, of all"),
    ("Loss", "number", ".status.progress.loss", "Loss of the last logged step"),
    ("ETA", "string", ".status.progress.eta", "Time to the end"),
    ("Retries", "string", ".status.summary.retries", "Counted retries, of those allowed"),
    ("Age", "date", ".metadata.creationTimestamp", "Time since creation"),
)
_WIDE_COLUMNS = (
    ("Speed", "number", ".status.progress.tokensPerSecond", "Tokens trained a second"),
    ("Reason", "string", ".status.reason", "Why the run is as it is"),
    ("Output", "string", ".status.summary.output", "Where results go"),
)


def definition() -> dict[str, Any]:
    """The CustomResourceDefinition as a Kubernetes object."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": [names.SHORT_NAME],
                "categories": list(names.CATEGORIES),
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _columns(),
                    "schema": {"openAPIV3Schema": _root()},
                }
            ],
        },
    }


def _columns() -> list[dict[str, Any]]:
    return [
        {"name": name, "type": kind, "jsonPath": path, "description": text, **({"priority": 1} if wide else {})}
        for wide, columns in ((False, _COLUMNS), (True, _WIDE_COLUMNS))
        for name, kind, path, text in columns
    ]


def _root() -> Schema:
    spec, status = spec_schema(), status_schema()
    training = list(spec["properties"]["training"]["properties"])
    return {
        "description": "A fine-tuning run of a Gemma model: what to tune, on what, and what came of it.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"description": "API group and version.", "type": "string"},
            "kind": {"description": "Kind.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
        "x-kubernetes-validations": cel.root_rules(spec["required"], training),
    }


def spec_schema() -> Schema:
    """The structural schema of spec, with bounds and rules."""
    schema = _of(FineTuneSpec, bounds=True)
    cel.attach(schema)
    return schema


def status_schema() -> Schema:
    """The structural schema of status: types and maxItems only.

    A status write fails as a whole when one field breaks a bound, and a bound added later would block the writes of
    older objects.
    """
    schema = _of(FineTuneStatus, bounds=False)
    for name, keys in _LIST_KEYS.items():
        field = schema["properties"][name]
        field["items"]["required"] = list(keys)
        field["x-kubernetes-list-type"] = "map"
        field["x-kubernetes-list-map-keys"] = list(keys)
    return schema


def _of(model: type[ApiModel], *, bounds: bool) -> Schema:
    document = model.model_json_schema(by_alias=True)
    return _Structural(document.get("$defs", {}), bounds).convert(document)


class _Structural:
    """Pydantic's JSON schema into what the API server takes: no $ref, null or default, exclusive bounds as flags."""

    def __init__(self, definitions: dict[str, Schema], bounds: bool) -> None:
        self.definitions = definitions
        self.bounds = bounds

    def convert(self, node: Schema) -> Schema:
        """The structural schema of a node, described by its field and its type."""
        node = self.plain(node)
        found: Schema = {"description": node["description"]} if "description" in node else {}
        if node.get(_INT_OR_STRING):
            return {**found, "anyOf": [{"type": "integer"}, {"type": "string"}], _INT_OR_STRING: True}
        if "anyOf" in node:
            return {**found, **self.union([self.plain(branch) for branch in node["anyOf"]])}
        if "type" not in node:
            return {**found, _ANYTHING: True}
        found["type"] = node["type"]
        if self.bounds:
            found |= self.validations(node)
        elif "maxItems" in node:
            found["maxItems"] = node["maxItems"]
        if node["type"] == "array":
            found["items"] = self.convert(node["items"])
            found["x-kubernetes-list-type"] = "atomic"
        if node["type"] == "object":
            found |= self.fields(node)
        return found

    def plain(self, node: Schema) -> Schema:
        """A node without reference and null."""
        outer = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
        if "$ref" in node:
            block = self.plain(self.definitions[node["$ref"].rsplit("/", 1)[1]])
            return {**block, **outer, "description": _joined(outer.get("description"), block.get("description", ""))}
        branches = [branch for branch in node.get("anyOf", []) if branch.get("type") != "null"]
        if len(branches) == 1:
            block = self.plain(branches[0])
            return {**block, **outer, "description": _joined(outer.get("description"), block.get("description", ""))}
        return {**outer, "anyOf": branches} if branches else outer

    def validations(self, node: Schema) -> Schema:
        """The bounds of a node."""
        found = {key: node[key] for key in _BOUNDS if key in node}
        if "const" in node:
            found["enum"] = [node["const"]]
        for bound, flag in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if flag in node:
                found |= {bound: node[flag], flag: True}
        if "pattern" in node:
            rule = cel.pattern_rule(node["pattern"])
            # A rule says in words what a pattern only shows.
            found |= {"x-kubernetes-validations": [rule]} if rule else {"pattern": node["pattern"]}
        return found

    def fields(self, node: Schema) -> Schema:
        """What an object holds: named fields, entries of one type, or anything."""
        if "properties" in node:
            found: Schema = {"properties": {name: self.convert(child) for name, child in node["properties"].items()}}
            return {"required": node["required"], **found} if self.bounds and node.get("required") else found
        entries = node.get("additionalProperties")
        if isinstance(entries, dict) and entries:
            return {"additionalProperties": self.convert(entries)}
        return {_ANYTHING: True} if entries else {}

    def union(self, branches: list[Schema]) -> Schema:
        """A field of several types, which a structural schema can only describe by what each value is not."""
        found: Schema = {_ANYTHING: True}
        if self.bounds:
            found["anyOf"] = [one for branch in branches for one in self.branches(branch)]
            for branch in branches:  # what a value holds has its type, or it could be nested without end
                inside = self.convert(branch)
                found |= {key: inside[key] for key in ("items", "properties") if key in inside}
        return found

    def branches(self, node: Schema) -> list[Schema]:
        """The validation of one branch without its type: a bound that only values of the type can break, negated.

        An object has a branch for each number of its optional fields, since others than its own are not pruned here.
        """
        if "enum" in node:
            return [{"enum": node["enum"]}]
        if node["type"] == "object":
            required = list(node["required"])
            optional = [name for name in node["properties"] if name not in required]
            sets = [
                required + list(some) for number in range(len(optional) + 1) for some in combinations(optional, number)
            ]
            return [{"not": {"maxProperties": 0}, "maxProperties": len(names), "required": names} for names in sets]
        bound = {"string": "maxLength", "array": "maxItems"}[node["type"]]
        return [{"not": {bound: 0}, **({bound: node[bound]} if bound in node else {})}]


def _joined(field: str | None, block: str) -> str:
    """The description of a field and that of its block, without saying the same twice."""
    if not field or block.startswith(field.rstrip(".")):
        return block
    return field if not block or block in field else f"{field} {block}"
