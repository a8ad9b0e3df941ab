"""The rules that the API server checks itself, as CEL: what may change when, and which fields exclude each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gemmatune_api.names import NAME_MAX_LENGTH, NAME_PATTERN
from gemmatune_api.patterns import PATTERNS

Rule = dict[str, str]

ALWAYS = ("suspend", "limits", "ttlAfterFinished")
"""Fields of spec that may change at any time."""
PAUSED = ("accelerator", "provisioning", "backend", "mesh", "scheduling", "pod", "checkpoint")
"""Fields of spec that may change while the run is suspended or failed."""
FIXED = ("model", "dataset", "qlora", "lora", "full", "output", "samples", "tracking")
"""Fields of spec that never change once the first attempt exists; so does `training` but for two of its fields."""
PAUSED_TRAINING = ("microBatchSize", "gradientCheckpointing")
"""Fields of spec.training that may change while the run is suspended or failed."""

_ATTEMPTED = "has(oldSelf.status) && has(oldSelf.status.attempts) && size(oldSelf.status.attempts) > 0"
_STOPPED = (
    "(has(oldSelf.spec.suspend) && oldSelf.spec.suspend) || (has(self.spec.suspend) && self.spec.suspend) || "
    "(has(oldSelf.status) && has(oldSelf.status.phase) && oldSelf.status.phase == 'Failed')"
)


def root_rules(required: Sequence[str], training: Sequence[str]) -> list[Rule]:
    """The rules at the root: the name, then what may change when.

    `required` are the fields that every spec has, `training` those of spec.training. The name rule is first and the
    only one that is no transition rule: a later one of that kind would block status writes of older objects.
    """
    rules = [
        {
            "rule": f"size(self.metadata.name) <= {NAME_MAX_LENGTH} && self.metadata.name.matches('{NAME_PATTERN}')",
            "message": f"metadata.name must have at most {NAME_MAX_LENGTH} characters and "
            + PATTERNS[NAME_PATTERN].message.removeprefix("must "),
        }
    ]
    rules += [_transition(field, _equal("spec", field, field in required), stopped=False) for field in FIXED]
    rules += [_transition(field, _equal("spec", field, field in required), stopped=True) for field in PAUSED]
    rules += [
        _transition(f"training.{field}", _equal_in_training(field), stopped=field in PAUSED_TRAINING)
        for field in training
    ]
    return rules


def _transition(field: str, equal: str, *, stopped: bool) -> Rule:
    fixed = (
        f"spec.{field} is fixed once the first attempt exists; to change it create a new resource with another "
        "output.uri"
    )
    paused = f"spec.{field} may change only while the run is suspended or failed; set spec.suspend: true with it"
    return {
        "rule": f"!({_ATTEMPTED}) || {f'({_STOPPED}) || ' if stopped else ''}{equal}",
        "message": paused if stopped else fixed,
        "fieldPath": f".spec.{field}",
        "reason": "FieldValueForbidden",
    }


def _equal(block: str, field: str, required: bool) -> str:
    new, old = f"self.{block}.{field}", f"oldSelf.{block}.{field}"
    return f"{new} == {old}" if required else f"(has({new}) ? has({old}) && {new} == {old} : !has({old}))"


def _equal_in_training(field: str) -> str:
    new, old = "self.spec.training", "oldSelf.spec.training"
    has_new, has_old = f"has({new}) && has({new}.{field})", f"has({old}) && has({old}.{field})"
    return f"({has_new} ? {has_old} && {new}.{field} == {old}.{field} : !({has_old}))"


def _count(fields: Sequence[str]) -> str:
    return " + ".join(f"(has(self.{field}) ? 1 : 0)" for field in fields)


def _one_of(*fields: str, exactly: bool = False) -> Rule:
    names = f"{', '.join(fields[:-1])} and {fields[-1]}"
    if exactly:
        return {"rule": f"{_count(fields)} == 1", "message": f"exactly one of {names} is required"}
    return {"rule": f"{_count(fields)} <= 1", "message": f"at most one of {names} is possible"}


def _only(field: str, rule: str, message: str) -> Rule:
    return {"rule": f"!has(self.{field}) || {rule}", "message": message, "fieldPath": f".{field}"}


_NO_QLORA = (
    "qlora cannot run on a TPU; before the first attempt write its rank, alpha, dropout, targetModules and dora as "
    "lora: {...} in its place, afterwards take accelerator.gpu again, or create a new resource with another output.uri"
)
"""One text for both times: a messageExpression that writes the block out costs more than the API server allows."""

BLOCKS: Mapping[str, Sequence[Rule]] = {
    "spec": (
        _one_of("qlora", "lora", "full"),
        _only("qlora", "!has(self.accelerator.tpu)", _NO_QLORA),
        _only(
            "backend",
            "(self.backend == 'torch' ? !has(self.accelerator.tpu) : !has(self.accelerator.gpu))",
            "torch trains on gpu and cpu, xla and keras on tpu and cpu; use one of those, or another accelerator",
        ),
    ),
    "spec.dataset": (
        _one_of("text", "instruct", "chat", "imageText", exactly=True),
        _one_of("evalFraction", "evalUri"),
    ),
    "spec.training": (
        _one_of("maxSteps", "epochs"),
        _only(
            "microBatchSize",
            "(has(self.globalBatchSize) ? self.globalBatchSize : 16) % self.microBatchSize == 0",
            "must divide globalBatchSize (default 16)",
        ),
        _only(
            "warmupSteps",
            "self.warmupSteps == 0 || !has(self.schedule) || self.schedule != 'constant'",
            "schedule constant has no warm-up; use constant_with_warmup, or warmupSteps 0",
        ),
    ),
    "spec.checkpoint": (_one_of("everySteps", "every"),),
    "spec.accelerator": (_one_of("gpu", "tpu", "cpu", exactly=True),),
    "spec.provisioning": (
        {
            "rule": "(has(self.mode) && self.mode == 'reservation') == has(self.reservation)",
            "message": "mode reservation and the reservation's name belong together; set both or neither",
            "fieldPath": ".reservation",
        },
        _only("fallback", "(has(self.mode) && self.mode == 'spot')", "only mode spot falls back"),
    ),
    "spec.pod.env[]": (
        _one_of("value", "valueFrom"),
        {
            "rule": "!self.name.startsWith('GEMMATUNE_')",
            "message": "names that begin with GEMMATUNE_ are reserved; use another name",
            "fieldPath": ".name",
        },
    ),
    "spec.pod.env[].valueFrom": (_one_of("secretKeyRef", "configMapKeyRef", exactly=True),),
}
"""Rules of blocks below the root, by their path; `[]` stands for an entry of a list."""


def pattern_rule(pattern: str) -> Rule | None:
    """The rule for a text field with a pattern that has words; None for other patterns."""
    words = PATTERNS.get(pattern)
    if words is None:
        return None
    remedy = words.remedy.rstrip(".")
    return {
        "rule": f"self.matches('{pattern}')",
        "message": f"{words.message}; {remedy[:1].lower()}{remedy[1:]}",
    }


def attach(schema: dict[str, Any], path: str = "spec") -> None:
    """Adds the rules of `BLOCKS` to the schema of `spec`, in place."""
    rules = BLOCKS.get(path)
    if rules:
        schema["x-kubernetes-validations"] = [dict(rule) for rule in rules]
    for name, child in schema.get("properties", {}).items():
        attach(child, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        attach(schema["items"], f"{path}[]")
