"""The alert rules by promtool: they are valid, come when they must, and name only what the operator exports."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from gemmatune_operator.board import Board
from gemmatune_operator.metrics import Gauges, Metrics
from tests.support import chart
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
