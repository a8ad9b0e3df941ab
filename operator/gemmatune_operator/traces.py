"""Traces for a collector of OpenTelemetry: one for each look at a run, with its requests to the API server in it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

SERVICE = "gemmatune-operator"
SECONDS = 2.0
"""How long a collector has to answer, and what is left to be told at the end has to get there."""


class Traces:
    """Where looks and requests are told; this one tells nobody, and loads nothing."""

    @contextmanager
    def look(self, namespace: str, run: str) -> Iterator[None]:
        """A look at a run, as long as the context; an exception that leaves it is told too."""
        yield

    def request(self, verb: str, kind: str, code: int, seconds: float) -> None:
        """A request that has just ended, with its HTTP code (0: no answer) and duration."""

    def end(self) -> None:
        """Sends what waits; blocks for `SECONDS` at most."""


class OpenTelemetry(Traces):
    """Sends them by OTLP over HTTP, in batches, from a thread of its own; what a collector does not take is lost.

    Args:
        endpoint: URL that takes traces, such as http://collector:4318/v1/traces.
        share: of all looks so many are told, 0 to 1.
    """

    def __init__(self, endpoint: str, share: float) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource.create({"service.name": SERVICE, "service.version": _version()}),
            shutdown_on_exit=False,  # it would wait for a collector that is away
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=SECONDS)))
        self._tracer = self._provider.get_tracer(__name__)

    @contextmanager
    def look(self, namespace: str, run: str) -> Iterator[None]:
        """A look at a run, as long as the context; an exception that leaves it is told too."""
        where = {"k8s.namespace.name": namespace, "gemmatune.run": run}
        with self._tracer.start_as_current_span("look", attributes=where):
            yield

    def request(self, verb: str, kind: str, code: int, seconds: float) -> None:
        """A request that has just ended; it belongs to the look under way, where there is one."""
        from opentelemetry.trace import SpanKind, StatusCode

        now = time.time_ns()
        told: dict[str, Any] = {"gemmatune.verb": verb, "gemmatune.kind": kind, "http.response.status_code": code}
        span = self._tracer.start_span(
            f"{verb} {kind}", kind=SpanKind.CLIENT, attributes=told, start_time=now - int(seconds * 1e9)
        )
        if code == 0 or code >= 400:
            span.set_status(StatusCode.ERROR)
        span.end(now)

    def end(self) -> None:
        """Sends what waits; blocks for `SECONDS` at most."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(SECONDS)


def to(endpoint: str, share: float) -> Traces:
    """The traces for an endpoint; none where it is empty."""
    return OpenTelemetry(endpoint, share) if endpoint else Traces()


def _version() -> str:
    try:
        return version("gemmatune")
    except PackageNotFoundError:  # the image has the code, not the package
        return ""
