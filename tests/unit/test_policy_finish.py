"""finish: the phase as one function of the conditions; reason, message and remedy of the one that decides."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_api.names import REASONS, ConditionType, Phase, Reason
from gemmatune_api.status import Condition, Counters, Summary
from gemmatune_operator.policies.finish import finish, phase_of
from tests.support.situations import decision, resource, situation

C = ConditionType
READY = ("Accepted", "Prepared")


def conditions(*true: str, **others: str) -> list[Condition]:
    """True conditions by name; others as Type="Reason" of a False one."""
    found = [Condition(type=kind, status="True", reason="Valid") for kind in true]
    return found + [Condition(type=kind, status="False", reason=reason) for kind, reason in others.items()]


PHASES = [
    (conditions(), Phase.PENDING, None),
    (conditions(Accepted="OutputInUse"), Phase.PENDING, C.ACCEPTED),
    (conditions("Accepted"), Phase.PENDING, C.ACCEPTED),
    (conditions("Accepted", Prepared="Preparing"), Phase.PREPARING, C.PREPARED),
    (conditions("Accepted", Prepared="SecretMissing"), Phase.PREPARING, C.PREPARED),
    (conditions(*READY), Phase.PREPARING, C.PREPARED),
    (conditions(*READY, Provisioned="Provisioning"), Phase.PROVISIONING, C.PROVISIONED),
    (conditions(*READY, Provisioned="Unschedulable", Training="Provisioning"), Phase.PROVISIONING, C.PROVISIONED),
    (conditions(*READY, "Provisioned", "Training"), Phase.TRAINING, C.TRAINING),
    (conditions("Prepared", "Provisioned", "Training", Accepted="InvalidSpec"), Phase.TRAINING, C.TRAINING),
    (conditions("Prepared", Accepted="InvalidSpec", Training="Provisioning"), Phase.PENDING, C.ACCEPTED),
    (conditions(*READY, Provisioned="Retrying", Training="Retrying"), Phase.RETRYING, C.TRAINING),
    (conditions(*READY, "Training", Suspended="Resumed"), Phase.TRAINING, C.TRAINING),
    (conditions(*READY, "Training", Suspended="Suspending"), Phase.SUSPENDING, C.SUSPENDED),
    (conditions(*READY, "Suspended", Training="Suspended"), Phase.SUSPENDED, C.SUSPENDED),
    (conditions(*READY, "Suspended", "Failed"), Phase.FAILED, C.FAILED),
    (conditions("Failed", Accepted="InvalidSpec"), Phase.FAILED, C.FAILED),
    (conditions(*READY, Succeeded="Merging"), Phase.MERGING, C.SUCCEEDED),
    (conditions(*READY, "Provisioned", Succeeded="Merging"), Phase.MERGING, C.SUCCEEDED),
    (conditions(*READY, Succeeded="Merging", Provisioned="Provisioning"), Phase.MERGING, C.SUCCEEDED),
    (conditions(*READY, Succeeded="Merging", Provisioned="Unschedulable"), Phase.MERGING, C.PROVISIONED),
    (conditions(*READY, "Succeeded", "Finished", Training="Completed"), Phase.SUCCEEDED, C.SUCCEEDED),
    (conditions(*READY, Failed="Retrying", Provisioned="Provisioning"), Phase.PROVISIONING, C.PROVISIONED),
]


@pytest.mark.parametrize(("found", "phase", "deciding"), PHASES, ids=[f"{p[1]}-{i}" for i, p in enumerate(PHASES)])
def test_phase(found: list[Condition], phase: Phase, deciding: ConditionType | None) -> None:
    assert phase_of(found) == (phase, deciding)


def test_the_order_of_conditions_does_not_matter() -> None:
    for found, phase, _ in PHASES:
        for order in itertools.islice(itertools.permutations(found), 24):
            assert phase_of(order)[0] is phase


@given(
    st.lists(
        st.builds(Condition, type=st.sampled_from(list(ConditionType)) | st.text(), status=st.text(), reason=st.text())
    )
)
def test_every_set_of_conditions_has_a_phase(found: list[Condition]) -> None:
    assert isinstance(phase_of(found)[0], Phase)


def test_the_deciding_condition_speaks() -> None:
    failed = decision().condition(situation(), C.FAILED, True, Reason.DATA_INVALID, "row 7", "Fix row 7.")
    status = finish(situation(resource(generation=4)), failed).status
    assert (status.phase, status.reason, status.message, status.remedy, status.observed_generation) == (
        "Failed",
        "DataInvalid",
        "row 7",
        "Fix row 7.",
        4,
    )


def test_a_remedy_stays_while_nothing_changes() -> None:
    failed = finish(situation(), decision().condition(situation(), C.FAILED, True, Reason.KILLED, "gone", "Do this."))
    later = decision(**{name: getattr(failed.status, name) for name in ("conditions", "reason", "message", "remedy")})
    assert finish(situation(), later).status.remedy == "Do this."
    other = later.condition(situation(), C.FAILED, True, Reason.KILLED, "gone again")
    assert finish(situation(), other).status.remedy == REASONS[Reason.KILLED].remedy


def test_retries_of_the_budget() -> None:
    found = decision(summary=Summary(model="m"), counters=Counters(retries=2))
    summary = finish(situation(resource({"limits": {"maxRetries": 5}})), found).status.summary
    assert summary is not None
    assert (summary.retries, summary.model) == ("2/5", "m")
    broken = situation(resource({"training": {"maxSteps": 0}}))
    assert finish(broken, found).status.summary == Summary(model="m"), "without a valid spec the columns stay"
