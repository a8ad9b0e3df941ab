"""The one resource of a run at the API server: read it, and write the trainer's fields of its status."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import requests

from gemmatune_api.apply import CONTENT_TYPE, apply_text
from gemmatune_api.names import (
    API_VERSION,
    DEFAULT_SERVICE_ACCOUNT_DIR,
    ENV_SERVICE_ACCOUNT_DIR,
    FIELD_MANAGER_TRAINER,
    GROUP,
    KIND,
    PLURAL,
    VERSION,
)

_TIMEOUT = (5.0, 15.0)


class ApiServer:
    """The API server that the pod's service account speaks to.

    Token and certificate are read anew for every request: the kubelet rotates them. Every method raises
    requests.RequestException where the server does not answer or refuses.
    """

    def __init__(self, address: str, folder: Path) -> None:
        self._address = address
        self._folder = folder
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the pod's environment does not lead to the API server

    @classmethod
    def of_pod(cls) -> ApiServer | None:
        """The API server of the pod that this process runs in; None where it runs in no pod."""
        folder = Path(os.environ.get(ENV_SERVICE_ACCOUNT_DIR) or DEFAULT_SERVICE_ACCOUNT_DIR)
        host = os.environ.get("KUBERNETES_SERVICE_HOST")
        if not host or not (folder / "token").is_file():
            return None
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}", folder)

    def get(self, namespace: str, name: str) -> dict[str, Any] | None:
        """The resource; None where it does not exist."""
        answer = self._session.get(self._path(namespace, name), timeout=_TIMEOUT, **self._identity())
        if answer.status_code == requests.codes.not_found:
            return None
        _check(answer)
        found: dict[str, Any] = answer.json()
        return found

    def apply_status(self, namespace: str, name: str, uid: str, status: dict[str, Any]) -> None:
        """Server-side apply of the trainer's status fields: what `status` leaves out is erased there.

        A resource of the same name that came later is left alone. It is read first for that: the status subresource
        does not compare the uid of what is applied (measured).
        """
        found = self.get(namespace, name)
        if found is None or found.get("metadata", {}).get("uid") != uid:
            return
        identity = self._identity()
        identity["headers"]["Content-Type"] = CONTENT_TYPE
        meta = {"name": name, "uid": uid}
        resource = {"apiVersion": API_VERSION, "kind": KIND, "metadata": meta, "status": status}
        answer = self._session.patch(
            f"{self._path(namespace, name)}/status",
            params={"fieldManager": FIELD_MANAGER_TRAINER, "force": "true"},
            data=apply_text(resource),
            timeout=_TIMEOUT,
            **identity,
        )
        _check(answer)

    def _path(self, namespace: str, name: str) -> str:
        return f"{self._address}/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}/{name}"

    def _identity(self) -> dict[str, Any]:
        token = (self._folder / "token").read_text().strip()
        authority = self._folder / "ca.crt"
        return {
            "headers": {"Authorization": f"Bearer {token}"},
            "verify": str(authority) if authority.is_file() else True,
        }


def _check(answer: requests.Response) -> None:
    """Raises HTTPError with what the API server says, where it refuses."""
    if answer.ok:
        return
    try:
        said = answer.json()["message"]
    except (ValueError, KeyError, TypeError):
        said = answer.text[:500] or answer.reason
    raise requests.HTTPError(f"{answer.status_code}: {said}", response=answer)
