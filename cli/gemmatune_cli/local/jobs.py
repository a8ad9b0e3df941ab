"""The Job controller of the embedded cluster: one Job, one pod, never a second; its status and conditions."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from gemmatune_cli.local.cluster import NODE
from gemmatune_cli.local.store import Store, rfc3339
from gemmatune_operator.ports import Object

_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
ENDED = ("Succeeded", "Failed")
"""Phases of a pod whose containers have ended."""


def sync(store: Store, job: Object, now: datetime) -> None:
    """Brings one Job a step further: its pod, its status, or its removal."""
    meta = job["metadata"]
    pods = pods_of(store, job)
    if meta.get("deletionTimestamp"):
        _delete_pods(store, pods)
        if not pods_of(store, job):
            store.remove("Job", meta["namespace"], meta["name"])
        return
    if condition(job, "Complete") or condition(job, "Failed"):
        return
    if not pods and not condition(job, "FailureTarget"):
        store.create(_pod(job))
        pods = pods_of(store, job)
    status = _status(job, pods, now)
    if any(item["type"] == "FailureTarget" for item in status["conditions"]):
        _delete_pods(store, [pod for pod in pods if phase(pod) not in ENDED])
    store.write_status("Job", meta["namespace"], meta["name"], status)


def pods_of(store: Store, job: Object) -> list[Object]:
    """The pods that a Job owns."""
    pods = store.list("Pod", job["metadata"]["namespace"])
    uid = job["metadata"]["uid"]
    return [pod for pod in pods if any(owner["uid"] == uid for owner in pod["metadata"]["ownerReferences"])]


def phase(pod: Object) -> str:
    """Phase of a pod; Pending before the kubelet saw it."""
    return str(pod.get("status", {}).get("phase", "Pending"))


def condition(job: Object, type_: str) -> Object | None:
    """The condition of a Job where it is True."""
    conditions: list[Object] = job.get("status", {}).get("conditions", [])
    return next((item for item in conditions if item["type"] == type_ and item["status"] == "True"), None)


def _delete_pods(store: Store, pods: Sequence[Object]) -> None:
    for pod in pods:
        meta = pod["metadata"]
        store.delete("Pod", meta["namespace"], meta["name"], meta["uid"])


def _pod(job: Object) -> Object:
    meta, template = job["metadata"], copy.deepcopy(job["spec"]["template"])
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"], "controller": True}
    labels = {**template.get("metadata", {}).get("labels", {}), "batch.kubernetes.io/job-name": meta["name"]}
    suffix = "".join(secrets.choice(_SUFFIX_LETTERS) for _ in range(5))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{meta['name']}-{suffix}",
            "namespace": meta["namespace"],
            "labels": labels,
            "annotations": template.get("metadata", {}).get("annotations", {}),
            "ownerReferences": [owner],
        },
        "spec": {**template["spec"], "nodeName": NODE},
    }


def _status(job: Object, pods: Sequence[Object], now: datetime) -> Object:
    """The status of a Job that has not ended, from its pods."""
    old = job.get("status", {})
    status: Object = {"startTime": old.get("startTime") or rfc3339(now), "conditions": list(old.get("conditions", []))}
    live = [pod for pod in pods if phase(pod) not in ENDED]
    status["active"] = sum(not pod["metadata"].get("deletionTimestamp") for pod in live)
    status["terminating"] = len(live) - status["active"]
    status["succeeded"] = sum(phase(pod) == "Succeeded" for pod in pods)
    status["failed"] = sum(phase(pod) == "Failed" for pod in pods)

    def add(type_: str, reason: str, message: str) -> None:
        if all(item["type"] != type_ for item in status["conditions"]):
            time = rfc3339(now)
            item = {"type": type_, "status": "True", "reason": reason, "message": message, "lastTransitionTime": time}
            status["conditions"].append(item)

    failure = condition(job, "FailureTarget") or _failure(job, pods, status["startTime"], now)
    if failure is not None:
        add("FailureTarget", failure["reason"], failure["message"])
        if not live:
            add("Failed", failure["reason"], failure["message"])
    elif status["succeeded"]:
        add("SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods")
        add("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
        status["completionTime"] = rfc3339(now)
    return status


def _failure(job: Object, pods: Sequence[Object], started: str, now: datetime) -> Object | None:
    """Reason and message of a Job that has to fail, in the words of Kubernetes; None while it has not to."""
    failed = next((pod for pod in pods if phase(pod) == "Failed"), None)
    if failed is not None:
        matching = _matching_rule(job, failed)
        return matching or {
            "reason": "BackoffLimitExceeded",
            "message": "Job has reached the specified backoff limit",
        }
    limit = job["spec"].get("activeDeadlineSeconds")
    running = (now - datetime.fromisoformat(started).astimezone(UTC)).total_seconds()
    if limit is not None and running > limit and not any(phase(pod) == "Succeeded" for pod in pods):
        return {"reason": "DeadlineExceeded", "message": "Job was active longer than specified deadline"}
    return None


def _matching_rule(job: Object, pod: Object) -> Object | None:
    meta = pod["metadata"]
    rules = job["spec"].get("podFailurePolicy", {}).get("rules", [])
    for status in pod["status"].get("containerStatuses", []):
        code = status["state"].get("terminated", {}).get("exitCode", 0)
        for index, rule in enumerate(rules):
            wanted = rule.get("onExitCodes")
            if wanted and wanted["operator"] == "In" and code in wanted["values"]:
                return {
                    "reason": "PodFailurePolicy",
                    "message": f"Container {status['name']} for pod {meta['namespace']}/{meta['name']} failed with "
                    f"exit code {code} matching {rule['action']} rule at index {index}",
                }
    return None
