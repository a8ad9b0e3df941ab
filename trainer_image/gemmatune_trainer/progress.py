"""What a run tells while it goes on: the trainer's four status fields, to the API server or to a file."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import requests

from gemmatune_api.base import duration_text
from gemmatune_api.names import ENV_STATUS_FILE, TRAINER_STATUS_FIELDS
from gemmatune_api.runconfig import RunIdentity
from gemmatune_api.status import Artifacts, CheckpointStatus, Progress, Sample
from gemmatune_trainer.apiserver import ApiServer
from gemmatune_trainer.errors import Interrupted, TrainerError
from gemmatune_trainer.history import History
from gemmatune_trainer.logs import log

INTERVAL_SECONDS = 10.0
"""Shortest time between two writes to the API server that nothing important has happened between."""
FILE_INTERVAL_SECONDS = 0.5
"""The same for a file, which costs nobody anything: `gft run` shows every step."""
LOOK_SECONDS = 5.0
"""Shortest time between two looks at the fence."""
FORBIDDEN_SECONDS = 30.0
_INVALID = (requests.codes.bad_request, requests.codes.request_entity_too_large, requests.codes.unprocessable_entity)
_CLOSE_SECONDS = 15.0
"""Longest time that the end of a process waits for its last write: a pod that stops has little left."""
_SAMPLE_CHARACTERS = 2000
_SAMPLES = 8
_SPEED = ("tokensPerSecond", "eta")
"""Fields of the progress that an attempt has only from its own first step on."""


class Sink(Protocol):
    """Where status fields go."""

    interval: float
    """Shortest time in seconds between two writes that nothing important has happened between."""

    def read(self) -> dict[str, Any]:
        """The fields as they were left."""

    def write(self, status: dict[str, Any]) -> None:
        """Replaces all four fields."""


class FileSink:
    """A JSON file that is replaced as a whole (`gft run`)."""

    interval = FILE_INTERVAL_SECONDS

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Any]:
        """The fields as they were left."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, status: dict[str, Any]) -> None:
        """Replaces all four fields."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(status, ensure_ascii=False), encoding="utf-8")
        temporary.replace(self._path)


class ApiSink:
    """The resource's status at the API server.

    A refusal (403) is retried in the first 30 s: the pod may start before the operator has written `status.job`.
    Samples are the one field that holds texts of others: where the API server takes the status with them for invalid,
    it is written without them, since a run without heartbeats counts as stalled.
    """

    interval = INTERVAL_SECONDS

    def __init__(self, server: ApiServer, identity: RunIdentity) -> None:
        self._server = server
        self._identity = identity
        self._patient_until = time.monotonic() + FORBIDDEN_SECONDS
        self._told = ""

    def read(self) -> dict[str, Any]:
        """The fields as they were left."""
        resource = self._server.get(self._identity.namespace, self._identity.name)
        if resource is None or resource.get("metadata", {}).get("uid") != self._identity.uid:
            return {}
        return resource.get("status") or {}

    def write(self, status: dict[str, Any]) -> None:
        """Replaces all four fields."""
        while True:
            try:
                self._server.apply_status(self._identity.namespace, self._identity.name, self._identity.uid, status)
                return
            except requests.HTTPError as error:
                code = error.response.status_code if error.response is not None else 0
                if code in _INVALID and "samples" in status:
                    if str(error) != self._told:
                        log.warning("samples left out of the status", error=str(error))
                    self._told = str(error)
                    status = {name: value for name, value in status.items() if name != "samples"}
                elif code == requests.codes.forbidden and time.monotonic() <= self._patient_until:
                    time.sleep(1.0)
                else:
                    raise


def open_sink(identity: RunIdentity) -> Sink | None:
    """The sink that the environment offers: a pod's API server, else the status file, else none."""
    server = ApiServer.of_pod()
    if server is not None:
        return ApiSink(server, identity)
    path = os.environ.get(ENV_STATUS_FILE)
    return FileSink(Path(path)) if path else None


class Reporter:
    """Keeps the four fields, and writes them in a thread of its own: no trouble there ever ends training.

    Every write carries all four fields in full, since one that is left out would be erased. It begins with what the
    sink has; what the bucket says replaces that. `may_write`, the fence, is asked before writes: once it has raised
    Interrupted, the status is another attempt's, nothing more is written, and `poll` ends training.
    """

    def __init__(self, sink: Sink | None, may_write: Callable[[], None] = lambda: None) -> None:
        self._sink = sink
        self._may_write = may_write
        self._looked = -math.inf
        self._taken_over: Interrupted | None = None
        self._interval = sink.interval if sink is not None else INTERVAL_SECONDS
        self._fields: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._urgent = self._dirty = self._closing = self._seeded = self._reported = False
        self._thread: threading.Thread | None = None
        self._last_trouble = ""
        self._note: str | None = None

    def start(self) -> None:
        """Reads what was left, and begins to write."""
        if self._sink is None:
            return
        self._guarded(self._seed)
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        self._thread.start()

    def _seed(self) -> None:
        found = self._sink.read() if self._sink else {}
        with self._lock:
            for name in TRAINER_STATUS_FIELDS:
                if found.get(name) is not None and name not in self._fields:
                    self._fields[name] = found[name]
            self._seeded = True

    def progress(self, step: int, total_steps: int, steps_per_epoch: int, history: History, urgent: bool) -> None:
        """How far training is; also the heartbeat."""
        last = history.points[-1] if history.points else None
        thinned = history.thinned()
        seconds = history.seconds_per_step
        text = Progress(
            step=step,
            total_steps=total_steps,
            step_text=f"{step}/{total_steps}",
            epoch=round(step / steps_per_epoch, 2) if steps_per_epoch else 0,
            loss=_digits(last.loss) if last else None,
            eval_loss=_digits(history.evaluations[-1].loss) if history.evaluations else None,
            learning_rate=_digits(last.learning_rate) if last else None,
            tokens_per_second=_digits(history.tokens_per_second) if seconds else None,
            eta=duration_text((total_steps - step) * seconds) if seconds else "",
            heartbeat=_now(),
            history_steps=[point.step for point in thinned],
            history_loss=[_digits(point.loss) or 0.0 for point in thinned],
        )
        self._set("progress", text.model_dump(by_alias=True, exclude_none=True), urgent)

    def alive(self) -> None:
        """A sign of life between two steps.

        Before this attempt's first report it renews what the attempt before has left, but for its speed: a speed under
        a new heartbeat tells the operator that this attempt has done a step.
        """
        with self._lock:
            if "progress" in self._fields:
                old = self._fields["progress"]
                kept = old if self._reported else {name: old[name] for name in old if name not in _SPEED}
                self._fields["progress"] = {**kept, "heartbeat": _now()}
                self._dirty = True

    def poll(self) -> None:
        """Ends training where a newer attempt has taken over. Raises Interrupted."""
        if self._taken_over is not None:
            raise self._taken_over

    def resumed(self, checkpoint: tuple[int, str] | None, note: str) -> None:
        """Step and URI of the checkpoint that the attempt begins with: the bucket wins over what the status says."""
        self._note = note or None
        if checkpoint is not None:
            self.checkpoint(*checkpoint)
        else:
            self._set("checkpoint", None, urgent=False)

    def checkpoint(self, step: int, uri: str) -> None:
        """A checkpoint has landed."""
        status = CheckpointStatus(step=step, uri=uri, note=self._note)
        self._set("checkpoint", status.model_dump(by_alias=True, exclude_none=True), urgent=True)

    def samples(self, prompts: list[str], before: list[str], after: list[str] | None) -> None:
        """What the model answered before and, at the end, after."""
        cut = [
            Sample(
                prompt=prompt[:_SAMPLE_CHARACTERS],
                before=before[index][:_SAMPLE_CHARACTERS] if index < len(before) else None,
                after=after[index][:_SAMPLE_CHARACTERS] if after else None,
            ).model_dump(by_alias=True, exclude_none=True)
            for index, prompt in enumerate(prompts[:_SAMPLES])
        ]
        self._set("samples", cut, urgent=after is not None)

    def artifacts(self, artifacts: Artifacts) -> None:
        """What the run left."""
        self._set("artifacts", artifacts.model_dump(by_alias=True, exclude_none=True), urgent=True)

    def close(self) -> None:
        """Writes what is still to be written, and ends the thread."""
        if self._thread is None:
            return
        with self._lock:
            self._closing = True
        self._wake.set()
        self._thread.join(_CLOSE_SECONDS)

    def _set(self, name: str, value: Any, urgent: bool) -> None:
        with self._lock:
            self._fields[name] = value
            self._reported = self._reported or name == "progress"
            self._dirty = True
            self._urgent = self._urgent or urgent
        if urgent:
            self._wake.set()

    def _run(self) -> None:
        while True:
            with self._lock:
                closing, due = self._closing, self._dirty
                self._dirty = self._urgent = False
                self._wake.clear()
            if due and not self._guarded(self._write):
                with self._lock:
                    self._dirty = True
            if closing:
                return
            self._wait()

    def _write(self) -> None:
        """Writes all fields; what others left is read before the first time, since it would be erased."""
        if self._sink is None:
            return
        if not self._seeded:
            self._seed()
        if not self._is_mine():
            return
        with self._lock:
            status = {name: self._fields[name] for name in TRAINER_STATUS_FIELDS if self._fields.get(name) is not None}
        self._sink.write(status)

    def _is_mine(self) -> bool:
        """Whether the status is still this attempt's; where nobody can tell, it is."""
        if self._taken_over is None and time.monotonic() - self._looked >= LOOK_SECONDS:
            try:
                self._may_write()
            except Interrupted as error:
                log.warning("the status is another attempt's", error=error.message)
                self._taken_over = error
            except TrainerError as error:
                log.debug("the fence cannot be looked at", error=error.message)
            self._looked = time.monotonic()
        return self._taken_over is None

    def _wait(self) -> None:
        """Until something important happens, or the interval is over."""
        deadline = time.monotonic() + self._interval
        while (rest := deadline - time.monotonic()) > 0:
            self._wake.wait(rest)
            with self._lock:
                if self._urgent or self._closing:
                    return
                self._wake.clear()

    def _guarded(self, work: Callable[[], None]) -> bool:
        """Does the work; whether it went well."""
        try:
            work()
            return True
        except Exception as error:  # noqa: BLE001 - the status is not worth a run
            text = f"{type(error).__name__}: {error}"
            if text != self._last_trouble:
                log.warning("status not written", error=text)
            self._last_trouble = text
            return False


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _digits(value: float) -> float | None:
    """A value with 4 digits; None for NaN and infinities, which JSON does not know."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
