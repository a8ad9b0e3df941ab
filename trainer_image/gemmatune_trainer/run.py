"""The story of one attempt, top to bottom: from the configuration to a verified result and its manifest."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

from gemmatune_api.base import duration_text
from gemmatune_api.messages import TerminationMessage
from gemmatune_api.names import Reason
from gemmatune_api.runconfig import RunConfig
from gemmatune_api.status import Artifacts
from gemmatune_trainer import access, backends, manifest, ownership, report
from gemmatune_trainer.backends.base import Backend, Snapshot, Step, Tally
from gemmatune_trainer.checkpoints import Checkpoints, Restored, Schedule
from gemmatune_trainer.data import prepared
from gemmatune_trainer.data.mapped import PreparedData
from gemmatune_trainer.data.order import steps_per_epoch
from gemmatune_trainer.divergence import LossWatch
from gemmatune_trainer.errors import DataInvalid, Interrupted, LossDiverged, TrainerError, explain, naming
from gemmatune_trainer.evaluation import Evaluation
from gemmatune_trainer.history import History
from gemmatune_trainer.logs import log
from gemmatune_trainer.models import ModelFiles, cache_folder, fetch
from gemmatune_trainer.progress import Reporter, open_sink
from gemmatune_trainer.ranks import Ranks
from gemmatune_trainer.result import Result, kind_of
from gemmatune_trainer.samples import Samples
from gemmatune_trainer.stop import HEARD_SECONDS, StopFlag
from gemmatune_trainer.storage import Storage, open_storage
from gemmatune_trainer.storage_file import FileStorage
from gemmatune_trainer.tracking import Tracking, open_tracking
from gemmatune_trainer.versions import versions
from gemmatune_trainer.watchdog import Watchdog

SAVE_SECONDS = 15.0
"""How long after a signal the last checkpoint may take: of a pod's time to end, the rest is for the status."""
LOOK_PATIENCE = 10.0
"""How long a look at the fence before a status write asks a bucket that does not answer, in seconds."""
_ALIVE = "alive"
VERIFIED_TOKENS = 64
"""Tokens of a row whose logits the verification compares: it holds them three times in fp32."""
NO_BETTER = "Look at the samples and the curves in the report; train on more rows, or with a lower learningRate."


def run(config: RunConfig, stop: StopFlag, ranks: Ranks) -> TerminationMessage:
    """Carries out an attempt, as rank 0 of its processes; its end as a message.

    Raises:
        TrainerError: an end that has an exit code of its own.
    """
    storage, claimed = _claimed(config, stop)
    finished = manifest.find(storage, claimed.resume_hash)
    if finished is not None:
        return _finished_before(config, storage, Reporter(open_sink(config.run)), finished)
    fence = _fenced(config, storage, claimed, ranks)
    reporter = _reporter(config, fence)
    scratch = _scratch(config)
    watchdog, tracking = _watchdog(config, reporter, stop), Tracking([])
    checkpoints = Checkpoints(
        storage, fence, scratch, _identity(config, claimed), config.checkpoint.keep, reporter.checkpoint
    )
    try:
        reporter.start()
        with stop.at_once("reading checkpoint, data and model"):
            newest = checkpoints.newest_for(config.backend)
            reporter.resumed((newest.step, newest.uri) if newest else None, checkpoints.note)
            rows = prepared.load(storage, config.output.uri, claimed.data_hash, cache_folder("data"))
            files = fetch(config.model, weights=True, revision=claimed.model_revision)
        total_steps = _total_steps(config, rows.rows)
        with stop.at_once("loading the model"):
            backend = _backend(config, files, stop, ranks)
            backend.load()
        samples = Samples(config, files, stop, rows.evaluation)
        before = samples.before(backend, storage)
        reporter.samples(samples.prompts, before, None)
        evaluation = Evaluation(config, backend, rows.evaluation, scratch)
        tracking = open_tracking(config, report.settings(config), scratch, newest.step if newest else 0)
        attempt = Attempt(
            config, stop, backend, evaluation, checkpoints, reporter, tracking, watchdog, rows.rows, total_steps, newest
        )
        with stop.unheard(attempt.unheard):
            attempt.train(rows)
        result = Result(
            config=config,
            claim=claimed,
            files=files,
            data=rows.statistics,
            history=attempt.history,
            total_steps=total_steps,
            step=evaluation.choose(total_steps),
            prompts=samples.prompts,
            before=before,
            tally=attempt.tally,
        )
        _verify(result, backend, samples, scratch / result.kind, rows, watchdog, stop)
        with watchdog.patiently("writing the result"), stop.at_once("the result's upload", total_steps):
            artifacts = manifest.publish(result, storage, fence, scratch / result.kind, scratch)
        _report_end(reporter, result, artifacts)
        return _completed(config, artifacts.manifest, total_steps, result, checkpoints.note)
    except TrainerError as error:
        error.message = f"{error.message} {checkpoints.note}".strip()
        raise
    finally:
        _end(watchdog, reporter, tracking, scratch, ranks)


def _fenced(config: RunConfig, storage: Storage, claimed: ownership.Claim, ranks: Ranks) -> ownership.Fence:
    """The attempt's fence, once all of its processes are there: their pods may come hours apart."""
    ownership.hold(storage)
    ranks.join(config.device, config.backend)
    return ownership.Fence.take(storage, claimed, config.attempt)


def _reporter(config: RunConfig, fence: ownership.Fence) -> Reporter:
    """Writes the status as long as the fence lets it, which it looks at through a client of its own."""
    return Reporter(open_sink(config.run), fence.beside(open_storage(config.output.uri, LOOK_PATIENCE)).check)


def _report_end(reporter: Reporter, result: Result, artifacts: Artifacts) -> None:
    reporter.samples(result.prompts, result.before, result.after)
    reporter.artifacts(artifacts)
    log.info("done", manifest=artifacts.manifest)


def _end(watchdog: Watchdog, reporter: Reporter, tracking: Tracking, scratch: Path, ranks: Ranks) -> None:
    """The end of an attempt, whether it came well or by the exception that is passing through."""
    ranks.end()
    watchdog.stop()
    reporter.close()
    error = sys.exception()
    tracking.close("finished" if error is None else "interrupted" if isinstance(error, Interrupted) else "failed")
    shutil.rmtree(scratch, ignore_errors=True)


def _verify(
    result: Result,
    backend: Backend,
    samples: Samples,
    folder: Path,
    rows: PreparedData,
    watchdog: Watchdog,
    stop: StopFlag,
) -> None:
    """Writes the result, holds what is reloaded from it against what was trained, and lets it answer the prompts."""
    with watchdog.patiently("verifying the result"), stop.at_once("the result's verification", result.total_steps):
        with naming(str(folder)):
            backend.save_result(folder)
        found = result.verification = backend.verify(folder, rows.row(0)[0][:VERIFIED_TOKENS])
    log.info("result verified", delta=float(f"{found.delta:.3g}"), parameters=found.parameters)
    with stop.at_once("the samples after training", result.total_steps):
        result.after = samples.answers(backend, "after")


def _claimed(config: RunConfig, stop: StopFlag) -> tuple[Storage, ownership.Claim]:
    """The run's prefix and its owner's record; before that, whether this image can train it at all."""
    backends.check(config.backend)
    with stop.at_once("reading the output"):
        return access.claimed(config)


def _finished_before(
    config: RunConfig, storage: Storage, reporter: Reporter, finished: manifest.Finished
) -> TerminationMessage:
    """An earlier attempt has finished the run: only the status may still lack what it left."""
    log.info("the run is finished already", manifest=storage.locate(manifest.NAME))
    reporter.start()
    reporter.artifacts(finished.artifacts)
    reporter.close()
    return _completed(config, storage.locate(manifest.NAME), finished.steps)


def _completed(
    config: RunConfig, uri: str | None, steps: int, result: Result | None = None, note: str = ""
) -> TerminationMessage:
    text = f"{steps} steps are done."
    for warning in result.warnings if result is not None else ():
        log.warning(f"the {kind_of(config)} is verified, but", warning=warning)
    if result is not None and result.evaluated is not None:
        base, found = result.history.evaluations[0].loss, result.evaluated.loss
        verb = "fell" if found < base else "did not fall: it went"
        text += f" The evaluation loss {verb} from {base:.4g} to {found:.4g} (step {result.step})."
    return TerminationMessage(
        reason=Reason.COMPLETED,
        message=f"{text} {note}".strip(),
        remedy=NO_BETTER if result is not None and result.warnings else "",
        step=steps,
        manifest=uri,
    )


def _watchdog(config: RunConfig, reporter: Reporter, stop: StopFlag) -> Watchdog:
    """Watches from now on; every look at the stop flag counts as a sign of life."""
    watchdog = Watchdog(config.stall_seconds, reporter.alive)
    stop.looked = watchdog.beat
    watchdog.start()
    return watchdog


def _scratch(config: RunConfig) -> Path:
    """A folder of this attempt; those of earlier ones that were killed on this machine are removed."""
    runs = cache_folder("runs")
    for left in runs.glob(f"{config.run.uid}-*"):
        if not FileStorage(left).is_locked(_ALIVE):
            shutil.rmtree(left, ignore_errors=True)
    folder = runs / f"{config.run.uid}-{config.attempt}"
    folder.mkdir(parents=True)
    FileStorage(folder).share_lock(_ALIVE)
    return folder


def _identity(config: RunConfig, claimed: ownership.Claim) -> dict[str, object]:
    return {
        "resumeHash": claimed.resume_hash,
        "dataHash": claimed.data_hash,
        "attempt": config.attempt,
        "versions": versions(),
    }


def _total_steps(config: RunConfig, rows: int) -> int:
    size = config.training.global_batch_size
    if rows < size:
        raise DataInvalid(
            f"the data has {rows} rows, one step needs {size}", "Lower training.globalBatchSize, or add rows."
        )
    return config.training.steps(rows)


def _backend(config: RunConfig, files: ModelFiles, stop: StopFlag, ranks: Ranks) -> Backend:
    """The backend of the run; its libraries are imported only here, after everything that can fail early."""
    started = time.monotonic()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # TRL refuses a process that sees several
    backend = backends.make(config, files, stop, ranks)
    log.info("libraries loaded", backend=config.backend, seconds=round(time.monotonic() - started, 1))
    stop.check("loading the model")
    if ranks.size == 1:
        return backend
    from gemmatune_trainer.backends.leading import LeadingBackend

    return LeadingBackend(backend, ranks, stop, divided=config.training.sharded or config.backend != "torch")


class StopTraining(Exception):
    """Training shall end here; raised between two micro-batches."""


class Attempt:
    """Training from the newest checkpoint to the last step; implements backends.base.Training."""

    def __init__(
        self,
        config: RunConfig,
        stop: StopFlag,
        backend: Backend,
        evaluation: Evaluation,
        checkpoints: Checkpoints,
        reporter: Reporter,
        tracking: Tracking,
        watchdog: Watchdog,
        rows: int,
        total_steps: int,
        start: Restored | None,
    ) -> None:
        self._config = config
        self._stop = stop
        self._backend = backend
        self._evaluation = evaluation
        self._checkpoints = checkpoints
        self._reporter = reporter
        self._tracking = tracking
        self._watchdog = watchdog
        self._rows = rows
        self._total_steps = total_steps
        self._start = start
        self._steps_per_epoch = steps_per_epoch(rows, config.training.global_batch_size)
        every = config.training.log_every_steps
        self.history = History.restored(every, start.folder) if start else History(every)
        self.history.begin(config.attempt, start.step if start else 0, config.device)
        if start:
            evaluation.restore(start.folder)
        self.tally: Tally | None = None
        self._watch = LossWatch(point.loss for point in self.history.points)
        self._step = start.step if start else 0
        self._beside = 0.0
        planned = config.checkpoint
        self._schedule = Schedule(planned.every_steps, planned.every_seconds, time.monotonic())

    def train(self, rows: PreparedData) -> None:
        """Trains to the last step.

        Raises:
            Interrupted: the process was asked to stop (a checkpoint is saved), or a newer attempt has taken over.
            LossDiverged: the loss or the gradient ran away.
        """
        log.info("training", from_step=self._step, total_steps=self._total_steps, rows=self._rows)
        self._report(urgent=True)
        started = self._schedule.time = time.monotonic()
        try:
            start = self._start.folder if self._start else None
            if self._evaluation.missed(self._step, self._total_steps, self.history):
                if start:
                    self._backend.restore_weights(start)
                self._evaluate()
            self.tally = self._backend.train(rows, self._rows, self._total_steps, start, self)
            seconds = time.monotonic() - started
            log.info("trained", seconds=round(seconds, 2), for_checkpoints_and_status=round(self._beside, 3))
            if self.tally:
                log.info("compiled", **self.tally.told)
            with self._watchdog.patiently("uploading the last checkpoint"):
                self._checkpoints.wait(self._look)
        except StopTraining:
            self._interrupt()
        except Exception as error:
            known = explain(error)
            if known is None or known.step is not None:
                raise
            known.step = self._step  # how far an attempt came is part of its end
            if known is error:
                raise
            raise known from error
        self._report(urgent=True)

    def micro_batch(self) -> None:
        """Before every forward pass: looks whether to stop."""
        if self._stop.requested:  # also the sign of life
            raise StopTraining
        self._checkpoints.poll()
        self._reporter.poll()

    def _look(self) -> None:
        """While training waits for an upload: the same, but no sign of life."""
        if self._stop.raised:
            raise StopTraining
        self._reporter.poll()

    def step_done(self, step: Step) -> None:
        """After every optimizer step: records it, and saves a checkpoint where one is due."""
        self._step = step.number
        self._watchdog.stepped(step.number)
        trouble = self._watch.add(step.loss, step.gradient_norm)
        if trouble:
            raise LossDiverged(f"at step {step.number} {trouble}", step=step.number)
        point = self.history.add(step)
        if point is not None:
            self._tracking.point(point)
            left = (self._total_steps - step.number) * self.history.seconds_per_step
            log.info(
                "step",
                step=f"{step.number}/{self._total_steps}",
                loss=float(f"{point.loss:.4g}"),
                learning_rate=float(f"{point.learning_rate:.3g}"),
                tokens_per_second=round(point.tokens_per_second),
                eta=duration_text(left),
            )
        last = step.number == self._total_steps
        save = self._schedule.due(step.number, time.monotonic()) or last
        if self._evaluation.due(step.number, with_checkpoint=save, last=last):
            self._evaluate()
        started = time.monotonic()
        self._report(urgent=False)
        if save:
            with self._watchdog.patiently("saving a checkpoint"):
                self._checkpoints.save(step.number, self._snapshot, self._look)
        self._beside += time.monotonic() - started

    def _evaluate(self) -> None:
        self._evaluation.run(self._step, self.history, self.micro_batch)
        self._tracking.evaluated(self.history.evaluations[-1])

    def _snapshot(self) -> Snapshot:
        parts = (self._backend.snapshot(), self.history.snapshot(), self._evaluation.snapshot())

        def write(folder: Path) -> None:
            for part in parts:
                part(folder)

        return write

    def _report(self, urgent: bool) -> None:
        self._reporter.progress(self._step, self._total_steps, self._steps_per_epoch, self.history, urgent)

    def _saved(self) -> int:
        """The step of the newest checkpoint; 0: there is none."""
        return self._checkpoints.last_step or (self._start.step if self._start else 0)

    def unheard(self, waited: float) -> Interrupted | None:
        """How an attempt ends whose steps, or what is compiled for them, keep the main thread from hearing of a signal.

        Where the newest step is saved, nothing is lost; else an upload in flight has the time that it would have had.
        """
        saved = self._saved()
        if waited < (HEARD_SECONDS if self._step == saved else SAVE_SECONDS):
            return None
        log.info("stopping", signal=self._stop.by, step=self._step, unheard_for=round(waited, 1))
        counts = f"the checkpoint of step {saved} counts" if saved else "no checkpoint is saved"
        busy = f"could not be heard while step {self._step + 1} was compiled or computed"
        return Interrupted(f"{self._stop.by} {busy}: {counts}", step=saved)

    def _interrupt(self) -> None:
        """Saves the last optimizer step, and ends the attempt."""
        log.info("stopping", signal=self._stop.by, step=self._step)
        saved, fault = self._saved(), ""
        if self._step > saved:
            fault = self._checkpoints.save_last(self._step, self._snapshot, self._stop.left(SAVE_SECONDS))
            saved = self._saved()
        self._report(urgent=True)
        done = f"the checkpoint of step {saved} is saved" if saved else "no step was done"
        if fault:
            counts = f"that of step {saved} counts" if saved else "none is saved"
            done = f"the checkpoint of step {self._step} is not saved ({fault}); {counts}"
        raise Interrupted(f"{self._stop.by} stopped training: {done}", step=saved)
