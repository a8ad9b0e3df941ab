"""What the operator counts about itself, for Prometheus.

Counters start at 0 with the process, as Prometheus expects. What concerns a run is counted when the API server has
taken the status that records it: never twice, and not at all where the process dies in between.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gemmatune_operator.board import RUNS, Board, Card, Key, numbers
from gemmatune_operator.diagnose import ANSWERS
from gemmatune_operator.policies.deleted import DELETED

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Gauges:
    """Where values that are read at a scrape come from; called from the probes' thread."""

    depth: Callable[[], float]
    oldest: Callable[[], float]
    leader: Callable[[], float]
    phases: Callable[[], Mapping[str, int]]
    board: Board
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


class _Phases(Collector):
    """Runs by phase, as of their last look."""

    def __init__(self, phases: Callable[[], Mapping[str, int]]) -> None:
        self._phases = phases

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("gemmatune_runs", "Runs by phase, as of their last look.", labels=["phase"])
        for phase, count in self._phases().items():
            family.add_metric([phase], count)
        yield family


RUN_GAUGES = {
    "step": "Optimizer steps that the run has done.",
    "total_steps": "Optimizer steps of the run.",
    "loss": "Loss of the last logged step.",
    "eval_loss": "Loss of the last evaluation.",
    "tokens_per_second": "Tokens that are trained a second, while the run trains.",
    "cost": "What the run has cost by the price table, as of its last change.",
    "retry_budget_used_ratio": "Share of limits.maxRetries that is used up.",
    "pending_seconds": "How long the run has waited: since its creation, preparation, last attempt, or suspension.",
    "heartbeat_age_seconds": "Time since the trainer's last sign of life, while the run trains.",
}
"""Numbers of a single run by namespace and name."""
RUN_COUNTERS = {"stalls": "Attempts of the run that stalled; for an hour after its end too, where there are any."}
NAMESPACE = "run_namespace"
"""Not `namespace`: a Prometheus in the cluster gives that name to the place of the operator's own pod."""
_RUN = (NAMESPACE, "run")


class _Runs(Collector):
    """Runs that have not ended, and the accelerators that train now by namespace; made at each scrape."""

    def __init__(self, board: Board, now: Callable[[], datetime]) -> None:
        self._board, self._now = board, now

    def collect(self) -> Iterator[Metric]:
        now = self._now()
        cards = self._board.cards(now)
        yield from self._namespaces(cards.items())
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
            name: GaugeMetricFamily(f"gemmatune_run_{name}", text, labels=_RUN) for name, text in RUN_GAUGES.items()
        }
        for name, text in RUN_COUNTERS.items():
            families[name] = CounterMetricFamily(f"gemmatune_run_{name}", text, labels=_RUN)
        for key, card in list(cards.items())[:RUNS]:
            for name, value in numbers(card, now).items():
                families[name].add_metric(key, value)
        yield from families.values()

    def _namespaces(self, cards: Iterable[tuple[Key, Card]]) -> Iterator[Metric]:
        used: Counts[tuple[str, str]] = Counts()
        prices = defaultdict[str, float](float, dict.fromkeys(self._board.namespaces, 0.0))
        for (name, _), card in cards:
            namespace = self._board.namespace(name)
            used[namespace, card.accelerator] += card.accelerators
            prices[namespace] += card.price
        text = "Accelerators that train now (cpu: pods), by namespace and type."
        in_use = GaugeMetricFamily("gemmatune_accelerators_in_use", text, labels=(NAMESPACE, "type"))
        for place, count in used.items():
            in_use.add_metric(place, count)
        text = "What the accelerators that train now cost an hour by the price table, by namespace."
        costs = GaugeMetricFamily("gemmatune_cost_per_hour", text, labels=(NAMESPACE,))
        for namespace, price in prices.items():
            costs.add_metric((namespace,), price)
        yield from (in_use, costs)


class Metrics:
    """One registry per process; labels come from the catalog and names.py, and from a bounded number of resources.

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
        self._board = gauges.board
        self.registry.register(_Runs(gauges.board, gauges.now))
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
        self._count_attempts()

    def _count_attempts(self) -> None:
        self._attempts = Counter(
            "gemmatune_attempts_ended_total",
            f"Attempts that ended, by cause ({DELETED}: with their run).",
            ["cause"],
            registry=self.registry,
        )
        self._accelerator_seconds = Counter(
            "gemmatune_accelerator_seconds_total",
            "Training time of ended attempts times their accelerators (cpu: pods), by type and cause of the end.",
            ["type", "outcome"],
            registry=self.registry,
        )
        for cause in (*ANSWERS, DELETED):  # from 0 on: a first stall is a growth
            self._attempts.labels(str(cause))
        self._namespace_seconds = Counter(
            "gemmatune_namespace_accelerator_seconds_total",
            "Training time of ended attempts times their accelerators, by namespace of the run.",
            [NAMESPACE],
            registry=self.registry,
        )
        self._namespace_cost = Counter(
            "gemmatune_namespace_cost_total",
            "What ended attempts have cost by the price table, by namespace.",
            [NAMESPACE],
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

    def attempt_ended(self, namespace: str, cause: str, accelerator: str, seconds: float, cost: float) -> None:
        """An attempt ended; seconds and cost are those of all its accelerators together."""
        self._attempts.labels(cause).inc()
        self._accelerator_seconds.labels(accelerator, cause).inc(seconds)
        place = self._board.namespace(namespace)
        self._namespace_seconds.labels(place).inc(seconds)
        self._namespace_cost.labels(place).inc(cost)

    def text(self) -> bytes:
        """Prometheus' text format."""
        for namespace in self._board.namespaces:  # from 0 on: the first attempt is a growth
            self._namespace_seconds.labels(namespace)
            self._namespace_cost.labels(namespace)
        return generate_latest(self.registry)
