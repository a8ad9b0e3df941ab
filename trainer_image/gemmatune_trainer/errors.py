"""How a trainer process may fail, each way with its reason, exit code and remedy, and which exceptions mean it."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from gemmatune_api.handover import RunConfigError
from gemmatune_api.names import REASONS, ExitCode, Reason

_MESSAGE_CHARACTERS = 1500
_NODE_REMEDY = (
    "Nothing: another attempt is made. If it ends like this one, look at the node's device plugin, or have the node "
    "replaced."
)


class TrainerError(Exception):
    """An end that the operator can explain: `message` says what was found and where, `remedy` what to do.

    `step` is the optimizer step that was reached, where one was. `sequences` are those that a pass had in each group of
    devices, where their memory did not suffice for it.
    """

    reason: ClassVar[Reason]
    exit_code: ClassVar[ExitCode]

    def __init__(self, message: str, remedy: str = "", step: int | None = None, sequences: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy or REASONS[self.reason].remedy
        self.step = step
        self.sequences = sequences


class InvalidConfig(TrainerError):
    """The run's configuration cannot be carried out."""

    reason = Reason.INVALID_CONFIG
    exit_code = ExitCode.INVALID_CONFIG


class AccessDenied(TrainerError):
    """The model, the data or the bucket refused access."""

    reason = Reason.ACCESS_DENIED
    exit_code = ExitCode.ACCESS_DENIED


class DataInvalid(TrainerError):
    """The data does not fit the format; names the row or column."""

    reason = Reason.DATA_INVALID
    exit_code = ExitCode.DATA_INVALID


class DiskFull(TrainerError):
    """The scratch disk, or the file system of a file:// output, is full."""

    reason = Reason.DISK_FULL
    exit_code = ExitCode.DISK_FULL


class OutputInUse(TrainerError):
    """Another run owns the output prefix."""

    reason = Reason.OUTPUT_IN_USE
    exit_code = ExitCode.OUTPUT_IN_USE


class AcceleratorOutOfMemory(TrainerError):
    """The accelerator's memory did not suffice."""

    reason = Reason.ACCELERATOR_OUT_OF_MEMORY
    exit_code = ExitCode.ACCELERATOR_OUT_OF_MEMORY


class AcceleratorMissing(TrainerError):
    """The devices that the run is for do not start: a fault of the node, which another attempt may not meet."""

    reason = Reason.CRASHED
    exit_code = ExitCode.CRASHED

    def __init__(self, message: str, remedy: str = "", step: int | None = None, sequences: int | None = None) -> None:
        super().__init__(message, remedy or _NODE_REMEDY, step, sequences)


class LossDiverged(TrainerError):
    """The loss or the gradient became non-finite, or the loss ran away."""

    reason = Reason.LOSS_DIVERGED
    exit_code = ExitCode.LOSS_DIVERGED


class Interrupted(TrainerError):
    """The process was asked to stop, or a newer attempt has taken over."""

    reason = Reason.INTERRUPTED
    exit_code = ExitCode.INTERRUPTED


class StorageUnavailable(TrainerError):
    """The bucket did not answer, also after retries."""

    reason = Reason.STORAGE_UNAVAILABLE
    exit_code = ExitCode.STORAGE_UNAVAILABLE


class HubUnavailable(TrainerError):
    """The model or dataset hub did not answer."""

    reason = Reason.HUB_UNAVAILABLE
    exit_code = ExitCode.HUB_UNAVAILABLE


_FULL = (
    "No space left on device",
    "PytorchStreamWriter failed writing file",
    "unexpected pos",
    "basic_ios::clear: iostream error",
)
"""What safetensors and torch.save make of the system's error."""
_NO_MEMORY = (
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "RESOURCE_EXHAUSTED",
    "Ran out of memory in memory space hbm",
)
"""What PyTorch, and XLA while it compiles or runs, say of an accelerator's memory."""
_NOT_COMPILED = (
    "UNIMPLEMENTED:",
    "INVALID_ARGUMENT:",
    "memory space vmem",
    "Compilation failure",
    "compilation failed",
    "failed to compile",
)
"""What XLA says of a program that it cannot make for the chips: the next attempt would end the same way."""
_COMPILE_REMEDY = (
    "Set mesh, training.microBatchSize, dataset.maxLength or gradientCheckpointing otherwise, or another backend; the "
    "pod's log has all of XLA's text."
)
_JSON_REMEDY = "Replace that file by the published one; the pod's log says where it was read."
_DISK_REMEDY = "Free space on the file system named, or " + REASONS[Reason.DISK_FULL].remedy[:1].lower()
_DISK_REMEDY += REASONS[Reason.DISK_FULL].remedy[1:]


def kinds() -> list[type[TrainerError]]:
    """All kinds of ends that can be explained."""
    found = [TrainerError]
    for kind in found:
        found += kind.__subclasses__()
    return found[1:]


def explain(error: BaseException) -> TrainerError | None:
    """The TrainerError that a foreign exception (or its cause) stands for; None where it is none of them.

    Classes are compared by name, so that asking does not import torch, google or huggingface libraries.
    """
    for link in _chain(error):
        found = link if isinstance(link, TrainerError) else _known(link)
        if found is not None:
            return found
    return None


@contextmanager
def naming(subject: str) -> Iterator[None]:
    """Begins the message of a foreign exception that `explain` knows with what it happened to: libraries do not say it.

    Raises:
        TrainerError: what such an exception stands for, its message beginning with `subject`.
    """
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        raise type(known)(f"{subject}: {known.message}", known.remedy, known.step, known.sequences) from error


@contextmanager
def passing(sequences: int) -> Iterator[None]:
    """Lets an end for want of the accelerator's memory tell how many sequences a pass has in each group of devices.

    Raises:
        AcceleratorOutOfMemory: what an exception inside stands for.
    """
    try:
        yield
    except Exception as error:
        known = explain(error)
        if not isinstance(known, AcceleratorOutOfMemory):
            raise
        if known.sequences is None:  # else a pass of another kind, inside this one, has told
            known.sequences = sequences
        if known is error:
            raise
        raise known from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what caused it, outermost first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _known(error: BaseException) -> TrainerError | None:
    if isinstance(error, RunConfigError):
        return InvalidConfig(str(error), error.remedy)
    names = {(kind.__module__.split(".")[0], kind.__name__) for kind in type(error).__mro__}
    packages = {package for package, _ in names}
    for package, mapping in (("torch", _torch), ("huggingface_hub", _hub), ("google", _google)):
        if package in packages and (found := mapping(error, {name for _, name in names})):
            return found
    if "datasets" in packages and "DatasetNotFoundError" in {name for _, name in names}:
        return AccessDenied(f"{text_of(error)}: the dataset does not exist or is not public", _TOKEN_REMEDY)
    if ("requests", "ConnectionError") in names or ("requests", "Timeout") in names:
        return StorageUnavailable(text_of(error))
    if packages & {"httpx", "httpx2"} and {name for _, name in names} & {"TransportError", "TimeoutException"}:
        return HubUnavailable(text_of(error))
    return _operating_system(error)


def _operating_system(error: BaseException) -> TrainerError | None:
    message = text_of(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(message, _DISK_REMEDY)
    if isinstance(error, RecursionError) and _of_json(error):
        return InvalidConfig(f"a JSON file of the model or the output is nested too deep: {message}", _JSON_REMEDY)
    if isinstance(error, PermissionError):
        return AccessDenied(message, f"Give the trainer's user access to {error.filename or 'the path'}.")
    if any(words in message for words in _FULL):
        return DiskFull(message, _DISK_REMEDY)
    if type(error).__name__ == "SafetensorError" and "deserializing header" in message:
        return InvalidConfig(
            message, "The weights are damaged: copy them again, and name the new place in a new resource."
        )
    if isinstance(error, RuntimeError) and any(words in message for words in _NO_MEMORY):
        return AcceleratorOutOfMemory(message)
    if _of_xla(error) and any(words in message for words in _NOT_COMPILED):
        return InvalidConfig(f"XLA cannot make the run's program for these devices: {message}", _COMPILE_REMEDY)
    return None


def _of_json(error: BaseException) -> bool:
    """Whether an exception comes from the standard library's reader of JSON, which libraries of others use too."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__")).startswith("json.")


def _of_xla(error: BaseException) -> bool:
    """Whether an exception is JAX's, or a RuntimeError that came through PyTorch/XLA, which has no class of its own."""
    if any(kind.__module__.split(".")[0] in ("jax", "jaxlib") for kind in type(error).__mro__):
        return True
    if not isinstance(error, RuntimeError):
        return False
    names = (str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(name.startswith(("torch_xla", "gemmatune_trainer.backends.xla")) for name in names)


def _torch(error: BaseException, names: set[str]) -> TrainerError | None:
    return AcceleratorOutOfMemory(text_of(error)) if "OutOfMemoryError" in names else None


_TOKEN_REMEDY = (
    "Accept the licence on the model's page, and check that the token of secretRef may read the repository; "
    "check the spelling of the URI."
)


def _hub(error: BaseException, names: set[str]) -> TrainerError | None:
    message = text_of(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if names & {"RevisionNotFoundError", "RemoteEntryNotFoundError", "HFValidationError", "HfUriError"}:
        return InvalidConfig(message, "Correct the repository's name or its revision.")
    if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
        return HubUnavailable(message)
    if names & {"GatedRepoError", "RepositoryNotFoundError", "DisabledRepoError"} or status in (401, 403):
        return AccessDenied(message, _TOKEN_REMEDY)
    if status == 404:
        return InvalidConfig(message, "Correct the repository's name or its revision.")
    return HubUnavailable(message) if "HfHubHTTPError" in names else None


def identity_away(error: BaseException) -> bool:
    """Whether a token was not refreshed because who gives it did not answer; an answer that refuses is not meant.

    google-auth wraps what the metadata server did into a RefreshError, its answer, where there was one, as an argument.
    """
    if not any(kind.__name__ == "RefreshError" for kind in type(error).__mro__):
        return False
    transport = next((link for link in _chain(error) if type(link).__name__ == "TransportError"), None)
    if transport is None:
        return bool(getattr(error, "retryable", False))
    status = getattr(transport.args[1], "status", None) if len(transport.args) > 1 else None
    return not (isinstance(status, int) and 400 <= status < 500 and status not in _TRY_AGAIN)


_TRY_AGAIN = (408, 429)


def _google(error: BaseException, names: set[str]) -> TrainerError | None:
    message = text_of(error)
    if identity_away(error):
        return StorageUnavailable(message)
    if names & {"Forbidden", "Unauthorized", "DefaultCredentialsError", "RefreshError"}:
        return AccessDenied(
            message, "Grant roles/storage.objectUser on the bucket to the pod's ServiceAccount, or log in locally."
        )
    if "NotFound" in names:
        return InvalidConfig(message, "Correct the bucket's or object's name, or create it.")
    if names & {"TooManyRequests", "ServerError", "RetryError", "TransportError"}:
        return StorageUnavailable(message)
    return None


def text_of(error: BaseException) -> str:
    """Kind and text of an exception, on one line, cut to a readable length."""
    text = " ".join(str(error).split())
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _MESSAGE_CHARACTERS else text[: _MESSAGE_CHARACTERS - 1] + "…"
