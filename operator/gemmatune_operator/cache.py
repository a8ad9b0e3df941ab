"""What the watches have shown of the runs, small enough to keep for thousands of them: most looks need no request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from pydantic_core import from_json, to_json

from gemmatune_api import names
from gemmatune_operator.observe import Observed, of_resource, output_of, unclaimed
from gemmatune_operator.views import EventView, JobView, PodView, events_of, job_view, mapping, metadata, pod_view
from gemmatune_operator.workqueue import Priority

Key = tuple[str, str]
"""Namespace and name of a resource."""
Wake = tuple[Key, Priority]
"""A run that wants a look, and how urgently."""
Versions = dict[Key, int]
"""Versions of the objects of a kind by namespace and name."""

STORIES = 2000
"""Jobs and pods whose Events are kept; the oldest go first."""
TELLING = frozenset({"FailedCreate", "FailedMount", "FailedAttachVolume", "FailedScaleUp", "TriggeredScaleUp"})
"""Events that tell what no object's status does."""
_NOISE = ("FailedScheduling", "BackOff", "Failed", "Unhealthy", "FailedGetResourceMetric", "NodeNotReady")
WARNINGS = ",".join(["type=Warning", f"involvedObject.kind!={names.KIND}", *(f"reason!={reason}" for reason in _NOISE)])
"""Field selector of the Events of type Warning. It knows no "or", so it leaves out what clusters have most of and what
a pod's status tells as well; the rest is looked through here."""
SCALED = "reason=TriggeredScaleUp"
"""Field selector of the one ordinary Event among them: a node is being made."""
_DROPPED = {"progress": ("historySteps", "historyLoss")}
"""Parts of the status that no policy reads."""
View = TypeVar("View", JobView, PodView)


@dataclass(frozen=True, slots=True)
class _Run:
    uid: str
    version: int
    text: bytes
    output: tuple[str, str]
    mark: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Child(Generic[View]):
    version: int
    run: Key
    run_uid: str
    uid: str
    view: View


class Cache:
    """Resources as JSON without what no policy reads; Jobs and pods as the views that policies see."""

    def __init__(self) -> None:
        self._runs: dict[Key, _Run] = {}
        self._outputs: dict[tuple[str, str], set[Key]] = {}
        self._departed: dict[Key, list[_Run]] = {}
        self._dead: OrderedDict[str, int] = OrderedDict()
        self._jobs: _Children[JobView] = _Children()
        self._pods: _Children[PodView] = _Children()
        self._stories: OrderedDict[str, dict[str, EventView]] = OrderedDict()

    @property
    def keys(self) -> list[Key]:
        """The runs there are."""
        return list(self._runs)

    def documents(self) -> list[tuple[Key, int, bytes]]:
        """Key, version and JSON of every run; may be called from another thread."""
        return [(key, run.version, run.text) for key, run in list(self._runs.items())]

    # --- what is told ---

    def resource(self, type_: str | None, body: Mapping[str, Any]) -> list[Wake]:
        """A resource as a watch or an answer shows it.

        Only a change of what may change a decision wakes: the operator's own writes and progress do not.
        """
        run, key = _run(body), _key(body)
        old = self._runs.get(key)
        if type_ == "DELETED":
            return self._deleted(key, old, run)
        if 0 < run.version <= max(self._dead.get(run.uid, 0), old.version if old is not None else 0):
            return []  # known already; or an answer that was under way when its resource went
        if old is not None and old.uid != run.uid:
            self._depart(key, old)
        if old is None or old.output != run.output:
            self._release(key, old)
            if run.output[1]:  # else the defaults decide, and have not yet
                self._outputs.setdefault(run.output, set()).add(key)
        self._runs[key] = run
        if old is not None and old.mark == run.mark and (type_ == "MODIFIED" or old.version == run.version):
            return []
        new = (old is None or old.uid != run.uid) and not body.get("status")
        return [(key, Priority.URGENT if new else Priority.ROUTINE)]

    def _deleted(self, key: Key, old: _Run | None, run: _Run) -> list[Wake]:
        if old is None or old.uid != run.uid:
            return []
        self._release(key, old)
        del self._runs[key]
        self._depart(key, run)
        rivals = self._outputs.get(old.output, ())
        return [(other, Priority.ROUTINE) for other in (key, *rivals)]

    def _depart(self, key: Key, last: _Run) -> None:
        self._departed.setdefault(key, []).append(last)
        self._dead[last.uid] = last.version
        if len(self._dead) > STORIES:
            self._dead.popitem(last=False)

    def _release(self, key: Key, run: _Run | None) -> None:
        if run is not None and (holders := self._outputs.get(run.output)) is not None:
            holders.discard(key)
            if not holders:
                del self._outputs[run.output]

    def job(self, type_: str | None, body: Mapping[str, Any]) -> list[Wake]:
        """A Job of a run; its end is urgent."""
        found = _child(body, job_view(dict(body)))
        if found is None:
            return []
        old = self._jobs.take(type_, found)
        if old is found:
            return []
        ending = found.view.finished or found.view.failure_target or type_ == "DELETED"
        return [(found.run, Priority.URGENT if ending else Priority.ROUTINE)]

    def pod(self, type_: str | None, body: Mapping[str, Any]) -> list[Wake]:
        """A pod of a run."""
        found = _child(body, pod_view(dict(body)))
        if found is None or self._pods.take(type_, found) is found:
            return []
        return [(found.run, Priority.ROUTINE)]

    def event(self, body: Mapping[str, Any]) -> list[Wake]:
        """An Event; what it tells of a run's Job or pod is kept, also where it comes before the object itself."""
        (view,), about = events_of([dict(body)]), mapping(body.get("involvedObject"))
        run = names.run_of(str(about.get("kind")), str(about.get("name")))
        key, uid = (str(about.get("namespace")), run or ""), str(about.get("uid") or "")
        if view.reason not in TELLING or key not in self._runs:
            return []
        story = self._stories.setdefault(uid, {})
        story[view.reason] = view
        self._stories.move_to_end(uid)
        if len(self._stories) > STORIES:
            self._stories.popitem(last=False)
        return [(key, Priority.ROUTINE)]

    # --- all there is of a kind ---

    def versions(self, kind: str) -> Versions:
        """What is known of a kind: taken before it is listed, for `compare`."""
        if kind == names.KIND:
            return {key: run.version for key, run in self._runs.items()}
        return (self._jobs if kind == "Job" else self._pods).versions()

    def compare(self, kind: str, before: Versions, listed: set[Key]) -> list[Wake]:
        """Drops what was known before a list and is not in it: a watch may have missed its deletion."""
        gone = {key: version for key, version in before.items() if key not in listed}
        if kind != names.KIND:
            return (self._jobs if kind == "Job" else self._pods).drop(gone)
        wakes: list[Wake] = []
        for key, version in gone.items():
            run = self._runs.get(key)
            if run is not None and run.version == version:
                wakes += self._deleted(key, run, run)
        return wakes

    def keep_jobs(self, observed: Observed) -> None:
        """Forgets Jobs and pods of a run that a live look did not find."""
        self._jobs.keep(observed.uid, set(observed.jobs))
        pods = {pod.name for job in observed.jobs.values() for pod in job.pods}
        self._pods.keep(observed.uid, pods | {pod.name for pod in observed.lost_pods})

    # --- what is known ---

    def observe(self, namespace: str, name: str) -> Observed | None:
        """The run as far as it is known; None where it is not."""
        run = self._runs.get((namespace, name))
        if run is None:
            return None
        observed = self._observed(run)
        if unclaimed(observed) and not observed.deleting:
            others = self._outputs.get(run.output, set()) - {(namespace, name)}
            observed = replace(observed, rivals=tuple(from_json(self._runs[key].text) for key in sorted(others)))
        return observed

    def departed(self, namespace: str, name: str) -> list[Observed]:
        """The runs of this name that are gone since this was last asked, as they were at the end."""
        return [self._observed(run) for run in self._departed.pop((namespace, name), ())]

    def _observed(self, run: _Run) -> Observed:
        pods: dict[str, list[PodView]] = {}
        for _, pod in self._pods.of(run.uid):
            if pod.phase == "Pending":
                pod = replace(pod, events=self._story(pod.uid))
            pods.setdefault(pod.job, []).append(pod)
        jobs = {}
        for name_, job in self._jobs.of(run.uid):
            if job.owner_uid == run.uid:
                own = tuple(pods.pop(name_, ()))
                jobs[name_] = replace(job, pods=own, events=() if own else self._story(job.uid))
        lost = tuple(pod for rest in pods.values() for pod in rest)
        return replace(of_resource(from_json(run.text)), jobs=jobs, lost_pods=lost)

    def _story(self, uid: str) -> tuple[EventView, ...]:
        story = self._stories.get(uid, {}).values()
        return tuple(sorted(story, key=lambda event: event.last.timestamp() if event.last else 0.0))


class _Children(Generic[View]):
    """Jobs or pods, by the UID of their run and by name."""

    def __init__(self) -> None:
        self._by_run: dict[str, dict[str, _Child[View]]] = {}

    def take(self, type_: str | None, new: _Child[View]) -> _Child[View] | None:
        """Stores or removes a child; the one that was known before, `new` itself where nothing has changed."""
        old = self._by_run.get(new.run_uid, {}).get(new.view.name)
        if type_ == "DELETED":
            if old is None or old.uid != new.uid:
                return new
            self._remove(new.run_uid, new.view.name)
            return old
        if old is not None and 0 < new.version <= old.version:
            return new
        if old is not None and old.uid != new.uid:
            self._remove(new.run_uid, new.view.name)
        self._by_run.setdefault(new.run_uid, {})[new.view.name] = new
        return new if old is not None and old.view == new.view else old

    def of(self, run_uid: str) -> Iterable[tuple[str, View]]:
        """The children of a run by name."""
        return [(name, child.view) for name, child in self._by_run.get(run_uid, {}).items()]

    def versions(self) -> Versions:
        """Versions by namespace and name."""
        children = (child for own in self._by_run.values() for child in own.values())
        return {(child.run[0], child.view.name): child.version for child in children}

    def drop(self, gone: Versions) -> list[Wake]:
        """Removes what has still the version that it had."""
        found = [
            child
            for own in self._by_run.values()
            for child in own.values()
            if gone.get((child.run[0], child.view.name)) == child.version
        ]
        for child in found:
            self._remove(child.run_uid, child.view.name)
        return [(child.run, Priority.URGENT) for child in found]

    def keep(self, run_uid: str, wanted: set[str]) -> None:
        """Removes the children of a run that are not among the wanted."""
        for name in set(self._by_run.get(run_uid, ())) - wanted:
            self._remove(run_uid, name)

    def _remove(self, run_uid: str, name: str) -> None:
        own = self._by_run[run_uid]
        del own[name]
        if not own:
            del self._by_run[run_uid]


def _key(body: Mapping[str, Any]) -> Key:
    meta = mapping(body.get("metadata"))
    return str(meta.get("namespace")), str(meta.get("name"))


def _run(body: Mapping[str, Any]) -> _Run:
    meta = {name: value for name, value in metadata(dict(body)).items() if name != "managedFields"}
    status = {
        name: {part: value for part, value in field.items() if part not in _DROPPED[name]}
        if name in _DROPPED and isinstance(field, dict)
        else field
        for name, field in mapping(body.get("status")).items()
        if name != "samples"
    }
    small = {**body, "metadata": meta, "status": status}
    retry = mapping(meta.get("annotations")).get(names.ANNOTATION_RETRY)
    return _Run(
        uid=str(meta.get("uid") or ""),
        version=_version(meta),
        text=to_json(small),
        output=(str(meta.get("namespace")), output_of(body)),
        mark=(meta.get("uid"), meta.get("generation"), retry, meta.get("deletionTimestamp")),
    )


def _child(body: Mapping[str, Any], view: View) -> _Child[View] | None:
    meta = metadata(dict(body))
    labels = mapping(meta.get("labels"))
    run, run_uid = labels.get(names.LABEL_RUN), labels.get(names.LABEL_RUN_UID)
    if not run or not run_uid:
        return None
    key = (str(meta.get("namespace")), str(run))
    return _Child(version=_version(meta), run=key, run_uid=str(run_uid), uid=str(meta.get("uid") or ""), view=view)


def _version(meta: Mapping[str, Any]) -> int:
    """The version as a number, as which Kubernetes lets versions of a kind be compared."""
    text = str(meta.get("resourceVersion") or "")
    return int(text) if text.isdecimal() else 0
