"""What the operator counts about itself, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """One registry per process."""

    def __init__(self, depth: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "gemmatune_api_requests_total",
            "Requests to the API server by verb, kind and HTTP code (0: no answer).",
            ["verb", "kind", "code"],
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "gemmatune_api_request_seconds",
            "Duration of requests to the API server.",
            ["verb"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._looks = Counter(
            "gemmatune_reconciles_total", "Reconciliations by outcome.", ["outcome"], registry=self.registry
        )
        self._look_seconds = Histogram(
            "gemmatune_reconcile_seconds", "Duration of a reconciliation.", buckets=_SECONDS, registry=self.registry
        )
        self._queue_seconds = Histogram(
            "gemmatune_queue_wait_seconds",
            "Time that a run has waited for a worker.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        queue = Gauge("gemmatune_queue_depth", "Runs that wait for a worker.", registry=self.registry)
        queue.set_function(depth)

    def request(self, verb: str, kind: str, code: int, seconds: float) -> None:
        """A request was answered, or not (code 0)."""
        self._requests.labels(verb, kind, str(code)).inc()
        self._request_seconds.labels(verb).observe(seconds)

    def picked(self, waited: float) -> None:
        """A run was taken from the queue."""
        self._queue_seconds.observe(waited)

    def worked(self, seconds: float, failed: bool) -> None:
        """A reconciliation ended."""
        self._looks.labels("error" if failed else "ok").inc()
        self._look_seconds.observe(seconds)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
