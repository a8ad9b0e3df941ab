"""The operator's process: one waits for the Lease, then kopf watches and workers reconcile until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any

import kopf
import structlog

from gemmatune_api import accelerators, catalog
from gemmatune_operator import handlers, logs, probes, traces
from gemmatune_operator.board import Board
from gemmatune_operator.cache import Cache, Key, Wake
from gemmatune_operator.clock import SteadyClock
from gemmatune_operator.cluster import Failpoint, KubernetesCluster
from gemmatune_operator.election import Election
from gemmatune_operator.health import Health
from gemmatune_operator.journal import Journal
from gemmatune_operator.login import Session
from gemmatune_operator.metrics import Gauges, Metrics
from gemmatune_operator.options import Options
from gemmatune_operator.ports import RefusedError, UnavailableError
from gemmatune_operator.posting import Poster
from gemmatune_operator.reconcile import Tools, look
from gemmatune_operator.sync import sync, tell
from gemmatune_operator.workqueue import Priority, WorkQueue

GRACE_SECONDS = 4.0
"""How long a graceful end waits for looks under way; then they are given up, as a crash would."""
EVENTS_SECONDS = 2.0
"""How long it waits for Events that are not recorded yet."""
FIRST_LIST_SECONDS = 2.0
"""Pause between two tries to list everything at the start."""
SETTLING_SECONDS = 15.0
"""After kopf's start. What it lists until then was listed just before; what vanished between the two lists, no watch
tells of, so that everything is listed once more then."""
KOPF_SECONDS = 4.0
"""How long it waits for kopf to close its watches."""

log = structlog.get_logger(__name__)


class StoppedError(Exception):
    """The process cannot go on: the Lease is lost, or a part of it has ended by itself."""


class Process:
    """One operator, from login to the end.

    Args:
        options: what it was told.
        failpoint: called before and after each write (tests end the process there).
    """

    def __init__(self, options: Options, failpoint: Failpoint = lambda point: None) -> None:
        self._options = options
        self._failpoint = failpoint
        self._now = SteadyClock()
        self._cache = Cache()
        self._missed = asyncio.Event()
        """kopf has listed anew: a deletion may have passed unseen."""
        self._began = 0.0
        self._ready, self._stop, self._stop_kopf = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._election: Election | None = None
        gauges = Gauges(
            depth=lambda: self._queue.depth,
            oldest=lambda: self._queue.oldest_wait,
            leader=lambda: float(self._leads),
            phases=lambda: self._journal.phases(),
            board=Board(self._cache.documents),
        )
        self._metrics = Metrics(gauges)
        self._traces = traces.to(options.traces_endpoint, options.traces_share)
        self._journal = Journal(self._metrics, self._may_write)
        self._queue: WorkQueue[Key] = WorkQueue(
            self._look,
            workers=options.workers,
            picked=self._metrics.picked,
            worked=self._metrics.worked,
            ordinary=(UnavailableError, RefusedError),
        )
        self._health = Health(self._queue, options.workers)
        self._session = Session()
        self._cluster: KubernetesCluster | None = None
        self._tools: Tools | None = None
        self._poster: Poster | None = None
        self._listed = False
        self._parts: dict[str, asyncio.Task[Any]] = {}

    async def run(self) -> None:
        """Runs until SIGTERM or SIGINT; looks under way are finished.

        Raises:
            StoppedError: the Lease is lost, or a part has ended by itself; the process shall end at once.
        """
        options = self._options
        asyncio.get_running_loop().set_exception_handler(logs.of_loop)
        serving = probes.serving(
            options.bind, options.port, alive=self._health.complaint, ready=self._unready, scrape=self._metrics.text
        )
        with serving:
            self._on_signals()
            async with self._session:
                self._set_up(KubernetesCluster(self._session, self._requested, self._failpoint, self._may_write))
                if options.election is not None:
                    self._election = Election(self._reached, options.election)
                self._part("event loop's pulse", self._health.beat())
                try:
                    await self._lead()
                finally:
                    await self._end()

    def _set_up(self, cluster: KubernetesCluster) -> None:
        self._cluster = cluster
        catalog.models(), accelerators.gpus()  # read now, not while the first run waits
        self._poster = Poster(cluster.emit, lambda: self._queue.depth > 0, self._metrics.event_dropped)
        self._tools = Tools(
            cluster, self._options.settings, journal=self._journal, cache=self._cache, post=self._poster.post
        )

    async def _lead(self) -> None:
        """Waits for the Lease where there is one, then works until the end."""
        if self._election is not None:
            acquired = self._part("candidacy", self._election.acquire())
            if not await self._until_stopped(acquired):
                return
            del self._parts["candidacy"]
            self._part("lease", self._election.keep())
        listed = self._part("first list", self._first_list())
        if not await self._until_stopped(listed):
            return
        del self._parts["first list"]
        self._part("workers", self._queue.run())
        self._part("resync", self._resync())
        if self._poster is not None:
            self._part("events", self._poster.run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # now the workers exist: kopf takes tasks that begin later for its own
        self._health.working = True
        self._part("kopf", await self._watch())
        self._on_signals()  # kopf has taken the signals for itself
        await self._until_stopped()

    async def _watch(self) -> Coroutine[Any, Any, None]:
        """kopf, started; the coroutine runs until its end."""
        self._began = asyncio.get_running_loop().time()
        ours = set(asyncio.all_tasks())
        tasks = await kopf.spawn_tasks(
            registry=handlers.registry(self._queue.add, self._cache, self._on_list),
            settings=handlers.settings(),
            standalone=True,
            clusterwide=not self._options.namespaces,
            namespaces=self._options.namespaces,
            ready_flag=self._ready,
            stop_flag=self._stop_kopf,
        )
        until_end: Coroutine[Any, Any, None] = kopf.run_tasks(tasks, ignored=ours)
        return until_end

    def _on_list(self) -> None:
        """kopf lists anew when it has lost its place in a watch; the first time, the first list is just over."""
        if asyncio.get_running_loop().time() > self._began + SETTLING_SECONDS:
            self._missed.set()

    def _part(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Starts a part of the process that lives as long as the process."""
        task = self._parts[name] = asyncio.create_task(work, name=name)
        return task

    async def _until_stopped(self, awaited: asyncio.Task[None] | None = None) -> bool:
        """Whether `awaited` is done; False when the process is to stop. Raises: StoppedError when a part has ended."""
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({stop, *self._parts.values()}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        if self._stop.is_set():
            return False
        for name, task in self._parts.items():
            if task.done() and (task is not awaited or task.exception()):
                why = task.exception() or task.result() or "it ended by itself"
                raise StoppedError(f"{name}: {why}") from task.exception()
        return True

    async def _end(self) -> None:
        """Ends the parts in order: the workers while the Lease still holds, then kopf, then the Lease."""
        self._health.working = False
        self._ready.clear()
        self._queue.stop()
        await _ended(self._parts.get("workers"), GRACE_SECONDS if self._leads else 0.0)
        if self._poster is not None:
            self._poster.stop()
        await _ended(self._parts.get("events"), EVENTS_SECONDS if self._leads else 0.0)
        self._stop_kopf.set()
        await _ended(self._parts.get("kopf"), KOPF_SECONDS)
        if self._election is not None:
            await _ended(self._parts.get("lease"), 0.0)
            await self._election.release()
        for task in self._parts.values():
            await _ended(task, 0.0)
        await asyncio.to_thread(self._traces.end)
        log.info("stopped")

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)

    @property
    def _leads(self) -> bool:
        return self._election is None or self._election.held

    def _may_write(self) -> bool:
        return self._leads

    def _unready(self) -> str | None:
        """A standby that could take over is ready: a rollout waits for it, and it gets no traffic anyway."""
        election = self._election
        if self._session.failure:
            return self._session.failure
        if election is not None and not election.held:
            return None if election.in_touch else "the Lease cannot be read"
        if not self._listed:
            return "the API server has not answered yet"
        return None if self._ready.is_set() else "starting"

    async def _look(self, key: Key) -> float | Priority | None:
        if self._tools is None:
            raise UnavailableError("not logged in yet")
        namespace, name = key
        # Until the worker's next look: what the queue says of a failed one carries them too.
        structlog.contextvars.bind_contextvars(namespace=namespace, run=name)
        with self._traces.look(namespace, name):
            wake = await look(self._tools, namespace, name, self._now())
        log.debug("looked", wake=wake)
        return wake

    def _requested(self, verb: str, kind: str, code: int, seconds: float) -> None:
        self._metrics.request(verb, kind, code, seconds)
        self._traces.request(verb, kind, code, seconds)

    @property
    def _reached(self) -> KubernetesCluster:
        if self._cluster is None:
            raise UnavailableError("not logged in yet")
        return self._cluster

    async def _resync(self) -> None:
        """Every resource is looked at now and then, whatever became of its events."""
        if self._options.resync > SETTLING_SECONDS:
            await asyncio.sleep(SETTLING_SECONDS)
            await self._sync(all_of_them=False)
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._missed.wait(), self._options.resync)
                await asyncio.sleep(FIRST_LIST_SECONDS)  # the rest of kopf's list comes
            self._missed.clear()
            await self._sync()

    async def _first_list(self) -> None:
        """Waits until the API server lists everything: until it is there, and knows the resource and our rights."""
        await self._sync()
        while not self._listed:
            await asyncio.sleep(FIRST_LIST_SECONDS)
            await self._sync()

    async def _sync(self, *, all_of_them: bool = True) -> None:
        """All there is becomes known, and every resource is looked at, or only those of which something was unknown."""
        complete, wakes = True, list[Wake]()
        for namespace in self._options.namespaces or ("",):
            try:
                wakes += await sync(self._reached, self._cache, namespace)
                if not self._listed:  # later the watch brings the Events
                    await tell(self._reached, self._cache, namespace)
            except (UnavailableError, RefusedError) as error:
                complete = False
                log.warning("not listed", error=str(error))
        self._listed = self._listed or complete
        for key, priority in wakes:
            self._queue.add(key, priority)
        for key in self._cache.keys if all_of_them else ():
            self._queue.add(key, Priority.ROUTINE)


async def _ended(task: asyncio.Task[Any] | None, seconds: float) -> None:
    """Waits for a task so long, then cancels it; how it ended matters to nobody any more."""
    if task is None:
        return
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)
    with contextlib.suppress(asyncio.CancelledError, Exception):
        task.exception()
