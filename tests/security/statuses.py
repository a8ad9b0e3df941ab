"""Statuses with something odd in them: those of runs in all their stages, in which a few fields hold other values.

Most of these values have the type that the definition asks for: the API server lets them through.
"""

from __future__ import annotations

import copy
import functools
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hypothesis import strategies as st

from gemmatune_api.names import ExitCode
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.settings import Settings
from tests.security.mutations import NASTY, anything
from tests.support.play import DONE, Play, spec

ROOT = Path(__file__).resolve().parents[2]
PRICED = Settings(prices={"nvidia-l4": {"onDemand": 1.0, "spot": 0.5}})
TIMES = (
    "2026-03-01T12:00:00Z",
    "2026-03-01T12:00:00.999999999Z",
    "2026-03-01T12:00:00+23:59",
    "2026-03-01T12:00:00",
    "2026-02-30T12:00:00Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59-12:00",
)
WORDS = ("True", "False", "Succeeded", "Failed", "Finished", "Training", "Merging", "quotes-t1", "quotes-p1", "spot")
DURATIONS = ("1h", f"{'9' * 400}h", f"{'9' * 5000}d", "99999999999999999999d")
SMALL = st.integers(0, 5)
times, durations = st.sampled_from(TIMES), st.sampled_from(DURATIONS)
strings = st.sampled_from((*TIMES, *WORDS, *NASTY, *DURATIONS)) | st.text(max_size=20)
integers = SMALL | st.sampled_from((-1, 2**31, 2**53, 2**63 - 1, -(2**63), 1e300)) | st.integers(-(2**63), 2**63 - 1)
numbers = integers | st.sampled_from((0.5, 1e308, -1e308, 5e-324)) | st.floats(allow_nan=False, allow_infinity=False)


class Stage(NamedTuple):
    """A run at some moment: what the API server holds of it, and when that was."""

    name: str
    resource: dict[str, Any]
    jobs: tuple[dict[str, Any], ...]
    pods: tuple[dict[str, Any], ...]
    now: datetime

    def __repr__(self) -> str:
        """What a failing test shows: the rest is the stage's own."""
        return f"{self.name}: {self.resource['status']}"


@functools.cache
def schema() -> dict[str, Any]:
    """Of the status, as the definition has it."""
    definition = yaml.safe_load((ROOT / "crds/gemmafinetunes.gemmatune.dev.yaml").read_text(encoding="utf-8"))
    (version,) = definition["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    return found


@functools.cache
def stages() -> tuple[Stage, ...]:
    """A run that loses a spot node and runs out of memory, and is merged; one that fails and is tried again."""
    found = []

    def seen(name: str, play: Play) -> None:
        jobs, pods = (tuple(copy.deepcopy(item) for item in play.store.list(kind)) for kind in ("Job", "Pod"))
        found.append(Stage(name, copy.deepcopy(play.resource), jobs, pods, play.now))

    blocks = {"provisioning": {"mode": "spot", "fallback": {"mode": "onDemand"}}, "limits": {"maxCost": 9}}
    play = Play(spec(**blocks, output={"uri": "gs://bucket/quotes", "merge": True}))
    play.settings = PRICED
    play.look()
    seen("preparing", play)
    play.training()
    prefix, curve = "gs://bucket/quotes", {"historySteps": [10, 20], "historyLoss": [2.5, 2.25]}
    progress = {
        "step": 40,
        "totalSteps": 100,
        "stepText": "40/100",
        "epoch": 0.5,
        "loss": 2.0,
        "evalLoss": 2.5,
        **curve,
    }
    progress |= {"learningRate": 1e-4, "tokensPerSecond": 500.0, "eta": "1h", "heartbeat": rfc3339(play.now)}
    checkpoint = {"step": 40, "uri": f"{prefix}/checkpoints/40", "note": "checkpoint 50 is damaged"}
    play.trainer(progress=progress, checkpoint=checkpoint)
    seen("training", play)
    play.ends("quotes-t1", ExitCode.INTERRUPTED)
    play.wait(600)
    play.runs("quotes-t2")
    play.ends("quotes-t2", ExitCode.ACCELERATOR_OUT_OF_MEMORY)
    seen("retried", play)
    play.wait(600)
    play.runs("quotes-t3")
    samples = [{"prompt": "Quote: be", "before": "a", "after": "b"}]
    names_ = ("adapter", "manifest", "report", "merged")
    artifacts = {**{name: f"{prefix}/{name}" for name in names_}, "sha256": "0" * 64, "serveCommand": "vllm serve"}
    play.trainer(progress=progress, checkpoint=checkpoint, samples=samples, artifacts=artifacts)
    play.ends("quotes-t3", ExitCode.DONE, DONE)
    seen("merging", play)
    play.ends("quotes-m1", ExitCode.DONE, {**DONE, "merged": f"{prefix}/merged"})
    seen("succeeded", play)

    play = Play(spec(limits={"maxRetries": 0}))
    play.training()
    play.ends("quotes-t1", ExitCode.CRASHED)
    seen("failed", play)
    play.annotate("1")
    seen("tried again", play)
    play.change(lambda spec: spec.update(suspend=True))
    seen("suspending", play)
    return tuple(found)


_made: dict[int, st.SearchStrategy[Any]] = {}
"""By the identity of a part of the definition, which is read once: making one takes longer than a value of it."""


def of_schema(found: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Any value of the types that a part of the definition asks for."""
    if id(found) not in _made:
        _made[id(found)] = _of_schema(found)
    return _made[id(found)]


def of_property(name: str, found: dict[str, Any]) -> st.SearchStrategy[Any]:
    """The same of a property: one for a time or a duration holds another one more often than not."""
    kinds = of_schema(found)
    if name == "eta":
        return durations | durations | kinds
    return times | times | kinds if name.endswith(("Time", "Since", "heartbeat")) else kinds


def _of_schema(found: dict[str, Any]) -> st.SearchStrategy[Any]:
    kind = found.get("type")
    if kind == "object":
        if "properties" not in found:
            values = of_schema(found["additionalProperties"]) if found.get("additionalProperties") else anything
            return st.dictionaries(strings, values, max_size=3)
        parts = {name: of_property(name, part) for name, part in found["properties"].items()}
        needed = {name: parts.pop(name) for name in found.get("required", ())}
        return st.fixed_dictionaries(needed, optional=parts)
    if kind == "array":
        return st.lists(of_schema(found["items"]), max_size=min(found.get("maxItems", 3), 3))
    return {"string": strings, "integer": integers, "number": numbers, "boolean": st.booleans()}.get(kind, anything)


@st.composite
def stored(draw: st.DrawFn) -> Stage:
    """A stage in whose status up to four places hold another value, some of them one of a wrong type."""
    stage = draw(st.sampled_from(stages()))
    resource = copy.deepcopy(stage.resource)
    for _ in range(draw(st.integers(1, 4))):
        _change(draw, resource["status"])
    if draw(st.booleans()):
        resource["status"]["message"] = (
            "Something else."  # the operator writes its own, and with it all that goes along
        )
    return stage._replace(resource=resource)


def _change(draw: st.DrawFn, status: dict[str, Any]) -> None:
    """Walks down the definition, and puts something where it stops; what is on the way is made where it is missing."""
    block, part = status, schema()
    while True:
        name = draw(st.sampled_from(sorted(part["properties"])))
        part = part["properties"][name]
        there = block.get(name)
        if part.get("type") == "array" and isinstance(there, list) and there and draw(st.booleans()):
            block[name] = _items(draw, there, part)
            return
        if "properties" not in part or not isinstance(there, dict) or not draw(st.integers(0, 3)):
            block[name] = draw(anything if not draw(st.integers(0, 9)) else of_property(name, part))
            return
        block = there


def _items(draw: st.DrawFn, there: list[Any], part: dict[str, Any]) -> list[Any]:
    """A list with one changed, dropped, or in another order."""
    place = draw(st.integers(0, len(there) - 1))
    item = there[place]
    ways = (
        ("other", "dropped", "turned round") if not isinstance(item, dict) else ("field", "field", "other", "dropped")
    )
    way = draw(st.sampled_from(ways))
    if way == "dropped":
        return [*there[:place], *there[place + 1 :]]
    if way == "turned round":
        return there[::-1]
    new = draw(of_schema(part["items"]))
    if way == "field" and isinstance(item, dict):
        name = draw(st.sampled_from(sorted(part["items"]["properties"])))
        new = {**item, name: draw(of_property(name, part["items"]["properties"][name]))}
    return [*there[:place], new, *there[place + 1 :]]
