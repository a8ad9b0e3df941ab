"""The node of the embedded cluster: every pod is one process of this machine."""

from __future__ import annotations

import base64
import os
import shutil
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from gemmatune_api import names
from gemmatune_api.environments import how_to_install
from gemmatune_cli.local.environments import backend_of_pod, python_of
from gemmatune_cli.local.jobs import ENDED, phase
from gemmatune_cli.local.podenv import ConfigError, environment, expand, relocate
from gemmatune_cli.local.probes import Readiness
from gemmatune_cli.local.runner import (
    Process,
    ProcessRunner,
    ProcessSpec,
    container_exit_code,
    exit_code_of,
    find,
    termination_message,
)
from gemmatune_cli.local.store import GRACE_SECONDS, Store, rfc3339
from gemmatune_operator.manifests.pod import ENVIRONMENT
from gemmatune_operator.ports import Object

_IN_CLUSTER = ("GEMMATUNE_", "KUBERNETES_")
"""Beginnings of variables that are a pod's affair: gft's own environment may hold those of another."""


class LocalError(Exception):
    """Something that keeps a run from going on here; the message says what it is and what to do."""


def status_file(folder: Path) -> Path:
    """Where the trainers of the run in this folder leave their status fields."""
    return folder / "status.json"


class Kubelet:
    """Starts, watches and ends the processes of pods.

    Args:
        store: where pods are.
        folder: the run's folder: `jobs/JOB/` holds log and termination message, `status.json` the trainer's fields.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._runner = ProcessRunner()
        self._processes: dict[str, Process] = {}
        self._readiness: dict[str, Readiness] = {}
        self._deadlines: dict[str, float] = {}  # by the monotonic clock; SIGTERM was sent when there is one

    @property
    def status_file(self) -> Path:
        """Where trainers leave their status fields; one file for all attempts, which continue it."""
        return status_file(self._folder)

    @property
    def busy(self) -> bool:
        """Whether a process runs."""
        return bool(self._processes)

    def log(self, job: str) -> Path:
        """Output of a Job's process."""
        return self._folder / "jobs" / job / "log"

    def sync(self, pod: Object, now: datetime) -> None:
        """Brings one pod a step further.

        Raises:
            LocalError: its process cannot be started here.
        """
        meta = pod["metadata"]
        uid = meta["uid"]
        deleted = meta.get("deletionTimestamp") is not None
        if phase(pod) in ENDED:
            if deleted:
                self._store.remove("Pod", meta["namespace"], meta["name"])
            return
        process = self._processes.get(uid) or self._take_over(pod)
        if process is None:
            if deleted:
                self._store.remove("Pod", meta["namespace"], meta["name"])
            elif pod.get("status"):
                self._report_end(pod, exit_code_of(self._termination_log(pod)), now)
            else:
                self._processes[uid] = self._start(pod)
                self._report(pod, {"running": {"startedAt": rfc3339(now)}}, "Running", now)
            return
        self._processes[uid] = process
        if not pod.get("status"):  # gft was killed between the start and its record
            self._report(pod, {"running": {"startedAt": rfc3339(now)}}, "Running", now)
        if (code := process.poll()) is not None:
            del self._processes[uid]
            self._report_end(pod, code, now)
            if deleted:
                self._store.remove("Pod", meta["namespace"], meta["name"])
        elif deleted:
            self._end(uid, process, meta.get("deletionGracePeriodSeconds", GRACE_SECONDS))
        elif pod.get("status") and self._ready(pod) != _is_ready(pod):
            self._report(pod, _state(pod), "Running", now)

    def end_all(self, grace: float) -> None:
        """Ends every process that is left: SIGTERM, and SIGKILL after `grace` seconds. Their pods stay Running.

        For the case that gft itself fails: the next gft finds how they ended.
        """
        end = time.monotonic() + grace
        for process in self._processes.values():
            process.terminate()
        while running := [process for process in self._processes.values() if process.poll() is None]:
            if time.monotonic() >= end:
                for process in running:
                    process.kill()
            time.sleep(0.02)

    def clean(self) -> None:
        """Removes the scratch space; logs stay."""
        shutil.rmtree(self._folder / "cache", ignore_errors=True)

    def _ready(self, pod: Object) -> bool:
        uid, container = pod["metadata"]["uid"], pod["spec"]["containers"][0]
        if uid not in self._readiness:
            self._readiness[uid] = Readiness(container, {names.DEFAULT_CACHE: self._folder / "cache"})
        return self._readiness[uid].look(time.monotonic())

    def _end(self, uid: str, process: Process, grace: float) -> None:
        if uid not in self._deadlines:
            self._deadlines[uid] = time.monotonic() + grace
            process.terminate()
        elif time.monotonic() >= self._deadlines[uid]:
            process.kill()

    # --- starting ---

    def _take_over(self, pod: Object) -> Process | None:
        """The pod's process where an earlier gft left it running."""
        log = self._termination_log(pod)
        found = find(names.ENV_TERMINATION_LOG, str(log))
        return self._runner.adopt(found, log) if found is not None else None

    def _start(self, pod: Object) -> Process:
        container = pod["spec"]["containers"][0]
        log = self._termination_log(pod)
        folder = log.parent
        folder.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        try:
            variables = self._environment(pod, container)
        except ConfigError as error:
            raise LocalError(
                f"{error}. On this machine a Secret's key is read from the environment variable of that name: set it"
            ) from None
        command = [expand(word, variables) for word in [*container["command"], *container.get("args", [])]]
        if command[0] == "python":
            command[0] = _python(variables)
        spec = ProcessSpec(command, variables, folder, folder / "log", log)
        try:
            return self._runner.start(spec)
        except OSError as error:
            raise LocalError(f"the trainer cannot be started: {error}") from error

    def _environment(self, pod: Object, container: Object) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(_IN_CLUSTER)}
        cache = self._folder / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        variables = relocate(environment(pod, container, _secrets, own), {names.DEFAULT_CACHE: cache})
        for name in ENVIRONMENT.keys() - {"PYTHONUNBUFFERED"}:
            # Homes and caches of a pod; on this machine the user's own are used, and found again by the next run.
            variables.pop(name, None)
            if name in own:
                variables[name] = own[name]
        return variables | {
            names.ENV_CACHE: str(cache),
            names.ENV_TERMINATION_LOG: str(self._termination_log(pod)),
            names.ENV_STATUS_FILE: str(self.status_file),
        }

    def _termination_log(self, pod: Object) -> Path:
        return self.log(pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]).with_name("termination-log")

    # --- status ---

    def _report_end(self, pod: Object, code: int, now: datetime) -> None:
        code = container_exit_code(code)
        log = self._termination_log(pod)
        end = {"exitCode": code, "reason": "Error" if code else "Completed", "finishedAt": rfc3339(now)}
        if message := termination_message(log, log.with_name("log") if code else None):
            end["message"] = message
        self._report(pod, {"terminated": end}, "Failed" if code else "Succeeded", now)

    def _report(self, pod: Object, state: Object, phase_: str, now: datetime) -> None:
        meta = pod["metadata"]
        name = pod["spec"]["containers"][0]["name"]
        scheduled = {"type": "PodScheduled", "status": "True"}
        ready = phase_ == "Running" and self._ready(pod)
        status = {
            "phase": phase_,
            "hostIP": "127.0.0.1",
            "startTime": pod.get("status", {}).get("startTime") or rfc3339(now),
            "conditions": [scheduled, {"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"name": name, "restartCount": 0, "ready": ready, "state": state}],
        }
        self._store.write_status("Pod", meta["namespace"], meta["name"], status)


def _python(variables: Mapping[str, str]) -> str:
    """The Python of the backend that a pod's image would bring. Raises LocalError where it is not installed."""
    backend = backend_of_pod(variables)
    if backend is None:
        return sys.executable
    python = python_of(backend)
    if python is None:
        raise LocalError(f"backend {backend} is not installed here. {how_to_install(backend)}")
    return str(python)


def _is_ready(pod: Object) -> bool:
    found: list[Object] = pod["status"].get("conditions", [])
    return any((item["type"], item["status"]) == ("Ready", "True") for item in found)


def _state(pod: Object) -> Object:
    state: Object = pod["status"]["containerStatuses"][0]["state"]
    return state


def _secrets(kind: str, name: str) -> Object | None:
    """Any Secret or ConfigMap: its keys are the variables of the user's environment."""
    own: Mapping[str, str] = os.environ
    if kind == "secrets":
        return {"data": {key: base64.b64encode(value.encode()).decode() for key, value in own.items()}}
    return {"data": dict(own)}
