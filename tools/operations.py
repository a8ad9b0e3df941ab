"""docs/operations.md: the tables from names.py and the operator's own constants, the text from operations.md.j2."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import jinja2
import yaml

from gemmatune_api import defaults, names
from gemmatune_api.docgen import table
from gemmatune_api.names import (
    CONDITIONS,
    EXIT_REASONS,
    JOB_SUFFIX,
    PHASES,
    REASONS,
    ConditionType,
    ExitCode,
    Phase,
    Reason,
    Role,
)
from gemmatune_operator.board import NAMESPACES, RUNS, Board
from gemmatune_operator.diagnose import ANSWERS, FREE_ON_SPOT, Answer
from gemmatune_operator.metrics import Gauges, Metrics
from gemmatune_operator.policies import retry
from gemmatune_operator.policies.cleanup import OVERDUE_SECONDS
from gemmatune_operator.policies.deleted import DELETED
from gemmatune_operator.policies.prepare import RETRIES

ALERTS = Path(__file__).parents[1] / "charts/gemmatune/files/alerts.yaml"
TEMPLATE = Path(__file__).with_name("operations.md.j2")
HEADER = "<!-- Generated from names.py and tools/operations.md.j2 by `make generate`; do not edit. -->"

ATTEMPT = "attempts[]"
"""The list of attempts in the status, where the cause of an attempt's end stands next to the conditions."""


def _place(kind: ConditionType, status: bool, phase: Phase) -> str:
    return f"{kind}={status} ({phase})"


_REFUSED = _place(ConditionType.ACCEPTED, False, Phase.PENDING)
_PREPARING = _place(ConditionType.PREPARED, False, Phase.PREPARING)
_PROVISIONING = _place(ConditionType.PROVISIONED, False, Phase.PROVISIONING)
_MERGING = _place(ConditionType.PROVISIONED, False, Phase.MERGING)
_FAILED = _place(ConditionType.FAILED, True, Phase.FAILED)
_TRAINING = _place(ConditionType.TRAINING, True, Phase.TRAINING)
_STOPPED = (_TRAINING, ATTEMPT, _FAILED)
"""Of an attempt that the operator stops: while the trainer saves its checkpoint, and then."""

FOLLOWS = {
    Answer.SUCCEED: "the run ends",
    Answer.FREE: "a new attempt, not counted",
    Answer.COUNTED: "a new attempt, counted",
    Answer.DOWNSHIFT: "a new attempt with a smaller micro-batch or checkpointing",
    Answer.FAIL: "the run ends",
    Answer.WAIT: "it waits, and goes on by itself",
}


def document() -> str:
    """The handbook."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        header=HEADER,
        names=names,
        Phase=Phase,
        Condition=ConditionType,
        Reason=Reason,
        DELETED=DELETED,
        Exit=ExitCode,
        job=lambda role: f"NAME-{JOB_SUFFIX[role]}N",
        Role=Role,
        limits=defaults.LIMITS,
        fallback=defaults.FALLBACK,
        first_step_minutes=defaults.FIRST_STEP_STALL_SECONDS // 60,
        overdue_seconds=int(OVERDUE_SECONDS),
        retry=retry,
        preparations=RETRIES,
        free_on_spot=" and ".join(f"`{reason.value}`" for reason in Reason if reason in FREE_ON_SPOT),
        phases=_lines(("Phase", "Means"), ((f"`{phase.value}`", text) for phase, text in PHASES.items())),
        conditions=_lines(
            ("Condition", "True means"), ((f"`{kind.value}`", text) for kind, text in CONDITIONS.items())
        ),
        causes=_reasons(CAUSES),
        waits=_reasons(WAITS),
        refusals=_reasons(REFUSALS),
        progress=_reasons(PROGRESS),
        exits=_lines(("Code", "Reason", "Means", "What follows"), _exits()),
        alerts=_lines(("Alert", "Comes when", "What to do"), _alerts()),
        runs=RUNS,
        namespaces=NAMESPACES,
        metrics=_lines(("Metric", "Kind", "Means"), sorted(_metrics())),
    )


CAUSES = [reason for reason in Reason if ANSWERS.get(reason) not in (None, Answer.WAIT, Answer.SUCCEED)]
"""What ends an attempt or a preparation."""
PROGRESS = [reason for reason in Reason if not REASONS[reason].remedy or reason is Reason.SUSPENDED]
WAITS = [reason for reason in Reason if ANSWERS.get(reason) is Answer.WAIT and reason not in PROGRESS]
"""What an attempt or a preparation waits for."""
REFUSALS = [reason for reason in Reason if reason not in (*CAUSES, *PROGRESS, *WAITS)]

_SHOWN: dict[Reason, tuple[str, ...]] = {
    Reason.OUTPUT_IN_USE: (_REFUSED, ATTEMPT, _FAILED),
    Reason.CAPACITY_UNAVAILABLE: (_PREPARING, _PROVISIONING, _MERGING, ATTEMPT),
    Reason.INVALID_SPEC: (_REFUSED, _FAILED),
    Reason.NOT_SUPPORTED_YET: (_FAILED,),
    Reason.DOES_NOT_FIT: (_FAILED,),
    Reason.INVALID_DEFAULTS: (_REFUSED,),
    Reason.NAME_CONFLICT: (_PREPARING, _PROVISIONING, _MERGING),
    Reason.WAITING_FOR_CLEANUP: (_PREPARING, _PROVISIONING, _MERGING),
    Reason.WAITING_FOR_ACCESS: (_PREPARING,),
    Reason.MERGE_FAILED: (_FAILED,),
    Reason.PREPARING: (_PREPARING,),
    Reason.PROVISIONING: (_PROVISIONING,),
    Reason.RUNNING: (_TRAINING,),
    Reason.DEADLINE_EXCEEDED: _STOPPED,
    Reason.BUDGET_EXCEEDED: _STOPPED,
    Reason.EVICTED_BY_QUEUE: _STOPPED,
    Reason.QUEUED: (_PREPARING, _place(ConditionType.PROVISIONED, False, Phase.QUEUED)),
    Reason.RETRYING: (_PREPARING, _place(ConditionType.TRAINING, False, Phase.RETRYING), _MERGING),
    Reason.MERGING: (_place(ConditionType.SUCCEEDED, False, Phase.MERGING),),
    Reason.SUSPENDING: (_place(ConditionType.SUSPENDED, False, Phase.SUSPENDING),),
    Reason.SUSPENDED: (_place(ConditionType.SUSPENDED, True, Phase.SUSPENDED), ATTEMPT),
    Reason.COMPLETED: (_place(ConditionType.SUCCEEDED, True, Phase.SUCCEEDED), ATTEMPT),
}


def shown(reason: Reason) -> tuple[str, ...]:
    """Where a reason stands: each condition by which it decides a phase, and `attempts[]`; empty: it decides none.

    The tests compare it with what the reconcile loop wrote in the scenarios.
    """
    usual = (ATTEMPT, _FAILED) if reason in CAUSES else (_PREPARING, _PROVISIONING, _MERGING) if reason in WAITS else ()
    return _SHOWN.get(reason, usual)


def _reasons(reasons: Iterable[Reason]) -> str:
    return _lines(
        ("Reason", "Means", "Shows as", "What follows", "What to do"),
        (
            (
                f"`{reason.value}`",
                REASONS[reason].meaning,
                ", ".join(f"`{place}`" for place in shown(reason)) or "no phase of its own",
                _follows(reason),
                REASONS[reason].remedy,
            )
            for reason in reasons
        ),
    )


def _follows(reason: Reason) -> str:
    if reason in ANSWERS:
        return FOLLOWS[ANSWERS[reason]]
    if _FAILED in shown(reason):
        return "the run ends, until a correction"
    return "it is tried again by itself" if REASONS[reason].remedy and reason not in PROGRESS else ""


def _exits() -> Iterator[tuple[str, ...]]:
    for code in ExitCode:
        reason = EXIT_REASONS.get(code, Reason.COMPLETED)
        yield str(code.value), f"`{reason.value}`", REASONS[reason].meaning, FOLLOWS[ANSWERS[reason]]


def _metrics() -> Iterator[tuple[str, ...]]:
    """Name, kind and meaning of every metric of the operator, as a scrape shows them."""
    nothing = Gauges(depth=lambda: 0.0, oldest=lambda: 0.0, leader=lambda: 0.0, phases=dict, board=Board(list))
    for family in Metrics(nothing).registry.collect():
        yield f"`{family.name}{'_total' if family.type == 'counter' else ''}`", family.type, family.documentation


def _alerts() -> Iterator[tuple[str, ...]]:
    """Name, condition and advice of every alert; NAME and NAMESPACE stand for the labels."""
    for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            advice = re.sub(r"{{ \$labels\.run_namespace }}", "NAMESPACE", rule["annotations"]["description"])
            when = f"`{rule['expr']}`" + (f" for {rule['for']}" if "for" in rule else "")
            yield f"`{rule['alert']}`", when, re.sub(r"{{ \$labels\.run }}", "NAME", advice)


def _lines(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(table(head, rows))
