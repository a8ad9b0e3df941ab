"""A container's readiness, as the kubelet finds it out: by a command that it runs again and again."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from gemmatune_cli.local.podenv import relocate
from gemmatune_operator.ports import Object

PERIOD_SECONDS = 10.0
"""Kubernetes' default."""


class Readiness:
    """Without a probe a container is ready as soon as it runs; with one, once the command has ended with 0.

    Args:
        container: as the pod has it; probes other than `exec` are not known here and count as none.
        mounts: the folders that stand for the container's volumes, by mount path.
    """

    def __init__(self, container: Object, mounts: Mapping[str, Path]) -> None:
        probe = container.get("readinessProbe") or {}
        words = (probe.get("exec") or {}).get("command") or []
        self._command = list(relocate({str(index): word for index, word in enumerate(words)}, mounts).values())
        self._period = float(probe.get("periodSeconds") or PERIOD_SECONDS)
        self._timeout = float(probe.get("timeoutSeconds") or 1)
        self._due = 0.0
        self._ready = not self._command

    def look(self, now: float) -> bool:
        """Whether it is ready; asks where it is time to, by a monotonic clock in seconds."""
        if self._command and now >= self._due:
            self._due = now + self._period
            self._ready = self._ask()
        return self._ready

    def _ask(self) -> bool:
        try:
            done = subprocess.run(self._command, capture_output=True, timeout=self._timeout, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0
