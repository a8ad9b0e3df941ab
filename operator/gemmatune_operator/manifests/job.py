"""What every Job shares: names, labels, owner, and that it makes each of its pods once and never a second time."""

from __future__ import annotations

from collections.abc import Mapping

from gemmatune_api import names
from gemmatune_api.names import ExitCode, Role
from gemmatune_api.spec import GemmaFineTune
from gemmatune_operator.ports import Object

FAILING_EXIT_CODES = sorted(int(code) for code in ExitCode if code is not ExitCode.DONE)


def labels(resource: GemmaFineTune, role: Role, number: int) -> dict[str, str]:
    """The labels of a Job and its pods, by which operator and people find them."""
    return {
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_RUN: resource.metadata.name,
        names.LABEL_RUN_UID: resource.metadata.uid,
        names.LABEL_ATTEMPT: str(number),
        names.LABEL_ROLE: role.value,
    }


def job(
    resource: GemmaFineTune,
    role: Role,
    number: int,
    template: Object,
    seconds: int | None = None,
    extra_labels: Mapping[str, str] | None = None,
) -> Object:
    """The Job of one attempt or preparation, around a pod template; `seconds` bounds its whole life.

    It says nothing of `suspend`, which is Kueue's where there is a queue.
    """
    spec: Object = {
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failure_rules()},
        "template": template,
    }
    if seconds is not None:
        spec["activeDeadlineSeconds"] = seconds
    metadata: Object = {
        "name": names.job_name(resource.metadata.name, role, number),
        "namespace": resource.metadata.namespace,
        "labels": {**(extra_labels or {}), **labels(resource, role, number)},
        "ownerReferences": [owner(resource)],
    }
    if role is Role.PREPARE:  # it is made before the status tells what it is for
        metadata["annotations"] = {names.ANNOTATION_GENERATION: str(resource.metadata.generation)}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def indexed(job: Object, pods: int) -> Object:
    """The same Job with several pods, each with an index and a host name of its own.

    They end together: with backoffLimit 0 the first lost pod fails the Job, and no index gets a second pod.
    """
    together = {"completionMode": "Indexed", "completions": pods, "parallelism": pods}
    return {**job, "spec": {**together, **job["spec"]}}


def owner(resource: GemmaFineTune) -> Object:
    """The reference by which an object goes with its resource."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": resource.metadata.name,
        "uid": resource.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _failure_rules() -> list[Object]:
    """Disruption first, then the trainer's exit codes; each ends the Job with a message that survives the pod.

    There is no `Ignore` rule: it would replace the pod inside the attempt, even with backoffLimit 0.
    """
    disruption = {"type": "DisruptionTarget", "status": "True"}
    codes = {"containerName": names.CONTAINER, "operator": "In", "values": FAILING_EXIT_CODES}
    return [
        {"action": "FailJob", "onPodConditions": [disruption]},
        {"action": "FailJob", "onExitCodes": codes},
    ]
