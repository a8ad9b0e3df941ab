"""One look at one run: observe -> plan -> one status write -> deletions and creations."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from gemmatune_api import names
from gemmatune_api.names import TRAINER_STATUS_FIELDS, Reason
from gemmatune_api.status import FineTuneStatus
from gemmatune_operator import events
from gemmatune_operator.decision import Decision
from gemmatune_operator.journal import Journal
from gemmatune_operator.memory import Memory
from gemmatune_operator.observe import Observed, Refusal, observe
from gemmatune_operator.policies import plan
from gemmatune_operator.ports import AlreadyExistsError, Cluster, ConflictError, Object, RefusedError
from gemmatune_operator.settings import Settings
from gemmatune_operator.views import owner_uid

LOOKS = 5
"""Looks in one call: a conflict, or a Job that cannot be created, is planned for again."""
OWNED = frozenset({"Job", "Service"})
"""Kinds of objects that belong to one run; the others are shared."""
AFTER_CONFLICTS = 1.0
"""Seconds until the next call when every look met a conflict."""


async def reconcile(
    cluster: Cluster,
    namespace: str,
    name: str,
    now: datetime,
    settings: Settings,
    memory: Memory | None = None,
    journal: Journal | None = None,
) -> float | None:
    """Brings one run a step further.

    Returns the seconds until it wants to be called again without an event, or None: only on an event.
    `memory` holds what a process knows and the API server does not (when progress last moved); without it nothing
    counts as stalled. `journal` is told of every change that the API server has taken.

    Raises:
        RefusedError: the API server refuses the status itself.
        UnavailableError: the API server does not answer; call again later.
    """
    memory, journal = memory or Memory(), journal or Journal()
    refusal: Refusal | None = None
    for _ in range(LOOKS):
        observed = await observe(cluster, namespace, name)
        if observed is None or observed.deleting:
            memory.forget(namespace, name)
            journal.forget(namespace, name)
            return None
        observed = replace(observed, refusal=refusal, still_since=memory.still_since(observed, now))
        decision = plan(observed, now, settings)
        try:
            await write_status(cluster, observed, decision, journal)
        except ConflictError:
            continue
        refusal = await act(cluster, observed, decision)
        if refusal is None:
            return decision.wake
    return AFTER_CONFLICTS


async def write_status(cluster: Cluster, observed: Observed, decision: Decision, journal: Journal) -> None:
    """Applies the operator's fields, all of them, when one has changed; then says so in log, counters and Events."""
    before, after = operator_fields(observed.status), operator_fields(decision.status)
    journal.seen(observed, decision.status)
    if before == after:
        return
    meta = {"name": observed.name, "namespace": observed.namespace, "resourceVersion": observed.resource_version}
    resource: Object = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": meta, "status": after}
    await cluster.apply_status(resource)
    journal.changed(observed.status, decision.status)
    for event in events.transitions(observed.status, decision.status):
        await cluster.emit(observed.raw, event.type, event.reason, event.message)


def operator_fields(status: FineTuneStatus) -> Object:
    """The status as the operator writes it: everything but the trainer's four fields."""
    dumped = status.model_dump(by_alias=True, exclude_none=True, exclude=set(TRAINER_STATUS_FIELDS), mode="json")
    dumped["attempts"] = [_filled(attempt) for attempt in dumped.get("attempts", [])]
    return _filled(dumped)


def _filled(fields: Object) -> Object:
    return {name: value for name, value in fields.items() if value not in ("", [])}


async def act(cluster: Cluster, observed: Observed, decision: Decision) -> Refusal | None:
    """Deletes and creates; the answer is a Job that could not be created."""
    for item in decision.delete:
        await cluster.delete(item.kind, observed.namespace, item.name, item.uid, item.version)
    for obj in decision.create:
        refusal = await create(cluster, observed, obj)
        if refusal is not None:
            return refusal
    return None


async def create(cluster: Cluster, observed: Observed, obj: Object) -> Refusal | None:
    """Creates an object once: one that this run owns already is adopted; access objects are shared by all runs."""
    kind, name = obj["kind"], obj["metadata"]["name"]
    try:
        await cluster.create(obj)
    except RefusedError as error:
        return Refusal(name, Reason.POLICY_DENIED, f"The API server refused the {kind} {name}: {error}")
    except AlreadyExistsError:
        return await taken(cluster, observed, kind, name) if kind in OWNED else None
    return None


async def taken(cluster: Cluster, observed: Observed, kind: str, name: str) -> Refusal | None:
    """Why the name of a Job or Service is taken; None where it is this run's own."""
    found = await cluster.get(kind, observed.namespace, name)
    if found is None:
        message = f"The {kind} {name} was being deleted when it was to be created."
        return Refusal(name, Reason.WAITING_FOR_CLEANUP, message)
    meta = found["metadata"]
    if meta.get("deletionTimestamp"):
        return Refusal(name, Reason.WAITING_FOR_CLEANUP, f"The {kind} {name} of an earlier run is still being deleted.")
    if owner_uid(found) == observed.uid:
        return None
    if meta.get("labels", {}).get(names.LABEL_RUN_UID):
        return Refusal(name, Reason.WAITING_FOR_CLEANUP, f"The {kind} {name} belongs to an earlier run of this name.")
    return Refusal(name, Reason.NAME_CONFLICT, f"A {kind} {name} exists that this run does not own.")
