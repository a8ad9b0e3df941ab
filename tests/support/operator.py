"""The operator as a real process against the test control plane."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.support.servers import LOOPBACK, Server, free_ports
from tests.support.wait import wait_for


class OperatorProcess:
    """`python -m gemmatune_operator` with a kubeconfig; a context manager that waits until it is ready."""

    def __init__(self, kubeconfig: Path | str, folder: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self._kubeconfig = str(kubeconfig)
        self._log = folder / "operator.log"
        self._environment = dict(environment or {})
        self._server: Server | None = None
        (self.port,) = free_ports(1)

    def start(self) -> OperatorProcess:
        """Start it and wait until it answers as ready."""
        import requests

        kept = {name: value for name, value in os.environ.items() if not name.startswith("KUBE")}
        environment = {**kept, "KUBECONFIG": self._kubeconfig, **self._environment}
        command = [sys.executable, "-m", "gemmatune_operator", "--host", LOOPBACK, "--port", str(self.port)]
        self._server = server = Server("operator", command, self._log, environment)

        def ready() -> bool:
            server.check()
            try:
                return requests.get(f"http://{LOOPBACK}:{self.port}/readyz", timeout=5).ok
            except requests.RequestException:
                return False

        wait_for(ready, "the operator to be ready", seconds=60, detail=server.tail)
        return self

    def check(self) -> None:
        """Errors: RuntimeError when it has ended by itself."""
        self._running().check()

    def tail(self, lines: int = 30) -> str:
        """The last lines of its log."""
        return self._running().tail(lines)

    def kill(self) -> None:
        """SIGKILL, as a node's failure would."""
        server = self._running()
        server.process.kill()
        server.process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        server = self._running()
        server.stop(patience=15)
        return server.process.returncode

    def _running(self) -> Server:
        if self._server is None:
            raise RuntimeError("the operator was not started")
        return self._server

    def __enter__(self) -> OperatorProcess:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server and self._server.process.poll() is None:
            self.stop()
