"""The chart's Grafana dashboard, from a table of panels: `make generate` writes it, `make lint` checks it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

PATH = "charts/gemmatune/files/dashboard.json"
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS, _HEIGHT = 24, 8
_HERE = 'run_namespace=~"$run_namespace"'
_RUN = f'{_HERE},run=~"$run"'


@dataclass(frozen=True, slots=True)
class Panel:
    """A graph: its title, what it says to whoever looks, and its queries with the names of their lines."""

    title: str
    description: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 12
    stacked: bool = False


ROWS: dict[str, tuple[Panel, ...]] = {
    "Runs": (
        Panel(
            "Runs by phase",
            "Every run that there is, by the phase of its status.",
            (("sum by (phase) (gemmatune_runs) > 0", "{{phase}}"),),
            stacked=True,
        ),
        Panel(
            "Waiting runs",
            "How long runs have waited by now: for preparation, a queue, nodes, or their turn.",
            ((f"gemmatune_run_pending_seconds{{{_RUN}}}", "{{run_namespace}}/{{run}}"),),
            unit="s",
        ),
        Panel(
            "Attempts by cause of their end",
            "Attempts that ended in the hour before; Completed is the one good end.",
            (("sum by (cause) (increase(gemmatune_attempts_ended_total[1h])) > 0", "{{cause}}"),),
            stacked=True,
        ),
        Panel(
            "Retry budgets",
            "The share of limits.maxRetries that each run has used up; at 100% the next counted end fails the run.",
            ((f"gemmatune_run_retry_budget_used_ratio{{{_RUN}}}", "{{run_namespace}}/{{run}}"),),
            unit="percentunit",
        ),
    ),
    "Accelerators and cost": (
        Panel(
            "Accelerators in use",
            "GPUs and TPU chips that train now (cpu: pods).",
            (
                (
                    f"sum by (run_namespace, type) (gemmatune_accelerators_in_use{{{_HERE}}})",
                    "{{run_namespace}} {{type}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Accelerator hours by namespace",
            "Training time of the attempts that ended in the chosen time, times their accelerators.",
            (
                (
                    "sum by (run_namespace) "
                    f"(increase(gemmatune_namespace_accelerator_seconds_total{{{_HERE}}}[$__range])) / 3600",
                    "{{run_namespace}}",
                ),
            ),
            unit="h",
            kind="bargauge",
        ),
        Panel(
            "Cost an hour",
            "What the accelerators that train now cost an hour, by the installation's price table.",
            ((f"sum by (run_namespace) (gemmatune_cost_per_hour{{{_HERE}}})", "{{run_namespace}}"),),
            stacked=True,
        ),
        Panel(
            "Cost by namespace",
            "What the attempts that ended in the chosen time have cost, by the installation's price table.",
            (
                (
                    f"sum by (run_namespace) (increase(gemmatune_namespace_cost_total{{{_HERE}}}[$__range]))",
                    "{{run_namespace}}",
                ),
            ),
            kind="bargauge",
        ),
    ),
    "Training": (
        Panel(
            "Loss",
            "Loss of the last logged step, and of the last evaluation.",
            (
                (f"gemmatune_run_loss{{{_RUN}}}", "{{run_namespace}}/{{run}}"),
                (f"gemmatune_run_eval_loss{{{_RUN}}}", "{{run_namespace}}/{{run}} evaluation"),
            ),
        ),
        Panel(
            "Tokens a second",
            "Tokens that each run trains a second.",
            ((f"gemmatune_run_tokens_per_second{{{_RUN}}}", "{{run_namespace}}/{{run}}"),),
        ),
        Panel(
            "Progress",
            "The share of its steps that each run has done.",
            ((f"gemmatune_run_step{{{_RUN}}} / gemmatune_run_total_steps{{{_RUN}}}", "{{run_namespace}}/{{run}}"),),
            unit="percentunit",
        ),
        Panel(
            "Last sign of life",
            "Time since each trainer's heartbeat; one that grows without end is a stall.",
            ((f"gemmatune_run_heartbeat_age_seconds{{{_RUN}}}", "{{run_namespace}}/{{run}}"),),
            unit="s",
        ),
    ),
    "Operator": (
        Panel(
            "Age of the operator's queue",
            "How long the run at the head of the operator's queue has waited for a worker.",
            (("max(gemmatune_queue_oldest_seconds)", "oldest"),),
            unit="s",
            width=8,
        ),
        Panel(
            "Looks",
            "Reconciliations a second by outcome.",
            (("sum by (outcome) (rate(gemmatune_reconciles_total[$__rate_interval]))", "{{outcome}}"),),
            unit="ops",
            width=8,
        ),
        Panel(
            "Requests to the API server",
            "A second, by code; 0 is no answer.",
            (("sum by (code) (rate(gemmatune_api_requests_total[$__rate_interval]))", "{{code}}"),),
            unit="reqps",
            width=8,
        ),
    ),
}


def document() -> str:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        panels.append(_place({"type": "row", "title": title, "collapsed": False}, len(panels), (0, top, _COLUMNS, 1)))
        left, top = 0, top + 1
        for panel in row:
            if left + panel.width > _COLUMNS:
                left, top = 0, top + _HEIGHT
            panels.append(_place(_graph(panel), len(panels), (left, top, panel.width, _HEIGHT)))
            left += panel.width
        top += _HEIGHT
    dashboard = {
        "title": "gemmatune",
        "uid": "gemmatune",
        "tags": ["gemmatune"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [*_variables()]},
        "panels": panels,
    }
    return json.dumps(dashboard, indent=1) + "\n"


def queries() -> list[tuple[str, str]]:
    """Title and query of every line of every panel."""
    return [(panel.title, query) for row in ROWS.values() for panel in row for query, _ in panel.queries]


def _place(panel: dict[str, Any], number: int, place: tuple[int, int, int, int]) -> dict[str, Any]:
    return {"id": number + 1, "gridPos": dict(zip("xywh", place, strict=True)), **panel}


def _graph(panel: Panel) -> dict[str, Any]:
    instant = panel.kind == "bargauge"
    options: dict[str, Any] = (
        {"orientation": "horizontal", "reduceOptions": {"calcs": ["lastNotNull"]}}
        if instant
        else {"legend": {"displayMode": "table", "placement": "right", "calcs": ["lastNotNull"]}}
    )
    custom = {"stacking": {"mode": "normal"}, "fillOpacity": 40} if panel.stacked else {"fillOpacity": 5}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": {} if instant else custom},
            "overrides": [],
        },
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "expr": query,
                "legendFormat": legend,
                "instant": instant,
                "range": not instant,
            }
            for number, (query, legend) in enumerate(panel.queries)
        ],
    }


def _variables() -> list[dict[str, Any]]:
    many = {"type": "query", "datasource": _SOURCE, "includeAll": True, "multi": True, "allValue": ".*", "refresh": 2}
    chosen = {"current": {"text": ["All"], "value": ["$__all"]}}
    queries = {
        "run_namespace": ("Namespace", "label_values(gemmatune_cost_per_hour, run_namespace)"),
        "run": ("Run", f"label_values(gemmatune_run_stalls_total{{{_HERE}}}, run)"),
    }
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return [
        source,
        *({"name": name, "label": label, "query": query, **many, **chosen} for name, (label, query) in queries.items()),
    ]
