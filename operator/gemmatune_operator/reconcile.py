"""One look at one run: observe -> plan -> one status write -> deletions and creations."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum
from functools import partial

from gemmatune_api import names
from gemmatune_api.names import TRAINER_STATUS_FIELDS, Reason
from gemmatune_api.status import FineTuneStatus
from gemmatune_operator import events
from gemmatune_operator.cache import Cache
from gemmatune_operator.certainty import Certainty, certainty
from gemmatune_operator.decision import Decision
from gemmatune_operator.journal import Journal
from gemmatune_operator.manifests import access
from gemmatune_operator.memory import Memory
from gemmatune_operator.observe import (
    Observed,
    Refusal,
    asked_output,
    observe,
    of_resource,
    unclaimed,
    with_defaults,
)
from gemmatune_operator.policies import plan, situation_of
from gemmatune_operator.policies.deleted import deleted, trains_on
from gemmatune_operator.ports import AlreadyExistsError, Cluster, ConflictError, Object, RefusedError
from gemmatune_operator.posting import Emit
from gemmatune_operator.settings import Settings
from gemmatune_operator.sharing import SharedReads
from gemmatune_operator.views import job_view, mapping, owner_uid
from gemmatune_operator.workqueue import Priority

LOOKS = 5
"""Looks in one call: a conflict, or a Job that cannot be created, is planned for again."""
OWNED = frozenset({"Job", "Service"})
"""Kinds of objects that belong to one run; the others are shared."""
AFTER_CONFLICTS = 1.0
"""Seconds until the next call when every look met a conflict."""


class _Undecided(Enum):
    LIVE = "the cache is not enough"


@dataclass(frozen=True, slots=True)
class Tools:
    """What a look works with."""

    cluster: Cluster
    settings: Settings
    memory: Memory = field(default_factory=Memory)
    """What a process knows and the API server does not; kept from look to look."""
    reads: SharedReads = field(default_factory=SharedReads)
    """What several looks ask at once."""
    journal: Journal = field(default_factory=Journal)
    """Told of every change that the API server has taken."""
    cache: Cache | None = None
    """What the watches have shown; without it everything is read live."""
    post: Emit | None = None
    """Records Events later; without it they are recorded at once."""


async def reconcile(
    cluster: Cluster, namespace: str, name: str, now: datetime, settings: Settings, memory: Memory | None = None
) -> float | None:
    """Brings one run a step further, with all that it needs read live; see `look`.

    Without `memory` nothing counts as stalled.
    """
    wake = await look(Tools(cluster, settings, memory or Memory()), namespace, name, now)
    return 0.0 if isinstance(wake, Priority) else wake


async def look(tools: Tools, namespace: str, name: str, now: datetime) -> float | Priority | None:
    """Brings one run a step further.

    Returns the seconds until it wants to be called again without an event, or None: only on an event; or how urgently
    it wants to be called again at once.

    Raises:
        RefusedError: the API server refuses the status itself.
        UnavailableError: the API server does not answer; call again later.
    """
    if tools.cache is not None:
        wake = await _by_cache(tools, tools.cache, namespace, name, now)
        if not isinstance(wake, _Undecided):
            return wake
    refusal: Refusal | None = None
    for _ in range(LOOKS):
        observed = await observe(tools.cluster, namespace, name)
        if observed is None or observed.deleting:
            tools.memory.forget(namespace, name)
            if tools.cache is None:
                tools.journal.forget(namespace, name)
            return None  # the journal hears of it when the watch, too, has shown it
        if tools.cache is not None:
            tools.cache.resource("MODIFIED", observed.raw)
            for last in tools.cache.departed(namespace, name):  # made again, and its watch is late
                leave(tools, last, now)
            tools.cache.keep_jobs(observed)
        await restore_access(tools, observed, now)
        observed = replace(observed, refusal=refusal, still_since=tools.memory.still_since(observed, now))
        decision = plan(observed, now, tools.settings)
        try:
            if not await write_status(tools, observed, decision) and decision.delete:
                await confirm(tools.cluster, observed)
            refusal = await act(tools, observed, decision, now)
        except ConflictError:
            continue
        if refusal is None:
            return decision.wake
    return AFTER_CONFLICTS


async def _by_cache(
    tools: Tools, cache: Cache, namespace: str, name: str, now: datetime
) -> float | Priority | _Undecided | None:
    """The look, as far as what the watches have shown is enough for it.

    A new run's Job comes before its status: that is written when no other run waits for its Job.
    """
    for last in cache.departed(namespace, name):
        leave(tools, last, now)
    observed = cache.observe(namespace, name)
    if observed is None:
        return _Undecided.LIVE
    if observed.deleting:
        if trains_on(observed):
            tools.journal.seen(observed, observed.status)
        else:
            leave(tools, observed, now)
        return None
    await restore_access(tools, observed, now)
    observed = replace(observed, still_since=tools.memory.still_since(observed, now))
    decision = tools.memory.kept(observed)
    if decision is None:
        if unclaimed(observed) and not asked_output(observed.raw):
            return _Undecided.LIVE  # who else writes there is looked up by a name that is not known yet
        observed = await with_defaults(partial(tools.reads.get, tools.cluster), observed)
        decision = plan(observed, now, tools.settings)
    match certainty(observed, decision, changed=changes(observed, decision)):
        case Certainty.NOTHING:
            tools.journal.seen(observed, decision.status)
            return decision.wake
        case Certainty.FIRST_JOB:
            if await act(tools, observed, decision, now) is not None:
                return _Undecided.LIVE
            tools.memory.keep(observed, replace(decision, create=()))
            return Priority.PATIENT
        case Certainty.STATUS:
            try:
                await write_status(tools, observed, decision)
            except ConflictError:
                return _Undecided.LIVE
            return _Undecided.LIVE if await act(tools, observed, decision, now) is not None else decision.wake
        case Certainty.LIVE:
            return _Undecided.LIVE


def leave(tools: Tools, last: Observed, now: datetime) -> None:
    """The run is gone, or only waits to be: what its open attempt has used is counted."""
    tools.memory.forget(last.namespace, last.name)
    if tools.journal.knows(last):
        tools.journal.deleted(last, deleted(situation_of(last, now, tools.settings)))


def changes(observed: Observed, decision: Decision) -> bool:
    """Whether a decision changes the operator's part of the status."""
    return operator_fields(observed.status) != operator_fields(decision.status)


async def write_status(tools: Tools, observed: Observed, decision: Decision) -> bool:
    """Applies the operator's fields, all of them, when one has changed; then says so in log, counters and Events.

    Returns whether there was anything to write.

    Raises:
        ConflictError: the resource has changed since it was observed.
    """
    tools.journal.seen(observed, decision.status)
    if not changes(observed, decision):
        return False
    meta = {"name": observed.name, "namespace": observed.namespace, "resourceVersion": observed.resource_version}
    status = operator_fields(decision.status)
    resource: Object = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": meta, "status": status}
    written = await tools.cluster.apply_status(resource)
    if tools.cache is not None:
        tools.cache.resource("MODIFIED", written)
    tools.journal.changed(observed.namespace, observed.status, decision.status)
    for event in events.transitions(observed.status, decision.status):
        await (tools.post or tools.cluster.emit)(observed.raw, event.type, event.reason, event.message)
    return True


async def confirm(cluster: Cluster, observed: Observed) -> None:
    """What a status write has by itself, and deletions without one must have: nobody has written meanwhile.

    Jobs and pods are read after the resource. Where another operator records an attempt in between, they are that
    attempt's, which the resource as it was read did not know.

    Raises:
        ConflictError: the resource has changed since it was observed, or is gone.
    """
    raw = await cluster.get(names.KIND, observed.namespace, observed.name)
    if raw is None or of_resource(raw).resource_version != observed.resource_version:
        raise ConflictError(f"{observed.namespace}/{observed.name} has changed since it was read")


def operator_fields(status: FineTuneStatus) -> Object:
    """The status as the operator writes it: everything but the trainer's four fields."""
    dumped = status.model_dump(by_alias=True, exclude_none=True, exclude=set(TRAINER_STATUS_FIELDS), mode="json")
    dumped["attempts"] = [_filled(attempt) for attempt in dumped.get("attempts", [])]
    return _filled(dumped)


def _filled(fields: Object) -> Object:
    return {name: value for name, value in fields.items() if value not in ("", [])}


async def act(tools: Tools, observed: Observed, decision: Decision, now: datetime) -> Refusal | None:
    """Deletes and creates; the answer is a Job that could not be created.

    Raises:
        ConflictError: what was to be deleted is not what was observed any more.
    """
    for item in decision.delete:
        await tools.cluster.delete(item.kind, observed.namespace, item.name, item.uid, item.version)
    for obj in decision.create:
        refusal = await create(tools, observed, obj, now)
        if refusal is not None:
            return refusal
    return None


async def create(tools: Tools, observed: Observed, obj: Object, now: datetime) -> Refusal | None:
    """Creates an object once: one that this run owns already is adopted."""
    kind = obj["kind"]
    if kind in access.KINDS:
        return await share(tools, observed, obj, now)
    try:
        made = await tools.cluster.create(obj)
    except RefusedError as error:
        return _denied(obj, error)
    except AlreadyExistsError:
        return await taken(tools.cluster, observed, obj) if kind in OWNED else None
    if kind == "Job" and tools.cache is not None:
        tools.cache.job("ADDED", made)
    return None


async def share(tools: Tools, observed: Observed, obj: Object, now: datetime) -> Refusal | None:
    """Creates an access object of the namespace, which all its runs share, unless it was there not long ago."""
    kind, name, memory = obj["kind"], obj["metadata"]["name"], tools.memory
    async with memory.access_lock(observed.namespace):
        if memory.has_access(observed.namespace, kind, name, now):
            return None
        try:
            await tools.cluster.create(obj)
        except RefusedError as error:
            return _denied(obj, error)
        except AlreadyExistsError:
            pass  # made by a run before
        memory.saw_access(observed.namespace, kind, name, now)
    return None


def _denied(obj: Object, error: RefusedError) -> Refusal:
    kind, name = obj["kind"], obj["metadata"]["name"]
    return Refusal(name, Reason.POLICY_DENIED, f"The API server refused the {kind} {name}: {error}")


async def restore_access(tools: Tools, observed: Observed, now: datetime) -> None:
    """Makes access objects again that somebody has deleted: a Job that lacks its ServiceAccount gets no pod."""
    missing = [event for job in observed.jobs.values() for event in job.events if event.lacks_account]
    for event in missing:
        tools.memory.forget_access(observed.namespace, event.last or now)
    if missing:
        spec = mapping(observed.status.resolved or observed.raw.get("spec"))
        account = mapping(spec.get("pod")).get("serviceAccountName")
        for obj in access.objects(observed.namespace, account):
            await create(tools, observed, obj, now)


async def taken(cluster: Cluster, observed: Observed, wanted: Object) -> Refusal | None:
    """Why the name of a Job or Service is taken; None where it is this run's own."""
    kind, name = wanted["kind"], wanted["metadata"]["name"]
    found = await cluster.get(kind, observed.namespace, name)
    if found is None:
        message = f"The {kind} {name} was being deleted when it was to be created."
        return Refusal(name, Reason.WAITING_FOR_CLEANUP, message)
    meta = found["metadata"]
    if meta.get("deletionTimestamp"):
        return Refusal(name, Reason.WAITING_FOR_CLEANUP, f"The {kind} {name} of an earlier run is still being deleted.")
    if owner_uid(found) == observed.uid:
        if job_view(found).generation == job_view(wanted).generation:
            return None
        return Refusal(name, Reason.WAITING_FOR_CLEANUP, f"The Job {name} was made for an earlier spec of this run.")
    if meta.get("labels", {}).get(names.LABEL_RUN_UID):
        return Refusal(name, Reason.WAITING_FOR_CLEANUP, f"The {kind} {name} belongs to an earlier run of this name.")
    return Refusal(name, Reason.NAME_CONFLICT, f"A {kind} {name} exists that this run does not own.")
