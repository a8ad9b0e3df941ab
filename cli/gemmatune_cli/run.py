"""`gft run`: a resource on this machine, by the operator's own rules in an embedded cluster."""

from __future__ import annotations

import asyncio
import shlex
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer
from rich.console import Console

from gemmatune_api.claims import claim_of
from gemmatune_api.defaults import backend_of
from gemmatune_api.environments import how_to_install
from gemmatune_api.errors import InvalidResourceError
from gemmatune_api.fit import merges
from gemmatune_api.names import KIND, ConditionType, Phase
from gemmatune_api.spec import Backend, GemmaFineTune
from gemmatune_api.status import FineTuneStatus
from gemmatune_cli.console import CommandError, output
from gemmatune_cli.documents import fine_tunes
from gemmatune_cli.local.cluster import memory_of_machine
from gemmatune_cli.local.environments import python_of
from gemmatune_cli.local.kubelet import LocalError
from gemmatune_cli.local.loop import Loop
from gemmatune_cli.local.oplog import logged_to
from gemmatune_cli.local.session import Session, open_session
from gemmatune_cli.planning import require_output
from gemmatune_cli.view import View, summary, view_for
from gemmatune_operator import conditions
from gemmatune_operator.settings import Settings

SUCCEEDED, FAILED, INTERRUPTED = 0, 1, 130
"""Exit codes: 130 is what a shell shows for Ctrl-C."""
CRASH_GRACE_SECONDS = 60.0
"""Time that a trainer gets to save its work when gft itself fails."""
TRY_AGAIN = "start `gft run` again"
_GPUS = Path("/proc/driver/nvidia/gpus")


def command(
    file: Annotated[str, typer.Argument(help="YAML or JSON file with one GemmaFineTune, or - for standard input.")],
) -> None:
    """Run a resource on this machine, without a cluster.

    Ctrl-C saves a checkpoint and stops; the same command goes on from there. Exit code 0: Succeeded, 1: Failed,
    130: stopped.
    """
    try:
        resources = fine_tunes([file])
    except InvalidResourceError as error:
        raise CommandError(f"{file}: {error}", "`gft validate` shows every problem.") from error
    if len(resources) > 1:
        named = ", ".join(resource.metadata.name for resource in resources)
        raise CommandError(f"{file} holds several resources: {named}", "Put the one to run into a file of its own.")
    raise typer.Exit(run(resources[0], shlex.join(["gft", "run", file]), output()))


def run(resource: GemmaFineTune, again: str, console: Console) -> int:
    """Runs a valid resource to its end or until Ctrl-C; the exit code.

    Args:
        again: the command that goes on with it, for the reader.

    Raises:
        CommandError: it cannot run here.
    """
    require_output(resource)
    check_machine(resource)
    with open_session(resource, console.print) as session, logged_to(session.folder):
        runner = Runner(session, again, console)
        if runner.finished():
            console.print(f"{session.name} has finished already; its results are in {resource.spec.output.uri}")
            summary(console, runner.loop.status)
            return SUCCEEDED
        try:
            return asyncio.run(runner.run())
        except LocalError as error:
            raise CommandError(str(error), f"Then go on with: {again}") from error


def check_machine(resource: GemmaFineTune) -> None:
    """Refuses what this machine cannot do, before anything is started.

    Raises:
        CommandError: a backend that is not installed, a volume of a cluster, or an accelerator that is not here.
    """
    spec = resource.spec
    merged: tuple[Backend, ...] = ("torch",) if merges(spec) else ()
    for backend in (backend_of(spec), *merged):
        if python_of(backend) is None:
            doing = "trains with" if backend == backend_of(spec) else "merges with"
            raise CommandError(f"this run {doing} backend {backend}, which is not installed", how_to_install(backend))
    sources = {"model.uri": spec.model.uri, "dataset.uri": spec.dataset.uri, "dataset.evalUri": spec.dataset.eval_uri}
    for field, uri in sources.items():
        if claim_of(uri) is not None:
            raise CommandError(
                f"spec.{field}: {uri} is on a volume of a cluster, which this machine does not have",
                "Copy it here and write file:///PATH, or apply the resource to the cluster.",
            )
    if spec.accelerator.gpu is not None and not (_GPUS.is_dir() and any(_GPUS.iterdir())):
        raise CommandError(
            f"spec.accelerator.gpu: this machine has no NVIDIA GPU (wanted: {spec.accelerator.gpu.type})",
            "Write accelerator: {cpu: {}} to run it here, or apply it to a cluster.",
        )
    if spec.accelerator.tpu is not None:
        raise CommandError(
            f"spec.accelerator.tpu: this machine has no TPU (wanted: {spec.accelerator.tpu.type})",
            f"Write backend: {backend_of(spec)} and accelerator: {{cpu: {{devices: 4}}}} to run it here on virtual "
            "devices, or apply it to a cluster.",
        )


@dataclass
class Interrupts:
    """How often the user asked to stop."""

    count: int = 0

    def more(self) -> None:
        """Counts one."""
        self.count += 1


class Runner:
    """One `gft run` over an opened session."""

    def __init__(self, session: Session, again: str, console: Console) -> None:

        self._session = session
        self._again = again
        self._console = console
        self._interrupts = Interrupts()
        settings = Settings(host_memory=memory_of_machine(), try_again=TRY_AGAIN)
        self.loop = Loop(session.store, session.folder, session.namespace, session.name, settings)

    def finished(self) -> bool:
        """Whether an earlier `gft run` brought it to its good end.

        Raises:
            CommandError: it did, but its results are gone.
        """
        status = self.loop.status
        if status.phase != Phase.SUCCEEDED:
            return False
        manifest = urlsplit((status.artifacts.manifest if status.artifacts else None) or "")
        if manifest.scheme == "file" and not Path(unquote(manifest.path)).exists():
            raise CommandError(
                f"{self._session.name} has finished, but {unquote(manifest.path)} is gone",
                f"Delete {self._session.folder.parent} to run it anew.",
            )
        return True

    async def run(self) -> int:
        """Goes on until the end or Ctrl-C; the exit code."""
        events = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            events.add_signal_handler(number, self._interrupts.more)
        try:
            with view_for(self._console) as view:
                self._greet(view)
                status = await self._until_end(view)
            return self._end(status)
        except BaseException:
            self.loop.kubelet.end_all(CRASH_GRACE_SECONDS)
            raise
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                events.remove_signal_handler(number)

    def _greet(self, view: View) -> None:
        verb = "Goes on with" if self._session.resumes else "Runs"
        view.say(f"{verb} {self._session.name}; logs are in {self._session.folder / 'jobs'}", "dim")

    async def _until_end(self, view: View) -> FineTuneStatus:
        """Until it has ended, or stands still as it was asked to."""
        stopping = False

        def done(status: FineTuneStatus) -> bool:
            nonlocal stopping
            view.update(status)
            if self._interrupts.count and not stopping:
                stopping = True
                view.say("Stopping: the trainer saves a checkpoint (once more Ctrl-C kills it)", "yellow")
                self._suspend()
            if self._interrupts.count > 1:
                return True
            still = ended(status) or suspended(status, self.loop.generation)
            return still and not self.loop.kubelet.busy

        status = await self.loop.until(done)
        if self._interrupts.count > 1:
            self.loop.kubelet.end_all(grace=0)
        return status

    def _suspend(self) -> None:
        """Stops the run as `spec.suspend: true` does in a cluster; the file's spec takes it back the next time."""
        session = self._session
        spec = {**self.loop.resource["spec"], "suspend": True}
        session.store.write_spec(KIND, session.namespace, session.name, spec)

    def _end(self, status: FineTuneStatus) -> int:

        if not ended(status):
            return self._stopped(status)
        summary(self._console, status)
        if status.phase == Phase.SUCCEEDED:
            self.loop.kubelet.clean()
            return SUCCEEDED
        newest = status.merge or (status.attempts[-1] if status.attempts else status.prepare)
        if newest is not None:
            self._console.print(f"log      {self.loop.kubelet.log(newest.job)}")
        self._console.print(f"To try again: {self._again}")
        return FAILED

    def _stopped(self, status: FineTuneStatus) -> int:
        if not self._interrupts.count:
            self._console.print("spec.suspend is true: nothing runs. Set it to false and run it again.")
            return FAILED
        at = (
            f"saved at step {status.checkpoint.step}: {status.checkpoint.uri}" if status.checkpoint else "no checkpoint"
        )
        self._console.print(f"Stopped; {at}\nTo go on: {self._again}")
        return INTERRUPTED


def ended(status: FineTuneStatus) -> bool:
    """Whether the run has ended, well or not."""
    return conditions.is_true(status.conditions, ConditionType.FINISHED)


def suspended(status: FineTuneStatus, generation: int) -> bool:
    """Whether the run stands still because this generation of the spec says so."""
    found = conditions.find(status.conditions, ConditionType.SUSPENDED)
    return found is not None and (found.status, found.observed_generation) == ("True", generation)
