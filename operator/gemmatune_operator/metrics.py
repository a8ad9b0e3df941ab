"""What the operator counts about itself, for Prometheus.

Counters start at 0 with the process, as Prometheus expects. What concerns a run is counted when the API server has
taken the status that records it: never twice, and not at all where the process dies in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Gauges:
    """Where values that are read at a scrape come from; called from the probes' thread."""

    depth: Callable[[], float]
    oldest: Callable[[], float]
    leader: Callable[[], float]
    phases: Callable[[], Mapping[str, int]]


class _Phases(Collector):
    """Runs by phase, as of their last look."""

    def __init__(self, phases: Callable[[], Mapping[str, int]]) -> None:
        self._phases = phases

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("gemmatune_runs", "Runs by phase, as of their last look.", labels=["phase"])
        for phase, count in self._phases().items():
            family.add_metric([phase], count)
        yield family


class Metrics:
    """One registry per process; labels take their values from the catalog and names.py, never from users.

    Args:
        gauges: what is read at every scrape.
    """

    def __init__(self, gauges: Gauges) -> None:
        self.registry = CollectorRegistry()
        for name, text, value in (
            ("gemmatune_queue_depth", "Runs that wait for a worker.", gauges.depth),
            ("gemmatune_queue_oldest_seconds", "Time that the run at the head has waited by now.", gauges.oldest),
            ("gemmatune_leader", "1 where this process works, 0 on a standby.", gauges.leader),
        ):
            Gauge(name, text, registry=self.registry).set_function(value)
        self.registry.register(_Phases(gauges.phases))
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
        self._events_dropped = Counter(
            "gemmatune_events_dropped_total",
            "Events that were not recorded because too many waited.",
            registry=self.registry,
        )
        self._attempts = Counter(
            "gemmatune_attempts_ended_total", "Attempts that ended, by cause.", ["cause"], registry=self.registry
        )
        self._accelerator_seconds = Counter(
            "gemmatune_accelerator_seconds_total",
            "Training time of ended attempts times their accelerators (cpu: pods), by type and cause of the end.",
            ["type", "outcome"],
            registry=self.registry,
        )

    def event_dropped(self) -> None:
        """An Event was dropped because too many wait."""
        self._events_dropped.inc()

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

    def attempt_ended(self, cause: str, accelerator: str, seconds: float) -> None:
        """An attempt ended; seconds are those of all its accelerators together."""
        self._attempts.labels(cause).inc()
        self._accelerator_seconds.labels(accelerator, cause).inc(seconds)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
