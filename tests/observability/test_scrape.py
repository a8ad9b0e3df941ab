"""The real Prometheus scrapes the live operator: every query of the dashboard gives something, and an alert fires.

A collector gets the traces of the same operator.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gemmatune_operator.conditions import rfc3339
from tests.support.collector import Collector, Span, collecting
from tests.support.controlplane import ControlPlane
from tests.support.operator_process import OperatorProcess
from tests.support.prometheus import Prometheus, program
from tests.support.servers import LOOPBACK
from tests.support.stage import Stage
from tests.support.wait import wait_for
from tools import dashboard

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ALERTS = Path(__file__).parents[2] / "charts/gemmatune/files/alerts.yaml"


def filled(query: str, namespace: str) -> str:
    """A query as Grafana would send it."""
    values = {"$__range": "10m", "$__rate_interval": "10s", "$run_namespace": namespace, "$run": ".*"}
    for name, value in values.items():
        query = query.replace(name, value)
    assert "$" not in query
    return query


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Takes the operator's traces."""
    with collecting() as found:
        yield found


def check_traces(spans: list[Span], namespace: str) -> None:
    """Of both runs there are looks, with the creations of their Jobs in them."""
    looks = {span.id: span.attributes for span in spans if span.name == "look"}
    assert {look["k8s.namespace.name"] for look in looks.values()} == {namespace}
    created = [looks[span.parent]["gemmatune.run"] for span in spans if span.name == "create Job"]
    assert set(created) == {"trains", "fails"}
    assert created.count("trains") == 2, "a preparation and an attempt"
    assert not any(span.failed for span in spans if span.name == "look")


@pytest.mark.timeout(300)
def test_every_panel_shows_something(crd: ControlPlane, namespace: str, tmp_path: Path, collector: Collector) -> None:
    program("prometheus")
    (tmp_path / "prices.yaml").write_text("nvidia-l4: 3600\n")  # one a second: what is short costs something, too
    operator = OperatorProcess(
        crd.operator_kubeconfig,
        tmp_path / "operator.log",
        namespaces=[namespace],
        arguments=["--prices", str(tmp_path / "prices.yaml"), "--traces-endpoint", collector.url],
    )
    try:
        trains, fails = (Stage(crd.api, namespace, name) for name in ("trains", "fails"))
        trains.create()
        fails.create(limits={"maxRetries": 2})
        with Prometheus(tmp_path / "prometheus", f"{LOOPBACK}:{operator.ready().port}", ALERTS) as prometheus:
            for stage in (trains, fails):
                stage.to_training()
            now = rfc3339(datetime.now(UTC))
            numbers = {"step": 40, "totalSteps": 100, "loss": 1.5, "evalLoss": 1.75, "tokensPerSecond": 5000.0}
            trains.trainer(progress={**numbers, "stepText": "40/100", "heartbeat": now})
            wait_for(lambda: prometheus.query("sum(gemmatune_accelerators_in_use) == 2"), "both runs in a scrape")
            fails.ends("t1", 1, "out of luck")
            fails.wait_phase("Retrying")

            for title, query in dashboard.queries():
                text = filled(query, namespace)
                wait_for(lambda text=text: prometheus.query(text), f"panel {title}: {text}", interval=0.5)
            hours = f'gemmatune_namespace_accelerator_seconds_total{{run_namespace="{namespace}"}}'
            cost = f'gemmatune_namespace_cost_total{{run_namespace="{namespace}"}}'
            values = [float(prometheus.query(name)[0]["value"][1]) for name in (hours, cost)]
            assert values[1] == pytest.approx(values[0], abs=0.1), "each second of the one accelerator costs 1"
            (speed,) = prometheus.query("gemmatune_run_tokens_per_second")
            assert (speed["metric"]["run"], speed["value"][1]) == ("trains", "5000")

            def firing() -> bool:
                alerts = prometheus.get("alerts")["alerts"]
                return any(item["labels"].get("run") == "fails" and item["state"] == "firing" for item in alerts)

            wait_for(firing, "the alert of half a budget")
            groups = prometheus.get("rules")["groups"]
            assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
            scrape = operator.metrics()
            asked = re.findall(r"gemmatune_[a-z_]+", ALERTS.read_text())
            assert {name for name in asked if name not in scrape} == set()

            crd.kubectl("delete", "gft", "--all", "-n", namespace)
            wait_for(lambda: "gemmatune_run_loss{" not in operator.metrics(), "the series to go with the resource")
    finally:
        assert operator.stop() == 0
    check_traces(collector.spans, namespace)
