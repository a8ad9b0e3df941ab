"""Every name that operator, trainer and users agree on, once, each with its one-line meaning and remedy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from types import MappingProxyType

GROUP = "gemmatune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "GemmaFineTune"
PLURAL = "gemmafinetunes"
SINGULAR = "gemmafinetune"
SHORT_NAME = "gft"
CATEGORIES = ("all", "gemmatune")

NAME_PATTERN = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_MAX_LENGTH = 45

LABEL_RUN = f"{GROUP}/run"
LABEL_RUN_UID = f"{GROUP}/run-uid"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_ROLE = f"{GROUP}/role"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "gemmatune"
ANNOTATION_RETRY = f"{GROUP}/retry"
ANNOTATION_GENERATION = f"{GROUP}/generation"
"""On a preparation's Job: the generation of the spec that it was made for."""
ANNOTATION_SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"

FIELD_MANAGER_OPERATOR = "gemmatune-operator"
FIELD_MANAGER_TRAINER = "gemmatune-trainer"
TRAINER_SERVICE_ACCOUNT = "gemmatune-trainer"
DEFAULTS_CONFIG_MAP = "gemmatune-defaults"
CONTAINER = "trainer"
TRAINER_MODULE = "gemmatune_trainer"
LAUNCHER_MODULE = f"{TRAINER_MODULE}.launcher"
"""Starts the trainer once for every GPU of a pod."""

ENV_RUN = "GEMMATUNE_RUN"
"""RunConfig as JSON: all that a trainer is told."""
ENV_TERMINATION_LOG = "GEMMATUNE_TERMINATION_LOG"
"""Where the termination message goes; absent in a pod, where it is /dev/termination-log."""
ENV_JOIN_SECONDS = "GEMMATUNE_JOIN_SECONDS"
"""How long the processes of an attempt wait for each other at the start."""
ENV_SERVICE_ACCOUNT_DIR = "GEMMATUNE_SERVICE_ACCOUNT_DIR"
"""Directory of token, ca.crt and namespace; absent in a pod, where Kubernetes mounts it at its usual place."""
ENV_CACHE = "GEMMATUNE_CACHE"
"""Scratch directory for weights, data and checkpoints; absent in a pod, where it is /cache."""
ENV_CLAIMS = "GEMMATUNE_CLAIMS"
"""Folder that holds one folder for each mounted claim of pvc:// URIs; absent in a pod, where it is /claims."""
ENV_STATUS_FILE = "GEMMATUNE_STATUS_FILE"
"""Where the trainer leaves its four status fields as JSON when there is no API server (`gft run`)."""
ENV_DATASET_TOKEN = "GEMMATUNE_DATASET_TOKEN"
"""Hub token for the dataset alone, where dataset.secretRef is set; absent: the model's HF_TOKEN serves both."""
ENV_GCS_ENDPOINT = "GEMMATUNE_GCS_ENDPOINT"
"""Explicit endpoint of a Cloud Storage double; never set in production."""
ENV_SERVICE_ACCOUNT = "GEMMATUNE_SERVICE_ACCOUNT"
"""Name of the preparation's ServiceAccount: the one that a bucket has to let in."""
WAITING_FILE = "waiting-for-access"
"""Name of a file in the cache, there while a preparation is refused access and asks again: it makes its pod unready."""
DEFAULT_TERMINATION_LOG = "/dev/termination-log"
DEFAULT_SERVICE_ACCOUNT_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"
DEFAULT_CACHE = "/cache"
DEFAULT_CLAIMS = "/claims"
TERMINATION_MESSAGE_BYTES = 3500
"""Largest termination message a trainer writes; the kubelet cuts at 4096 bytes."""

TRAINER_STATUS_FIELDS = ("progress", "checkpoint", "artifacts", "samples")
"""The four status fields that the trainer owns by server-side apply."""


class Role(StrEnum):
    """What a Job is for (label `gemmatune.dev/role`)."""

    PREPARE = "prepare"
    TRAIN = "train"
    MERGE = "merge"


JOB_SUFFIX = MappingProxyType({Role.PREPARE: "p", Role.TRAIN: "t", Role.MERGE: "m"})


def job_name(run: str, role: Role, number: int) -> str:
    """Name of the Job of a run's attempt (`quotes-t2`), preparation (`-p1`) or merge (`-m1`)."""
    return f"{run}-{JOB_SUFFIX[role]}{number}"


_JOB = re.compile(r"(?P<run>.+)-[ptm][0-9]+")
_POD = re.compile(r"(?P<run>.+)-[ptm][0-9]+(-[0-9]+)?-[a-z0-9]{5}")


def run_of(kind: str, name: str) -> str | None:
    """The run that a Job or a Pod of this name belongs to, if it belongs to one; None where it cannot."""
    pattern = {"Job": _JOB, "Pod": _POD}.get(kind)
    found = pattern.fullmatch(name) if pattern is not None else None
    return found["run"] if found is not None else None


class Phase(StrEnum):
    """The one-word state of a run; a function of its conditions."""

    PENDING = "Pending"
    PREPARING = "Preparing"
    QUEUED = "Queued"
    PROVISIONING = "Provisioning"
    TRAINING = "Training"
    RETRYING = "Retrying"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    MERGING = "Merging"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """The conditions of a run, in the order in which they are shown."""

    ACCEPTED = "Accepted"
    PREPARED = "Prepared"
    PROVISIONED = "Provisioned"
    TRAINING = "Training"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    FINISHED = "Finished"


class ExitCode(IntEnum):
    """Exit codes of a trainer process (the contract between trainer and operator)."""

    DONE = 0
    CRASHED = 1
    INVALID_CONFIG = 10
    ACCESS_DENIED = 11
    DATA_INVALID = 12
    DISK_FULL = 13
    OUTPUT_IN_USE = 14
    ACCELERATOR_OUT_OF_MEMORY = 20
    LOSS_DIVERGED = 21
    INTERRUPTED = 30
    STALLED = 31
    STORAGE_UNAVAILABLE = 40
    HUB_UNAVAILABLE = 41


class Reason(StrEnum):
    """Why a run is as it is: causes of an attempt's end, refusals, and reasons that make a phase."""

    # Causes: how an attempt ended.
    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    POD_REJECTED = "PodRejected"
    INTERRUPTED = "Interrupted"
    ACCELERATOR_OUT_OF_MEMORY = "AcceleratorOutOfMemory"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    DISK_FULL = "DiskFull"
    STALLED = "Stalled"
    KILLED = "Killed"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    HUB_UNAVAILABLE = "HubUnavailable"
    CRASHED = "Crashed"
    JOB_VANISHED = "JobVanished"
    POD_LOST = "PodLost"
    RESULT_MISSING = "ResultMissing"
    INVALID_CONFIG = "InvalidConfig"
    ACCESS_DENIED = "AccessDenied"
    DATA_INVALID = "DataInvalid"
    OUTPUT_IN_USE = "OutputInUse"
    LOSS_DIVERGED = "LossDiverged"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    BUDGET_EXCEEDED = "BudgetExceeded"
    EVICTED_BY_QUEUE = "EvictedByQueue"
    # Causes of waiting: the attempt goes on, the condition says why.
    IMAGE_PULL_FAILED = "ImagePullFailed"
    SECRET_MISSING = "SecretMissing"
    UNSCHEDULABLE = "Unschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    CAPACITY_UNAVAILABLE = "CapacityUnavailable"
    # Refusals and waits outside the table of causes.
    INVALID_SPEC = "InvalidSpec"
    NOT_SUPPORTED_YET = "NotSupportedYet"
    DOES_NOT_FIT = "DoesNotFit"
    INVALID_DEFAULTS = "InvalidDefaults"
    POLICY_DENIED = "PolicyDenied"
    NAME_CONFLICT = "NameConflict"
    WAITING_FOR_CLEANUP = "WaitingForCleanup"
    WAITING_FOR_ACCESS = "WaitingForAccess"
    MERGE_FAILED = "MergeFailed"
    # Reasons of ordinary progress.
    VALID = "Valid"
    PREPARING = "Preparing"
    PREPARED = "Prepared"
    QUEUED = "Queued"
    PROVISIONING = "Provisioning"
    RUNNING = "Running"
    RETRYING = "Retrying"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    RESUMED = "Resumed"
    MERGING = "Merging"
    COMPLETED = "Completed"


@dataclass(frozen=True, slots=True)
class ReasonText:
    """What a reason means to a newcomer, and what to do about it (empty: nothing to do)."""

    meaning: str
    remedy: str = ""


REASONS: MappingProxyType[Reason, ReasonText] = MappingProxyType(
    {
        Reason.PREEMPTED: ReasonText(
            "The node was reclaimed or the pod was disrupted.",
            "Nothing: the next attempt resumes from the newest checkpoint. Mode onDemand has fewer of them.",
        ),
        Reason.NODE_LOST: ReasonText(
            "The node that ran the pod is gone.", "Nothing: the next attempt resumes from the newest checkpoint."
        ),
        Reason.POD_REJECTED: ReasonText(
            "The node refused the pod before the trainer started.", "Nothing: a new pod is tried on another node."
        ),
        Reason.INTERRUPTED: ReasonText(
            "The trainer was asked to stop and saved a checkpoint.", "Nothing: the next attempt resumes."
        ),
        Reason.ACCELERATOR_OUT_OF_MEMORY: ReasonText(
            "The accelerator's memory did not suffice.",
            "Lower dataset.maxLength or training.microBatchSize, use qlora, or pick a larger accelerator.",
        ),
        Reason.HOST_OUT_OF_MEMORY: ReasonText(
            "The container used more host memory than its limit.",
            "Raise pod.resources.limits.memory or pick a machine with more memory.",
        ),
        Reason.DISK_FULL: ReasonText(
            "The pod ran out of ephemeral storage.",
            "Raise pod.resources.limits['ephemeral-storage'] or use a node pool with larger disks.",
        ),
        Reason.STALLED: ReasonText(
            "No step and no heartbeat for limits.stallTimeout.",
            "Look at the pod's log for the stacks; raise limits.stallTimeout if a step really takes that long.",
        ),
        Reason.KILLED: ReasonText(
            "The trainer was killed (SIGKILL) without the kubelet naming memory as the reason.",
            "Nothing at first: the next attempt resumes. If it repeats, raise pod.resources.limits.memory.",
        ),
        Reason.STORAGE_UNAVAILABLE: ReasonText(
            "The bucket did not answer.", "Check the bucket's region, quota and the network of the node pool."
        ),
        Reason.HUB_UNAVAILABLE: ReasonText(
            "The hub did not answer.", "Check the network of the node pool, or copy model and data to gs:// URIs."
        ),
        Reason.CRASHED: ReasonText("The trainer ended with an unexpected error.", "Read the pod's log."),
        Reason.JOB_VANISHED: ReasonText("The attempt's Job was deleted by someone else.", "Nothing: it is retried."),
        Reason.POD_LOST: ReasonText("The attempt's pod is gone without a final state.", "Nothing: it is retried."),
        Reason.RESULT_MISSING: ReasonText(
            "The Job completed, but no verified manifest was named.",
            "Nothing: the next attempt finds a finished manifest or writes one.",
        ),
        Reason.INVALID_CONFIG: ReasonText(
            "The trainer cannot run this configuration.", "Correct the field that the message names."
        ),
        Reason.ACCESS_DENIED: ReasonText(
            "The model, the data or the bucket refused access.",
            "Check the secret's token, the model's licence page, and the bucket's IAM for the pod's ServiceAccount.",
        ),
        Reason.DATA_INVALID: ReasonText("The data does not fit the format.", "Correct the row or column named."),
        Reason.OUTPUT_IN_USE: ReasonText(
            "Another run owns output.uri.", "Use another output.uri, or set output.overwrite: true."
        ),
        Reason.LOSS_DIVERGED: ReasonText(
            "The loss became non-finite or ran away.",
            "Create a new resource with a lower training.learningRate and another output.uri.",
        ),
        Reason.DEADLINE_EXCEEDED: ReasonText(
            "The run used up limits.deadline or limits.pendingDeadline.",
            "Raise the limit: the run resumes from its newest checkpoint.",
        ),
        Reason.BUDGET_EXCEEDED: ReasonText(
            "The run used up limits.maxCost.",
            "Raise limits.maxCost: the run resumes from its newest checkpoint.",
        ),
        Reason.EVICTED_BY_QUEUE: ReasonText(
            "Kueue took back the admission of a Job that trained.",
            "Nothing: the next attempt waits in the queue, and resumes from the newest checkpoint.",
        ),
        Reason.IMAGE_PULL_FAILED: ReasonText(
            "The trainer's image cannot be pulled.", "Correct pod.image or add pod.imagePullSecrets."
        ),
        Reason.SECRET_MISSING: ReasonText(
            "A Secret or one of its keys does not exist.", "Create it in the run's namespace; the pod then starts."
        ),
        Reason.UNSCHEDULABLE: ReasonText(
            "No node can take the pod.", "Add a node pool of the accelerator, or pick another accelerator."
        ),
        Reason.QUOTA_EXCEEDED: ReasonText(
            "A ResourceQuota of the namespace forbids the pod.", "Raise the quota or free some of it."
        ),
        Reason.CAPACITY_UNAVAILABLE: ReasonText(
            "The cloud has no such machine right now.", "Wait, pick another zone, or another provisioning.mode."
        ),
        Reason.INVALID_SPEC: ReasonText("The spec contradicts itself or a bound.", "Correct the field named."),
        Reason.NOT_SUPPORTED_YET: ReasonText("The field's behaviour does not exist yet.", "Remove the field."),
        Reason.DOES_NOT_FIT: ReasonText(
            "The run does not fit the accelerator.", "Take a change that is named, or a larger accelerator."
        ),
        Reason.INVALID_DEFAULTS: ReasonText(
            "The ConfigMap gemmatune-defaults of the namespace cannot be read.",
            "Correct the key that the message names: the run then goes on by itself.",
        ),
        Reason.POLICY_DENIED: ReasonText(
            "The API server refused an object of the run.",
            "Change what the message names: a policy, a quota or the field; it is tried again by itself.",
        ),
        Reason.NAME_CONFLICT: ReasonText(
            "An object of the same name belongs to someone else.", "Rename the resource or that object."
        ),
        Reason.WAITING_FOR_CLEANUP: ReasonText(
            "An object of an earlier run of this name is still being deleted.", "Wait: it goes on by itself."
        ),
        Reason.WAITING_FOR_ACCESS: ReasonText(
            "The bucket refuses the preparation's identity, which asks again for two minutes.",
            "Wait: in a new namespace it takes a while until identity and IAM are known. If it goes on, the end of the "
            "preparation names the principal and the command that grants it access.",
        ),
        Reason.MERGE_FAILED: ReasonText(
            "The adapter is written and verified, but merging it into the base failed.",
            "Do what the message asks, then set the annotation gemmatune.dev/retry to a new value: only the merge is "
            "tried again.",
        ),
        Reason.VALID: ReasonText("The spec is valid and fits."),
        Reason.PREPARING: ReasonText("Access and data are being checked on a CPU node."),
        Reason.PREPARED: ReasonText("Access works and the data is tokenised."),
        Reason.QUEUED: ReasonText(
            "The Job is suspended until its queue admits it.",
            "Look at the Workloads of the namespace (kubectl get workloads): they say what Kueue waits for.",
        ),
        Reason.PROVISIONING: ReasonText("The attempt's pod waits for its node."),
        Reason.RUNNING: ReasonText("The trainer runs."),
        Reason.RETRYING: ReasonText("The next attempt waits for its turn."),
        Reason.SUSPENDING: ReasonText("The trainer saves a checkpoint and stops."),
        Reason.SUSPENDED: ReasonText("Nothing runs.", "Set spec.suspend: false to go on."),
        Reason.RESUMED: ReasonText("The run goes on after a suspension."),
        Reason.MERGING: ReasonText("Training is done; a CPU Job writes the merged 16-bit weights."),
        Reason.COMPLETED: ReasonText("The adapter is written and verified."),
    }
)

EXIT_REASONS: MappingProxyType[int, Reason] = MappingProxyType(
    {
        ExitCode.CRASHED: Reason.CRASHED,
        ExitCode.INVALID_CONFIG: Reason.INVALID_CONFIG,
        ExitCode.ACCESS_DENIED: Reason.ACCESS_DENIED,
        ExitCode.DATA_INVALID: Reason.DATA_INVALID,
        ExitCode.DISK_FULL: Reason.DISK_FULL,
        ExitCode.OUTPUT_IN_USE: Reason.OUTPUT_IN_USE,
        ExitCode.ACCELERATOR_OUT_OF_MEMORY: Reason.ACCELERATOR_OUT_OF_MEMORY,
        ExitCode.LOSS_DIVERGED: Reason.LOSS_DIVERGED,
        ExitCode.INTERRUPTED: Reason.INTERRUPTED,
        ExitCode.STALLED: Reason.STALLED,
        ExitCode.STORAGE_UNAVAILABLE: Reason.STORAGE_UNAVAILABLE,
        ExitCode.HUB_UNAVAILABLE: Reason.HUB_UNAVAILABLE,
    }
)

PHASES: MappingProxyType[Phase, str] = MappingProxyType(
    {
        Phase.PENDING: "Not looked at yet, or it waits for what its message names.",
        Phase.PREPARING: "Access and data are checked on a CPU node; no accelerator is paid for.",
        Phase.QUEUED: "Kueue has not admitted the Job yet.",
        Phase.PROVISIONING: "The attempt's pod waits for its node, its image or a Secret.",
        Phase.TRAINING: "The trainer runs.",
        Phase.RETRYING: "An attempt ended; the next one is recorded and waits for its turn.",
        Phase.SUSPENDING: "The trainer saves a checkpoint; its Job is being deleted.",
        Phase.SUSPENDED: "Nothing of it runs.",
        Phase.MERGING: "The adapter is there; a CPU Job writes the merged model.",
        Phase.SUCCEEDED: "The result is verified. An end.",
        Phase.FAILED: "Nothing goes on by itself. An end, until a correction or a retry on demand.",
    }
)

CONDITIONS: MappingProxyType[ConditionType, str] = MappingProxyType(
    {
        ConditionType.ACCEPTED: "The spec can be run: valid, supported, alone on its output, and it fits.",
        ConditionType.PREPARED: "Model, data and bucket were reached, and the rows are tokenised.",
        ConditionType.PROVISIONED: "All pods of the attempt have their node and run.",
        ConditionType.TRAINING: "The trainer runs.",
        ConditionType.SUSPENDED: "spec.suspend is in force, and nothing runs any more.",
        ConditionType.SUCCEEDED: "The trainer ended with exit code 0 and named a verified manifest.",
        ConditionType.FAILED: "The run ended without a result.",
        ConditionType.FINISHED: "Either end is reached: wait for this one.",
    }
)
