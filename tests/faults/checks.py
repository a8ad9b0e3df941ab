"""What must be true of a run after its fault: cause, budget in words, what follows, Events, one pod for each Job."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import datetime

from gemmatune_api import names
from gemmatune_api.names import Reason
from gemmatune_operator.conditions import parse_time
from tests.faults.scene import Fault, Next, Scene
from tests.support.api import Object
from tests.support.history import Change

COUNTS = {Next.COUNTED: (1, 0), Next.BACKS_OFF: (1, 0), Next.FREE: (0, 1), Next.FREE_LATER: (0, 1)}
"""Retries and preemptions that are used after one such end."""
PREPARE_COUNTS = {Next.PREPARE_COUNTED: (1, 0), Next.PREPARE_FREE: (0, 1)}
LATER = (Next.BACKS_OFF, Next.FREE_LATER)
FIXED = ("spec.", "dataset.", "training.", "model.", "lora.", "qlora.", "samples.")
"""How fields begin that cannot change any more once an attempt exists."""


def visible(fault: Fault, status: Object) -> bool:
    """Whether the status names the cause, in words that belong to it."""
    reason = fault.reason.value
    told = [str(item.get("message", "")) for item in status.get("attempts", []) if item.get("reason") == reason]
    message = str(status.get("message", ""))
    if status.get("reason") == reason or f" with {reason}: " in message:
        told.append(message)
    return any(fault.says in text for text in told)


def check(scene: Scene, fault: Fault) -> None:
    """What the table says of this cause."""
    if fault.next in (Next.WAITS, Next.PREPARE_WAITS):
        _waits(scene, fault)
    elif fault.next in (Next.FAILED, Next.PREPARE_FAILED):
        _failed(scene, fault)
    elif fault.next in PREPARE_COUNTS:
        _prepared_again(scene, fault)
    else:
        _tried_again(scene, fault)
    # Events are recorded in the background, after the status that this was about.
    scene.plant.history.first(scene.key, _tells, "an Event of the run")
    once(scene.plant.history.of(scene.key))


def _tells(change: Change) -> bool:
    return change.kind == "Event" and change.object["involvedObject"].get("kind") == names.KIND


def _waits(scene: Scene, fault: Fault) -> None:
    prepare = fault.next is Next.PREPARE_WAITS
    kind, phase = ("Prepared", "Preparing") if prepare else ("Provisioned", "Provisioning")
    status = scene.wait(lambda it: visible(fault, it) and it["phase"] == phase, f"{fault.reason} while {phase}")
    condition = scene.condition(kind)
    assert (condition["status"], condition["reason"]) == ("False", fault.reason)
    assert _open(status) != prepare, "the attempt goes on"
    assert _counters(status) in ((0, 0), None)
    assert status["remedy"]
    remedy(status["remedy"], started=not prepare)
    assert len(scene.job_names_of_run()) == (1 if prepare else 2)


def _failed(scene: Scene, fault: Fault) -> None:
    status = scene.wait_phase("Failed", seconds=60)
    started = fault.next is Next.FAILED
    assert status["reason"] == fault.reason
    assert fault.says in status["message"]
    assert status["remedy"]
    remedy(status["remedy"], started=started)
    assert scene.condition("Finished")["status"] == "True"
    assert [item["reason"] for item in status.get("attempts", [])] == ([fault.reason] if started else [])
    assert _counters(status) in ((0, 0), None)
    if started:
        assert status["attempts"][0]["counted"] is False
    again = scene.name + ("-t2" if started else "-p2")
    assert again not in scene.job_names_of_run()


def _prepared_again(scene: Scene, fault: Fault) -> None:
    status = scene.first(lambda it: it.kind == names.KIND and _number(it.status) == 2, "preparation 2").status
    retries, preemptions = PREPARE_COUNTS[fault.next]
    record = status["prepare"]
    assert (record.get("retries", 0), record.get("preemptions", 0)) == (retries, preemptions)
    assert f"(retry {retries} of 3, preemptions {preemptions} of 20)" in status["message"]
    assert fault.reason in status["message"]
    assert ("nextAttemptTime" in status) == (fault.next is Next.PREPARE_COUNTED)
    scene.first(lambda it: it.kind == "Job" and it.name == f"{scene.name}-p2", "the second preparation's Job")
    scene.trains()


def _gone(fault: Fault, message: str) -> bool:
    """Whether a disrupted pod was out of the API before anybody looked: then the Job's words are all there is."""
    return fault.reason is Reason.PREEMPTED and "has condition DisruptionTarget matching" in message


def _tried_again(scene: Scene, fault: Fault) -> None:
    change = scene.first(lambda it: it.kind == names.KIND and _closed(it.status), "a closed attempt", 300)
    status = change.status
    first, second = status["attempts"]
    assert first["reason"] == fault.reason
    assert fault.says in first["message"] or _gone(fault, first["message"])
    assert first["counted"] is (fault.next in (Next.COUNTED, Next.BACKS_OFF))
    retries, preemptions = COUNTS.get(fault.next, (0, 0))
    assert _counters(status) == (retries, preemptions)
    budget = f"retry {retries} of 3, preemptions {preemptions} of 20"
    assert budget in first["message"]
    assert budget in status["message"]
    assert fault.reason in status["message"]
    assert (status["phase"], status["reason"]) == ("Retrying", "Retrying")
    for text in (first["remedy"], status["remedy"]):
        assert text
        remedy(text, started=True)
    _what_changes(fault, status, second)
    _when(scene, fault, change)


def _what_changes(fault: Fault, status: Object, second: Object) -> None:
    overrides = second.get("overrides", {})
    if fault.next is Next.DOWNSHIFT:
        assert status["counters"]["outOfMemory"] == 1
        assert "downshifts 1 of 3" in status["message"]
        smaller = overrides.get("microBatchSize", 1 << 20) < status["plan"]["microBatchSize"]
        assert smaller or overrides.get("gradientCheckpointing")
    if fault.reason is Reason.HOST_OUT_OF_MEMORY:
        assert overrides["memory"] > 0
    if fault.reason is Reason.DISK_FULL:
        assert overrides["ephemeralStorage"] > 0
    if fault.next is Next.FALLBACK:
        assert second["provisioning"] == "onDemand"
    assert status["counters"].get("stalls", 0) == (fault.reason is Reason.STALLED)


def _when(scene: Scene, fault: Fault, closing: Change) -> None:
    """The next attempt's Job: at once (as soon as the last pod is gone), or after the pause that the status shows."""
    job = scene.first(lambda it: it.kind == "Job" and it.name == f"{scene.name}-t2", "the second attempt's Job", 300)
    due = closing.status.get("nextAttemptTime")
    assert (due is not None) == (fault.next in LATER)
    ended, created = (
        _moment(closing.status["attempts"][0]["endTime"]),
        _moment(job.object["metadata"]["creationTimestamp"]),
    )
    if due is not None:
        assert 7 <= (_moment(due) - ended).total_seconds() <= 13, "ten seconds, spread by a fifth"
        assert created >= _moment(due)


def _moment(text: str) -> datetime:
    moment = parse_time(text)
    assert moment is not None
    return moment


def _counters(status: Object) -> tuple[int, int] | None:
    found = status.get("counters")
    return (found.get("retries", 0), found.get("preemptions", 0)) if found is not None else None


def _open(status: Object) -> bool:
    attempts = status.get("attempts", [])
    return bool(attempts) and "endTime" not in attempts[-1]


def _closed(status: Object) -> bool:
    attempts = status.get("attempts", [])
    return len(attempts) == 2 and "endTime" in attempts[0]


def _number(status: Object) -> int:
    number: int = status.get("prepare", {}).get("number", 0)
    return number


def remedy(text: str, *, started: bool) -> None:
    """Once an attempt exists, a remedy names only what may still change, or another resource."""
    named = [word for word in FIXED if word in text.replace("spec.suspend", "")]
    assert not (started and named) or "new resource" in text, f"{named} cannot change any more: {text}"


def once(changes: Iterable[Change]) -> None:
    """No Job makes a second pod for one index, no Job is made twice, no Event is said twice."""
    pods: dict[tuple[str, str], set[str]] = defaultdict(set)
    jobs: dict[str, set[str]] = defaultdict(set)
    said: Counter[tuple[str, str]] = Counter()
    for change in changes:
        meta = change.object["metadata"]
        if change.kind == "Pod":
            owner = meta["ownerReferences"][0]["uid"]
            index = (meta.get("annotations") or {}).get("batch.kubernetes.io/job-completion-index", "0")
            pods[owner, index].add(meta["uid"])
        elif change.kind == "Job":
            jobs[change.name].add(meta["uid"])
        elif _tells(change):
            assert change.object["count"] == 1
            if change.type == "ADDED":
                said[change.object["reason"], change.object["message"]] += 1
    assert all(len(uids) == 1 for uids in pods.values()), f"second pods: {pods}"
    assert all(len(uids) == 1 for uids in jobs.values()), f"doubled Jobs: {jobs}"
    repeated = {event: count for event, count in said.items() if count > 1}
    assert not repeated, f"repeated Events: {repeated}"
