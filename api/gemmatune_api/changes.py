"""Which fields of a spec may change once the first attempt exists: one table, and the rule over two specs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from gemmatune_api.errors import Problem, shown
from gemmatune_api.names import Phase
from gemmatune_api.spec import FineTuneSpec, TrainingSpec


class Freedom(StrEnum):
    """When a field may change after the first attempt began."""

    ALWAYS = "always"
    PAUSED = "paused"
    """While spec.suspend is true before or after the change, or the run is Failed."""
    NEVER = "never"


_ALWAYS = frozenset({"suspend", "limits", "ttlAfterFinished"})
_PAUSED = frozenset({"accelerator", "provisioning", "backend", "mesh", "scheduling", "pod", "checkpoint"})
_PAUSED_TRAINING = frozenset({"microBatchSize", "gradientCheckpointing"})


def _wire_names(model: type[FineTuneSpec] | type[TrainingSpec]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _freedom(field: str) -> Freedom:
    return Freedom.ALWAYS if field in _ALWAYS else Freedom.PAUSED if field in _PAUSED else Freedom.NEVER


TRAINING = "training"
"""The one block whose fields are compared one by one."""
FIELDS: dict[str, Freedom] = {name: _freedom(name) for name in _wire_names(FineTuneSpec) if name != TRAINING}
"""Every field of spec but training, by its name on the wire."""
TRAINING_FIELDS: dict[str, Freedom] = {
    name: Freedom.PAUSED if name in _PAUSED_TRAINING else Freedom.NEVER for name in _wire_names(TrainingSpec)
}
"""Every field of spec.training."""

MESSAGES = {
    Freedom.NEVER: "is fixed once the first attempt exists",
    Freedom.PAUSED: "may change only while the run is suspended or Failed, once the first attempt exists",
}
REMEDIES = {
    Freedom.NEVER: "Put the old value back, or create a new resource with another output.uri.",
    Freedom.PAUSED: "Put the old value back, or suspend the run first.",
}


def forbidden(old: Mapping[str, Any], new: Mapping[str, Any], status: Mapping[str, Any]) -> list[Problem]:
    """The changes from one spec (as JSON) to another that the status of the run forbids."""
    if not status.get("attempts"):
        return []
    paused = bool(old.get("suspend") or new.get("suspend")) or status.get("phase") == Phase.FAILED
    return [
        Problem(f"spec.{path}", MESSAGES[freedom], REMEDIES[freedom], f"{shown(after)}, before: {shown(before)}")
        for path, freedom, before, after in _changes(old, new)
        if freedom is Freedom.NEVER or (freedom is Freedom.PAUSED and not paused)
    ]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Freedom, Any, Any]]:
    for name, freedom in FIELDS.items():
        if old.get(name) != new.get(name):
            yield name, freedom, old.get(name), new.get(name)
    before, after = old.get(TRAINING) or {}, new.get(TRAINING) or {}
    for name, freedom in TRAINING_FIELDS.items():
        if before.get(name) != after.get(name):
            yield f"{TRAINING}.{name}", freedom, before.get(name), after.get(name)
