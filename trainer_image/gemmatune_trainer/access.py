"""Access to the bucket before any work is done: waits for identity in a new namespace, and says what to grant."""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import requests
import tenacity

from gemmatune_api.names import DEFAULT_SERVICE_ACCOUNT_DIR, ENV_SERVICE_ACCOUNT_DIR
from gemmatune_trainer.errors import AccessDenied, InvalidConfig, explain
from gemmatune_trainer.logs import log
from gemmatune_trainer.storage import Storage

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
        log.warning("access is refused, asking again", uri=uri, attempt=state.attempt_number)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(refused),
        wait=tenacity.wait_exponential(multiplier=_FIRST_WAIT, max=min(_LONGEST_WAIT, max(patience / 4, 0.01))),
        stop=tenacity.stop_after_delay(patience),
        before_sleep=tell,
        reraise=True,
    )
    try:
        return retrying(work)
    except Exception as error:
        if not refused(error) or not in_pod():
            raise
        known = explain(error)
        assert known is not None
        raise AccessDenied(known.message, grant_command(uri, namespace)) from error


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
    number = _metadata("numeric-project-id") or "PROJECT_NUMBER"
    project = _metadata("project-id") or "PROJECT_ID"
    pool = f"projects/{number}/locations/global/workloadIdentityPools/{project}.svc.id.goog"
    principal = f"principal://iam.googleapis.com/{pool}/subject/ns/{namespace}/sa/{_service_account()}"
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


def _service_account() -> str:
    """Name of the pod's ServiceAccount, from the subject of its token (`system:serviceaccount:NAMESPACE:NAME`)."""
    path = Path(os.environ.get(ENV_SERVICE_ACCOUNT_DIR) or DEFAULT_SERVICE_ACCOUNT_DIR) / "token"
    try:
        payload = path.read_text().split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return str(claims["sub"]).rpartition(":")[2]
    except (OSError, ValueError, IndexError, KeyError, TypeError):
        return "SERVICE_ACCOUNT"
