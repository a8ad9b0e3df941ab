"""The operator's process: kopf watches, workers reconcile, a small server answers probes and Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import kopf
import structlog
from aiohttp import web
from kubernetes.aio.client import ApiClient
from prometheus_client import CONTENT_TYPE_LATEST

from gemmatune_api import names
from gemmatune_operator import handlers
from gemmatune_operator.cluster import Failpoint, KubernetesCluster, login
from gemmatune_operator.handlers import Key
from gemmatune_operator.memory import Memory
from gemmatune_operator.metrics import Metrics
from gemmatune_operator.options import Options
from gemmatune_operator.ports import UnavailableError
from gemmatune_operator.reconcile import reconcile
from gemmatune_operator.workqueue import Priority, WorkQueue

STUCK_SECONDS = 300.0
"""A look that takes longer than this makes the process count as dead."""

log = structlog.get_logger(__name__)


class Process:
    """One operator, from login to the end.

    Args:
        options: what it was told.
        failpoint: called before and after each write (tests end the process there).
    """

    def __init__(self, options: Options, failpoint: Failpoint = lambda point: None) -> None:
        self._options = options
        self._failpoint = failpoint
        self._memory = Memory()
        self._ready = asyncio.Event()
        self._metrics = Metrics(lambda: self._queue.depth)
        self._queue: WorkQueue[Key] = WorkQueue(
            self._look, workers=options.workers, picked=self._metrics.picked, worked=self._metrics.worked
        )
        self._cluster: KubernetesCluster | None = None

    async def run(self) -> None:
        """Runs until SIGTERM or SIGINT; looks under way are finished."""
        async with ApiClient(await login()) as client, self._server():
            self._cluster = KubernetesCluster(client, self._metrics.request, self._failpoint)
            work = asyncio.create_task(self._queue.run(), name="workers")
            resync = asyncio.create_task(self._resync(), name="resync")
            try:
                await kopf.operator(
                    registry=handlers.registry(self._queue.add),
                    settings=handlers.settings(),
                    standalone=True,
                    clusterwide=not self._options.namespaces,
                    namespaces=self._options.namespaces,
                    ready_flag=self._ready,
                )
            finally:
                self._ready.clear()
                resync.cancel()
                self._queue.stop()
                await asyncio.gather(work, resync, return_exceptions=True)
                log.info("stopped")

    async def _look(self, key: Key) -> float | None:
        namespace, name = key
        with structlog.contextvars.bound_contextvars(namespace=namespace, run=name):
            wake = await reconcile(
                self._reached, namespace, name, datetime.now(UTC), self._options.settings, self._memory
            )
            log.debug("looked", wake=wake)
            return wake

    @property
    def _reached(self) -> KubernetesCluster:
        if self._cluster is None:
            raise UnavailableError("not logged in yet")
        return self._cluster

    async def _resync(self) -> None:
        """Every resource is looked at now and then, whatever became of its events."""
        while True:
            await asyncio.sleep(self._options.resync)
            for namespace in self._options.namespaces or ("",):
                try:
                    found = await self._reached.list_objects(names.KIND, namespace, {})
                except UnavailableError as error:
                    log.warning("resync failed", error=str(error))
                    continue
                for obj in found:
                    self._queue.add((obj["metadata"]["namespace"], obj["metadata"]["name"]), Priority.ROUTINE)

    # --- probes and metrics ---

    @contextlib.asynccontextmanager
    async def _server(self) -> AsyncIterator[None]:
        app = web.Application()
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._scrape),
            ]
        )
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, self._options.bind, self._options.port)
        await site.start()
        log.info("serving probes and metrics", addresses=[list(address)[:2] for address in runner.addresses])
        try:
            yield
        finally:
            await runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        oldest = self._queue.oldest_work
        if oldest > STUCK_SECONDS:
            return web.Response(status=503, text=f"a look has taken {oldest:.0f} s\n")
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n") if self._ready.is_set() else web.Response(status=503, text="starting\n")

    async def _scrape(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def set_up_logs(style: str) -> None:
    """Structured logs on standard error: JSON lines, or coloured text with style console."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    last: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if style == "console" else structlog.processors.JSONRenderer()
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
