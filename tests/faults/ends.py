"""Faults that end an attempt: exit codes, memory, disk, refused and lost pods, Jobs deleted by hand."""

from __future__ import annotations

import json

from gemmatune_api.names import EXIT_REASONS, ExitCode, Reason
from gemmatune_operator.policies.cleanup import OVERDUE_SECONDS
from tests.faults.scene import REAL_GPU, Fault, Next, Play, Scene
from tests.support.api import Object
from tests.support.history import Change
from tests.support.kwok import STAYS, End
from tests.support.wait import wait_for

WORDS = "what the trainer said itself"


def terminated(pod: Object) -> Object | None:
    """How its container ended."""
    found = pod["status"].get("containerStatuses") or [{}]
    state: Object | None = found[0].get("state", {}).get("terminated")
    return state


def pod_ends(scene: Scene) -> Change:
    """The first attempt's container ends by itself."""
    return scene.first_pod(terminated, "the container's end")


def pod_fails(scene: Scene) -> Change:
    """The first attempt's pod fails by itself."""
    return scene.first_pod(lambda pod: pod["status"].get("phase") == "Failed", "a failed pod")


def out_of_memory(scene: Scene) -> Change:
    """The kernel ends a real process."""
    scene.trains()
    scene.plant.node.out_of_memory(scene.namespace, scene.pod_name())
    return pod_ends(scene)


def delete_job(policy: str) -> Play:
    """Somebody deletes the first attempt's Job."""

    def play(scene: Scene) -> Change:
        scene.trains()
        scene.api.delete(f"{scene.jobs}/{scene.name}-t1", {"propagationPolicy": policy})
        return scene.first(
            lambda it: (
                it.kind == "Job"
                and it.name == f"{scene.name}-t1"
                and (it.type == "DELETED" or it.object["metadata"].get("deletionTimestamp"))
            ),
            "the Job's deletion",
        )

    return play


def delete_pod(scene: Scene) -> Change:
    """Somebody deletes the first attempt's pod, whose process already answers SIGTERM with 30."""
    scene.trains()
    log = scene.plant.node.log
    wait_for(lambda: "answers SIGTERM" in log(scene.namespace, scene.pod_name()), "the trainer to listen")
    scene.api.delete(f"{scene.pods}/{scene.pod_name()}")
    return scene.first_pod(lambda pod: pod["metadata"].get("deletionTimestamp"), "the pod's deletion")


def deleted_for_good(scene: Scene) -> float:
    """Somebody deletes the pod without grace, and nobody answers on its node: after a minute it blocks no more."""
    scene.trains()
    scene.api.delete(f"{scene.pods}/{scene.pod_name()}", {"gracePeriodSeconds": 0})
    change = scene.first_pod(lambda pod: pod["metadata"].get("deletionTimestamp"), "the pod's deletion")
    return scene.after(change.object["metadata"]["deletionTimestamp"], OVERDUE_SECONDS)


_NEXT = {
    Reason.INVALID_CONFIG: Next.FAILED,
    Reason.ACCESS_DENIED: Next.FAILED,
    Reason.DATA_INVALID: Next.FAILED,
    Reason.OUTPUT_IN_USE: Next.FAILED,
    Reason.LOSS_DIVERGED: Next.FAILED,
    Reason.DISK_FULL: Next.COUNTED,
    Reason.STALLED: Next.COUNTED,
    Reason.ACCELERATOR_OUT_OF_MEMORY: Next.DOWNSHIFT,
    Reason.INTERRUPTED: Next.FREE,
    Reason.STORAGE_UNAVAILABLE: Next.BACKS_OFF,
    Reason.HUB_UNAVAILABLE: Next.BACKS_OFF,
    Reason.CRASHED: Next.BACKS_OFF,
}
EXIT_CODES = [
    Fault(f"exit-{code}", EXIT_REASONS[code], _NEXT[EXIT_REASONS[code]], pod_ends, REAL_GPU,
          process=f"exit {int(code)} {WORDS}", says=WORDS)
    for code in ExitCode if code is not ExitCode.DONE
]  # fmt: skip

_SPOT = {"provisioning": {"mode": "spot"}}
_REFUSED = "Pod was rejected: the node is not able to run it"
ENDS = [
    *EXIT_CODES,
    Fault("exit-0-no-manifest", Reason.RESULT_MISSING, Next.COUNTED, pod_ends, REAL_GPU, process="complete"),
    Fault("crash", Reason.CRASHED, Next.BACKS_OFF, pod_ends, REAL_GPU, process="crash",
          says="ValueError: the tensor is upside down"),
    Fault("sigkill", Reason.KILLED, Next.COUNTED, pod_ends, REAL_GPU, process="kill", says="137"),
    Fault("oom-137", Reason.HOST_OUT_OF_MEMORY, Next.COUNTED, out_of_memory, REAL_GPU, says="memory"),
    Fault("oom-5", Reason.HOST_OUT_OF_MEMORY, Next.COUNTED, pod_ends, end=End("exit", code=5, reason="OOMKilled")),
    Fault("oom-before-exit-code", Reason.HOST_OUT_OF_MEMORY, Next.COUNTED, pod_ends,
          end=End("exit", code=12, reason="OOMKilled")),
    Fault("disk-evicted", Reason.DISK_FULL, Next.COUNTED, pod_ends, says="ephemeral",
          end=End("exit", code=137, pod_reason="Evicted",
                  pod_message="Pod ephemeral local storage usage exceeds the total limit of containers 40Gi.")),
    Fault("status-unknown", Reason.POD_LOST, Next.COUNTED, pod_ends,
          end=End("exit", code=137, reason="ContainerStatusUnknown")),
    *(Fault(f"rejected-{reason.lower()}", Reason.POD_REJECTED, Next.FREE_LATER, pod_fails, says=reason,
            end=End("reject", pod_reason=reason, pod_message=_REFUSED))
      for reason in ("UnexpectedAdmissionError", "OutOfcpu", "NodeShutdown")),
    Fault("disrupted-before-exit-code", Reason.PREEMPTED, Next.FREE, pod_ends, says="TerminationByKubelet",
          end=End("exit", code=12, disruption="TerminationByKubelet", message=json.dumps({"message": "row 7"}))),
    Fault("disrupted-before-oom", Reason.PREEMPTED, Next.FREE, pod_ends,
          end=End("exit", code=137, reason="OOMKilled", disruption="PreemptionByScheduler")),
    Fault("no-retry-left", Reason.KILLED, Next.FAILED, pod_ends, says="limits.maxRetries (0) is used up",
          end=End("exit", code=137), spec={"limits": {"maxRetries": 0}}),
    Fault("job-deleted", Reason.JOB_VANISHED, Next.COUNTED, delete_job("Foreground")),
    Fault("job-deleted-background", Reason.JOB_VANISHED, Next.COUNTED, delete_job("Background")),
    Fault("job-deleted-spot", Reason.JOB_VANISHED, Next.FREE, delete_job("Foreground"), spec=_SPOT),
    Fault("pod-deleted", Reason.INTERRUPTED, Next.FREE, delete_pod, REAL_GPU),
    Fault("pod-forced-away", Reason.NODE_LOST, Next.FREE, deleted_for_good, annotations=STAYS, slow=True,
          says="does not answer"),
    Fault("pod-lost", Reason.POD_LOST, Next.COUNTED, pod_fails, end=End("vanish")),
    Fault("pod-lost-spot", Reason.POD_LOST, Next.FREE, pod_fails, end=End("vanish"), spec=_SPOT),
]  # fmt: skip
