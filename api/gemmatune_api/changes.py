"""The transition rules of the API server over two specs in Python, for runs that have no API server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from gemmatune_api.cel import FIXED, PAUSED, PAUSED_TRAINING
from gemmatune_api.errors import Problem, shown
from gemmatune_api.names import Phase

_TRAINING = "training"
_NEVER = "is fixed once the first attempt exists"
_ONLY_PAUSED = "may change only while the run is suspended or Failed, once the first attempt exists"
_NEW = "Put the old value back, or create a new resource with another output.uri."
_SUSPEND = "Put the old value back, or suspend the run first."


def once_started(problem: Problem) -> Problem:
    """A problem of a run that has attempts: a field that is fixed by now cannot be its remedy.

    What is fixed has not changed, so what contradicts it has: accelerator, backend or mesh.
    """
    block, _, field = problem.path.removeprefix("spec.").partition(".")
    fixed = field not in PAUSED_TRAINING if block == _TRAINING else block in FIXED
    if not fixed:
        return problem
    remedy = (
        f"{problem.path} is fixed since the first attempt: put back what was changed since (such as accelerator or "
        f"backend), or create a new resource with another output.uri. There: {problem.remedy}"
    )
    return replace(problem, remedy=remedy)


def forbidden(old: Mapping[str, Any], new: Mapping[str, Any], status: Mapping[str, Any]) -> list[Problem]:
    """The changes from one spec (as JSON) to another that the status of the run forbids."""
    if not status.get("attempts"):
        return []
    paused = bool(old.get("suspend") or new.get("suspend")) or status.get("phase") == Phase.FAILED
    problems = []
    for path, pausable, before, after in _changes(old, new):
        if not pausable or not paused:
            found = f"{shown(after)}, before: {shown(before)}"
            message, remedy = (_ONLY_PAUSED, _SUSPEND) if pausable else (_NEVER, _NEW)
            problems.append(Problem(f"spec.{path}", message, remedy, found))
    return problems


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, bool, Any, Any]]:
    """Path, whether it may change in a pause, old value and new value of the fields that differ."""
    for name in (*FIXED, *PAUSED):
        if old.get(name) != new.get(name):
            yield name, name in PAUSED, old.get(name), new.get(name)
    before, after = old.get(_TRAINING) or {}, new.get(_TRAINING) or {}
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            yield f"{_TRAINING}.{name}", name in PAUSED_TRAINING, before.get(name), after.get(name)
