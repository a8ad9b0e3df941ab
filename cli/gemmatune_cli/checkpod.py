"""The short pod of `gft doctor`: under the run's identity it writes to the bucket and reads model and data."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from kubernetes import client

from gemmatune_api import names
from gemmatune_api.messages import TerminationMessage, from_text
from gemmatune_cli.checkup import Finding, Verdict, may_not
from gemmatune_cli.console import harmless
from gemmatune_cli.refusals import FORBIDDEN, reason, remedy
from gemmatune_cli.remote import Connection

LABELS = {"app.kubernetes.io/name": "gemmatune-doctor"}
RUN_SECONDS = 60
"""How long the check in the pod may take; it needs some 20."""
_PAUSE_SECONDS = 0.5


def access(cluster: Connection, namespace: str, template: dict[str, Any], patience: float) -> Iterator[Finding]:
    """Runs the check in a pod made from a preparation's template, and deletes the pod.

    Args:
        cluster: the cluster.
        namespace: of the run.
        template: of the preparation's Job.
        patience: seconds until the pod must have started (a node and an image may have to come).
    """
    pod = _pod(template, int(patience) + 2 * RUN_SECONDS)
    name = pod["metadata"]["name"]
    try:
        cluster.core.create_namespaced_pod(namespace, pod)
    except client.ApiException as error:
        if error.status != FORBIDDEN:
            yield may_not("pod", error, "create pods")
            return
        what = f"{remedy(error)} --no-pod leaves this check out."
        yield Finding(Verdict.UNKNOWN, "pod", f"it cannot be created: {reason(error)}", what)
        return
    try:
        yield from _ended(cluster, namespace, name, patience)
    except client.ApiException as error:
        yield may_not("pod", error, "read pods")
    finally:
        with contextlib.suppress(client.ApiException):  # it may be gone already
            cluster.core.delete_namespaced_pod(name, namespace, grace_period_seconds=0)


def _pod(template: dict[str, Any], seconds: int) -> dict[str, Any]:
    """The pod; it ends by itself after `seconds`, also where nobody is left to delete it."""
    spec = deepcopy(template["spec"])
    spec["activeDeadlineSeconds"] = seconds
    container = spec["containers"][0]
    container["command"] = ["python", "-m", names.TRAINER_MODULE, "check"]
    container.pop("readinessProbe", None)
    container["resources"] = {
        "requests": {"cpu": "250m", "memory": "512Mi", "ephemeral-storage": "1Gi"},
        "limits": {"memory": "2Gi", "ephemeral-storage": "5Gi"},
    }
    for volume in spec["volumes"]:
        if volume.get("emptyDir", {}).get("medium") != "Memory" and "emptyDir" in volume:
            volume["emptyDir"] = {"sizeLimit": "4Gi"}
    name = f"gft-doctor-{secrets.token_hex(4)}"
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": LABELS}, "spec": spec}


def _ended(cluster: Connection, namespace: str, name: str, patience: float) -> Iterator[Finding]:
    deadline = time.monotonic() + patience
    started = False
    while True:
        pod = cluster.core.read_namespaced_pod(name, namespace)
        states = [item.state for item in pod.status.container_statuses or [] if item.state]
        if states and states[0].terminated:
            yield from _told(states[0].terminated)
            return
        if pod.status.phase == "Failed":
            yield Finding(Verdict.PROBLEM, "pod", f"{pod.status.reason}: {pod.status.message}")
            return
        if not started and states and states[0].running:
            started, deadline = True, time.monotonic() + RUN_SECONDS + 30
        if time.monotonic() >= deadline:
            yield Finding(Verdict.PROBLEM, "pod", *_late(pod, states, started))
            return
        time.sleep(_PAUSE_SECONDS)


def _told(end: Any) -> Iterator[Finding]:
    """A finding for each line of the check's last words."""
    message = from_text(harmless(end.message), TerminationMessage)
    if message is None:
        yield Finding(
            Verdict.PROBLEM, "pod", f"ended with {end.exit_code}: {harmless(end.message or '').strip()[-300:]}"
        )
        return
    for line in message.message.splitlines():
        failed = line.partition(":")[0] in set(names.Reason)
        yield Finding(Verdict.PROBLEM if failed else Verdict.OK, "access", line)
    if message.remedy:
        yield Finding(Verdict.PROBLEM, "access", "what to do", message.remedy)


def _late(pod: Any, states: list[Any], started: bool) -> tuple[str, str]:
    """Why a pod has not ended, and what to do."""
    if started:
        return f"the check has not ended within {RUN_SECONDS + 30} s", "Try again."
    waiting = next((state.waiting for state in states if state.waiting), None)
    if waiting is not None:
        return f"it waits: {waiting.reason}. {waiting.message or ''}".rstrip(), "Do what the message asks."
    conditions = [item for item in pod.status.conditions or [] if item.status == "False" and item.message]
    why = conditions[0].message if conditions else "no node has taken it"
    return f"it has not started: {why}", "Add a CPU node pool, or wait longer with --patience."
