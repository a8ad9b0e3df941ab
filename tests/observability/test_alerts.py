"""The alert rules by promtool: they are valid, come when they must, and name only what the operator exports."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from gemmatune_api.names import Phase, Reason
from gemmatune_operator.board import Board
from gemmatune_operator.metrics import Gauges, Metrics
from tests.support import chart
from tests.support.play import NAME, NAMESPACE, Play, spec
from tests.support.prometheus import program
from tools import dashboard

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "charts/gemmatune/files/alerts.yaml"


def promtool(*arguments: str) -> None:
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_valid() -> None:
    promtool("check", "rules", str(ALERTS))


def test_alerts_come_when_they_must(tmp_path: Path) -> None:
    text = Path(__file__).with_name("alerts.test.yaml").read_text()
    cases = yaml.safe_load(text)
    rules = {rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}
    tested = {item["alertname"] for case in cases["tests"] for item in case["alert_rule_test"] if item["exp_alerts"]}
    assert rules == tested, "every alert is seen to come"
    (tmp_path / "test.yaml").write_text(text.replace("[ALERTS]", f"[{ALERTS}]"))
    promtool("test", "rules", str(tmp_path / "test.yaml"))


class Watched(Play):
    """A run whose operator has it from the watches, and a scrape of that operator."""

    watching = True

    def scrape(self, name: str) -> str:
        """The run's value of a metric; `_`, as promtool writes it, where there is none."""
        self.tell()
        assert self.tools.cache is not None
        board = Board(self.tools.cache.documents)
        text = Metrics(Gauges(lambda: 0.0, lambda: 0.0, lambda: 1.0, dict, board, lambda: self.now)).text().decode()
        (found,) = re.findall(rf'^{name}{{run="{NAME}",run_namespace="{NAMESPACE}"}} (.*)', text, re.MULTILINE) or "_"
        return str(found)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_stall_is_told_also_where_it_ends_the_run(retries: int, tmp_path: Path) -> None:
    """What the operator really shows, minute by minute, brings the alert; it stays for an hour."""
    play = Watched(spec(limits={"maxRetries": retries}))
    play.prepared()
    seen: list[str] = []
    stalls: list[int] = []

    def minute() -> None:
        play.wait(60)
        seen.append(play.scrape("gemmatune_run_stalls_total"))

    for number in range(1, retries + 2):
        play.runs(f"{NAME}-t{number}")
        play.steps(5 * number)
        while play.status.attempts[number - 1].end_time is None:
            minute()
        stalls.append(len(seen) - 1)
        for _ in range(70):
            minute()
    assert (play.status.phase, play.status.reason) == (Phase.FAILED, Reason.STALLED)
    assert seen[-1] == "_", "the series of an ended run goes"

    series = f'gemmatune_run_stalls_total{{run_namespace="{NAMESPACE}",run="{NAME}"}}'
    query = f'count(ALERTS{{alertname="GemmatuneRunStalled",run="{NAME}"}})'
    case = {
        "interval": "1m",
        "input_series": [{"series": series, "values": " ".join(seen)}],
        "promql_expr_test": [
            {
                "expr": query,
                "eval_time": f"{stall + after}m",
                "exp_samples": [{"labels": "{}", "value": 1}] * (0 <= after < 60),
            }
            for stall in stalls
            for after in (-1, 0, 58, 65)
        ],
    }
    test = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [case]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    promtool("test", "rules", str(tmp_path / "test.yaml"))


def test_another_installation_does_not_hide_that_this_one_is_away(tmp_path: Path) -> None:
    (rule,) = [item for item in chart.render({"monitoring.alerts": True}) if item["kind"] == "PrometheusRule"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    works, away = "1x30", "1x3 0x30"
    own = 'namespace="gemmatune-system",pod="gemmatune-operator-5d8f7c9b6d-x2x4z"'
    cases = []
    for other in (
        'namespace="team",pod="gemmatune-operator-a-b"',
        'namespace="gemmatune-system",pod="b-gemmatune-operator-a-b"',
    ):
        for mine, its, comes in ((away, works, True), (works, away, False)):
            series = [(own, mine), (other, its)]
            expected = {"exp_labels": {"severity": "critical"}, "exp_annotations": _AWAY}
            cases.append(
                {
                    "interval": "1m",
                    "input_series": [
                        {"series": f"gemmatune_leader{{{at}}}", "values": values} for at, values in series
                    ],
                    "alert_rule_test": [
                        {"alertname": "GemmatuneOperatorAway", "eval_time": "15m", "exp_alerts": [expected] * comes}
                    ],
                }
            )
    test = {"rule_files": [str(tmp_path / "rules.yaml")], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    promtool("test", "rules", str(tmp_path / "test.yaml"))


def test_the_pod_of_a_long_release_is_seen() -> None:
    """The API server cuts what it makes a pod's name from at 58 characters, and adds five of its own."""
    release = "machine-learning-platform-production"
    rendered = chart.render({"monitoring.alerts": True}, release=release)
    (rule,) = [item for item in rendered if item["kind"] == "PrometheusRule"]
    (deployment,) = [item for item in rendered if item["kind"] == "Deployment"]
    pod = f"{deployment['metadata']['name']}-5d8f7c9b6d-"[:58] + "x2x4z"
    found = re.search(r'pod=~"([^"]+)"', yaml.safe_dump(rule["spec"], width=10_000))
    assert found is not None
    assert re.fullmatch(found[1], pod)


_AWAY = {
    "summary": "No gemmatune operator works: gemmatune-operator in namespace gemmatune-system",
    "description": "Training goes on, but nothing is started, retried or diagnosed: "
    "look at its Deployment and its log.",
}


def test_they_name_metrics_that_there_are() -> None:
    nothing = Gauges(lambda: 0.0, lambda: 0.0, lambda: 0.0, dict, Board(list))
    families = Metrics(nothing).registry.collect()
    names = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    rules = [rule["expr"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    asked = set(re.findall(r"gemmatune_[a-z_]+", " ".join([*rules, *(query for _, query in dashboard.queries())])))
    assert asked - names == set()
