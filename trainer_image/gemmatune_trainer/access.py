"""Access to the bucket before any work is done: waits for identity in a new namespace, and says what to grant."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import TypeVar

import requests
import tenacity

from gemmatune_api.names import ENV_SERVICE_ACCOUNT, WAITING_FILE
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer import ownership
from gemmatune_trainer.errors import AccessDenied, InvalidConfig, explain
from gemmatune_trainer.logs import log
from gemmatune_trainer.models import cache_folder
from gemmatune_trainer.storage import Storage, open_storage

Result = TypeVar("Result")

PATIENCE_SECONDS = 120.0
"""How long a refusal of the bucket or of the metadata server is asked again in a pod: in a new namespace identity and
IAM take a while."""
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 15.0
_METADATA_TIMEOUT = 2.0
_ROLE = "roles/storage.objectUser"


def in_pod() -> bool:
    """Whether this process runs in a pod."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def granted(uri: str, work: Callable[[], Result], patience: float, namespace: str) -> Result:
    """The result of `work`, which touches `uri`; a refusal by a gs:// URI is asked again for `patience` seconds.

    Raises:
        AccessDenied: it is refused to the end; in a pod the remedy is the command that grants access.
    """
    if not uri.startswith("gs://"):
        return work()

    def refused(error: BaseException) -> bool:
        return isinstance(explain(error), AccessDenied)

    def tell(state: tenacity.RetryCallState) -> None:
        waiting.touch()
        log.warning("access is refused, asking again", uri=uri, attempt=state.attempt_number)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(refused),
        wait=tenacity.wait_exponential(multiplier=_FIRST_WAIT, max=min(_LONGEST_WAIT, max(patience / 4, 0.01))),
        stop=tenacity.stop_after_delay(patience),
        before_sleep=tell,
        reraise=True,
    )
    waiting = cache_folder("") / WAITING_FILE
    try:
        return retrying(work)
    except Exception as error:
        if not refused(error) or not in_pod():
            raise
        known = explain(error)
        assert known is not None
        raise AccessDenied(known.message, grant_command(uri, namespace)) from error
    finally:
        waiting.unlink(missing_ok=True)


def claimed(config: RunConfig) -> tuple[Storage, ownership.Claim]:
    """The prefix of a run that has been prepared, and its owner's record.

    A pod on a new node meets the same delays as one in a new namespace: its metadata server may come up after it.

    Raises:
        TrainerError: the prefix cannot be read, or is not this run's.
    """

    def work() -> tuple[Storage, ownership.Claim]:
        storage = open_storage(config.output.uri)
        return storage, ownership.read_claim(storage, config)

    return granted(config.output.uri, work, PATIENCE_SECONDS if in_pod() else 0.0, config.run.namespace)


def probe(storage: Storage) -> None:
    """Writes, reads and deletes an object of its own under the prefix.

    Raises:
        AccessDenied: writing or deleting is refused.
        InvalidConfig: there can be no such directory.
    """
    name = f"probe-{secrets.token_hex(8)}"
    try:
        storage.write(name, b"access", if_generation_match=0)
        storage.read(name)
        storage.delete([name])
    except OSError as error:
        if explain(error) is not None:
            raise
        reason = error.strerror or str(error)
        raise InvalidConfig(
            f"output.uri: {storage.uri} cannot be written: {reason}", "Use a directory that can be made and written."
        ) from error


def grant_command(uri: str, namespace: str) -> str:
    """The command that lets this pod's ServiceAccount read and write a bucket (Workload Identity Federation)."""
    bucket = uri.removeprefix("gs://").partition("/")[0]
    account = os.environ.get(ENV_SERVICE_ACCOUNT) or "SERVICE_ACCOUNT"
    number = _metadata("numeric-project-id") or "PROJECT_NUMBER"
    project = _metadata("project-id") or "PROJECT_ID"
    pool = f"projects/{number}/locations/global/workloadIdentityPools/{project}.svc.id.goog"
    principal = f"principal://iam.googleapis.com/{pool}/subject/ns/{namespace}/sa/{account}"
    return (
        f"Grant {_ROLE}: gcloud storage buckets add-iam-policy-binding gs://{bucket} --role={_ROLE} "
        f"--member={principal}"
    )


def _metadata(key: str) -> str:
    """A value of the project from the metadata server; "" where none answers."""
    host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
    try:
        answer = requests.get(
            f"http://{host}/computeMetadata/v1/project/{key}",
            headers={"Metadata-Flavor": "Google"},
            timeout=_METADATA_TIMEOUT,
        )
    except requests.RequestException:
        return ""
    return answer.text.strip() if answer.ok else ""
