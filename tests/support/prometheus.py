"""The real Prometheus, of PATH or of Debian's package in the user's cache."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import requests
import yaml

from tests.support.servers import LOOPBACK, Server, free_ports
from tests.support.wait import wait_for
from tools import prometheus


def program(name: str) -> str:
    """Path of prometheus or promtool; without it the test is skipped, in CI it fails."""
    folder = prometheus.find()
    if folder is None:
        reason = f"{name} is not here: run `make prometheus`"
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(reason)
        pytest.skip(reason)
    return str(folder / name)


class Prometheus:
    """One server that scrapes one target every second; a context manager."""

    def __init__(self, folder: Path, target: str, rules: Path) -> None:
        folder.mkdir()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "gemmatune", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (port,) = free_ports(1)
        self._url = f"http://{LOOPBACK}:{port}/api/v1"
        flags = {
            "config.file": folder / "prometheus.yml",
            "storage.tsdb.path": folder / "data",
            "web.listen-address": f"{LOOPBACK}:{port}",
        }
        command = [program("prometheus"), *(f"--{name}={value}" for name, value in flags.items())]
        self._server = Server("prometheus", command, folder / "log")

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer. Errors: AssertionError with Prometheus' own words."""
        answer = requests.get(f"{self._url}/{path}", params=parameters, timeout=10)
        document = answer.json()
        assert document["status"] == "success", f"{parameters}: {document['error']}"
        return document["data"]

    def query(self, text: str) -> list[Any]:
        """What a query gives now."""
        found: list[Any] = self.get("query", query=text)["result"]
        return found

    def _answers(self) -> bool:
        self._server.check()
        try:
            return any(target["health"] == "up" for target in self.get("targets")["activeTargets"])
        except requests.RequestException:
            return False

    def __enter__(self) -> Prometheus:
        wait_for(self._answers, "Prometheus to have scraped", detail=self._server.tail)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
