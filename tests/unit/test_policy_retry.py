"""retry: what follows each cause, with which budget, backoff, memory and batch."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from gemmatune_api import accelerators, handover
from gemmatune_api.names import ANNOTATION_RETRY, ExitCode, Reason
from gemmatune_api.status import BudgetBase, Counters, Overrides
from gemmatune_operator.conditions import rfc3339
from gemmatune_operator.diagnose import Cause, cause, ended
from gemmatune_operator.policies import remedies, retry
from gemmatune_operator.settings import TRY_AGAIN
from gemmatune_operator.views import Machine
from tests.support.situations import (
    GIB,
    NOW,
    attempt,
    decision,
    ended_pod,
    failed_job,
    job,
    plan,
    resource,
    situation,
)


def after(why: Cause, *, counters: Counters | None = None, base: BudgetBase | None = None, **own: Any) -> retry.Verdict:
    """The verdict on attempt 1 that ended by this cause."""
    status: dict[str, Any] = {"counters": counters or Counters(attempts=1), "budget_base": base}
    first = attempt(**{key: value for key, value in own.items() if key in ("provisioning", "overrides")})
    found = decision(first, **status, **({"plan": own["plan"]} if "plan" in own else {}))
    spec = {"limits": {"maxRetries": 2, "maxPreemptions": 3}}
    seen = situation(resource(spec), machines=own.get("machines"))
    return retry.verdict(seen, found, first, own.get("job"), why)


COUNTED = (
    Reason.HOST_OUT_OF_MEMORY, Reason.DISK_FULL, Reason.STALLED, Reason.KILLED, Reason.STORAGE_UNAVAILABLE,
    Reason.HUB_UNAVAILABLE, Reason.CRASHED, Reason.JOB_VANISHED, Reason.POD_LOST, Reason.RESULT_MISSING,
)  # fmt: skip
FREE = (Reason.PREEMPTED, Reason.NODE_LOST, Reason.POD_REJECTED, Reason.INTERRUPTED)
WAITING = (
    Reason.IMAGE_PULL_FAILED, Reason.SECRET_MISSING, Reason.UNSCHEDULABLE, Reason.QUOTA_EXCEEDED,
    Reason.CAPACITY_UNAVAILABLE, Reason.POLICY_DENIED,
)  # fmt: skip
FATAL = (
    Reason.INVALID_CONFIG, Reason.ACCESS_DENIED, Reason.DATA_INVALID, Reason.OUTPUT_IN_USE, Reason.LOSS_DIVERGED,
    Reason.DEADLINE_EXCEEDED,
)  # fmt: skip


@pytest.mark.parametrize("reason", COUNTED)
def test_counted(reason: Reason) -> None:
    found = after(cause(reason))
    assert (found.again, found.counted) == (True, True)
    assert (found.counters.retries, found.counters.preemptions) == (1, 0)
    assert found.counters.stalls == (1 if reason is Reason.STALLED else 0)
    last = after(cause(reason), counters=Counters(attempts=3, retries=2))
    assert (last.again, last.counters.retries) == (False, 2)
    assert "limits.maxRetries (2)" in last.message


@pytest.mark.parametrize("reason", FREE)
def test_free(reason: Reason) -> None:
    found = after(cause(reason), counters=Counters(attempts=3, retries=2))
    assert (found.again, found.counted) == (True, False)
    assert (found.counters.retries, found.counters.preemptions) == (2, 1)
    last = after(cause(reason), counters=Counters(attempts=4, preemptions=3))
    assert not last.again
    assert "limits.maxPreemptions (3)" in last.message


@pytest.mark.parametrize("reason", FATAL)
def test_fatal(reason: Reason) -> None:
    found = after(cause(reason, "said so"))
    assert (found.again, found.counted, found.message) == (False, False, "said so")
    assert found.counters == Counters(attempts=1)


def test_budgets_start_anew_after_a_retry_on_demand() -> None:
    used = Counters(attempts=3, retries=2, preemptions=3, out_of_memory=3)
    base = BudgetBase(retries=2, preemptions=3, out_of_memory=3)
    assert after(cause(Reason.KILLED), counters=used, base=base).again
    assert after(cause(Reason.PREEMPTED), counters=used, base=base).again
    assert after(cause(Reason.ACCELERATOR_OUT_OF_MEMORY), counters=used, base=base).again


@pytest.mark.parametrize("reason", [Reason.JOB_VANISHED, Reason.POD_LOST])
def test_what_vanishes_on_spot_was_preempted(reason: Reason) -> None:
    found = after(cause(reason), provisioning="spot")
    assert (found.counted, found.counters.preemptions, found.counters.retries) == (False, 1, 0)
    assert after(cause(Reason.CRASHED), provisioning="spot").counted


def test_no_spot_node_is_no_preemption() -> None:
    found = after(cause(Reason.CAPACITY_UNAVAILABLE), provisioning="spot")
    assert (found.again, found.counted, found.counters) == (True, False, Counters(attempts=1, capacity_fallbacks=1))
    again = after(cause(Reason.CAPACITY_UNAVAILABLE), counters=Counters(attempts=2, capacity_fallbacks=1))
    assert again.counters == Counters(attempts=2, capacity_fallbacks=2)


def test_what_a_queue_takes_back_is_counted_for_itself() -> None:
    found = after(cause(Reason.EVICTED_BY_QUEUE)).counters
    assert (found.preemptions, found.queue_evictions) == (1, 1)
    found = after(cause(Reason.EVICTED_BY_QUEUE), counters=Counters(preemptions=2, queue_evictions=2)).counters
    assert (found.preemptions, found.queue_evictions) == (3, 3)
    assert after(cause(Reason.PREEMPTED)).counters.queue_evictions is None


def test_backoff_grows_and_is_deterministic() -> None:
    delays = [retry.backoff("uid", 3, failures) for failures in range(8)]
    assert delays == [retry.backoff("uid", 3, failures) for failures in range(8)]
    assert all(8 <= delay <= 360 for delay in delays)
    assert delays[1] == pytest.approx(2 * delays[0])
    assert delays[7] == delays[6] == pytest.approx(delays[0] * 30)
    assert len({retry.backoff(f"uid-{i}", 1, 0) for i in range(50)}) == 50


def test_only_some_causes_back_off() -> None:
    for reason in COUNTED + FREE:
        assert (after(cause(reason)).delay > 0) == (reason in retry.BACKS_OFF), reason
    second = after(cause(Reason.CRASHED), counters=Counters(attempts=1, retries=1))
    assert second.delay > after(cause(Reason.CRASHED)).delay


def test_only_the_same_cause_in_a_row_lengthens_the_pause_of_a_free_one() -> None:
    """Twenty preemptions do not make the first refused pod wait."""

    def delay(*reasons: Reason) -> float:
        earlier = [attempt(i, end_time="x", reason=reason.value) for i, reason in enumerate(reasons, 1)]
        used = Counters(attempts=9, preemptions=2)
        found = decision(*earlier, attempt(9), counters=used)
        return retry.verdict(situation(), found, attempt(9), None, cause(Reason.POD_REJECTED)).delay

    once = delay()
    assert delay(Reason.PREEMPTED, Reason.PREEMPTED) == once
    assert delay(Reason.POD_REJECTED, Reason.PREEMPTED) == once
    assert delay(Reason.PREEMPTED, Reason.POD_REJECTED) == pytest.approx(2 * once)
    assert delay(Reason.POD_REJECTED, Reason.POD_REJECTED) == pytest.approx(4 * once)


def test_the_budget_in_words() -> None:
    seen = situation(resource({"limits": {"maxRetries": 2, "maxPreemptions": 5}}))
    used = Counters(attempts=9, retries=4, preemptions=3)
    assert retry.budget(seen, used, BudgetBase(retries=3)) == "retry 1 of 2, preemptions 3 of 5"
    used = used.model_copy(update={"out_of_memory": 3})
    assert retry.budget(seen, used, BudgetBase(out_of_memory=1)).endswith("preemptions 3 of 5, downshifts 2 of 3")
    assert retry.budget(situation(), Counters(), BudgetBase()) == "retry 0 of 3, preemptions 0 of 20"


LOCKED = ("dataset.", "training.", "model.", "output.", "lora", "samples")


@pytest.mark.parametrize("reason", [*COUNTED, *FREE, Reason.ACCELERATOR_OUT_OF_MEMORY, *WAITING])
def test_remedies_while_the_run_goes_on(reason: Reason) -> None:
    """They name no field that is fixed for good, and of those fixed until a suspension they say so."""
    words = remedies.underway(cause(reason))
    assert words
    assert not [field for field in LOCKED if field in words]
    if any(field in words for field in ("pod.", "change accelerator", "provisioning.mode")):
        assert "suspend" in words


def test_remedies_that_are_the_trainers_own() -> None:
    own = ended(failed_job(40, termination_message='{"message": "slow", "remedy": "Ask the bucket\'s owner."}'))
    assert own is not None
    assert remedies.underway(own) == "Ask the bucket's owner."
    fixed = ended(failed_job(20, termination_message='{"message": "no", "remedy": "Lower dataset.maxLength."}'))
    assert fixed is not None
    assert "dataset" not in remedies.underway(fixed)
    assert "new resource" in remedies.final(fixed, started=True)
    assert remedies.underway(cause(Reason.PROVISIONING)) == ""
    assert "Create" in remedies.underway(cause(Reason.PROVISIONING, "no configmap", "Create it."))


OOM = cause(Reason.ACCELERATOR_OUT_OF_MEMORY)


def test_downshifts_halve_the_batch() -> None:
    found = after(OOM)
    assert (found.again, found.counted, found.counters.out_of_memory) == (True, False, 1)
    assert found.overrides == Overrides(micro_batch_size=2)
    again = after(OOM, counters=Counters(attempts=2, out_of_memory=1), overrides=found.overrides)
    assert again.overrides == Overrides(micro_batch_size=1)


def test_then_checkpointing_then_nothing() -> None:
    used = Counters(attempts=3, out_of_memory=1)
    found = after(OOM, counters=used, overrides=Overrides(micro_batch_size=1))
    assert found.overrides == Overrides(micro_batch_size=1, gradient_checkpointing=True)
    last = after(OOM, counters=used, overrides=found.overrides)
    assert not last.again
    assert last.counters == used
    planned = plan(micro_batch_size=1, accumulation=16, gradient_checkpointing=True)
    assert not after(OOM, plan=planned).again


def test_the_third_downshift_does_both_and_is_the_last() -> None:
    planned = plan(micro_batch_size=16, accumulation=1)
    third = after(
        OOM, counters=Counters(attempts=3, out_of_memory=2), overrides=Overrides(micro_batch_size=4), plan=planned
    )
    assert third.overrides == Overrides(micro_batch_size=2, gradient_checkpointing=True)
    assert not after(OOM, counters=Counters(attempts=4, out_of_memory=3), plan=planned).again


def test_checkpointing_that_is_on_already() -> None:
    planned = plan(gradient_checkpointing=True)
    assert after(OOM, plan=planned).overrides == Overrides(micro_batch_size=2)
    third = after(OOM, counters=Counters(attempts=3, out_of_memory=2), plan=planned)
    assert third.overrides == Overrides(micro_batch_size=2)


def test_a_halved_batch_divides_the_step() -> None:
    planned = plan(micro_batch_size=6, accumulation=2)
    assert after(OOM, plan=planned).overrides == Overrides(micro_batch_size=3)
    planned = plan(micro_batch_size=5, accumulation=3)
    assert after(OOM, plan=planned).overrides == Overrides(micro_batch_size=1)


def test_downshifts_begin_at_what_a_pass_really_had() -> None:
    """Packed rows fill two sequences in each group: micro-batches of 4 and 2 would be the same program again."""

    def shifted(sequences: object, **own: Any) -> retry.Verdict:
        said = json.dumps({"message": "Ran out of memory in memory space hbm", "sequences": sequences})
        why = ended(failed_job(20, termination_message=said))
        assert why is not None
        assert why.reason is Reason.ACCELERATOR_OUT_OF_MEMORY
        return after(why, **own)

    planned = plan(micro_batch_size=8, accumulation=2)
    assert shifted(2, plan=planned).overrides == Overrides(micro_batch_size=1)
    assert shifted(6, plan=planned).overrides == Overrides(micro_batch_size=2), "3 does not divide the rows of a step"
    assert shifted(1, plan=planned).overrides == Overrides(gradient_checkpointing=True)
    assert not shifted(1, plan=plan(micro_batch_size=8, gradient_checkpointing=True)).again
    for unknown in (None, 0, -3, 9, 64):  # an older trainer says nothing of it
        assert shifted(unknown, plan=planned).overrides == Overrides(micro_batch_size=4), unknown
    used = Counters(attempts=3, out_of_memory=2)
    third = shifted(2, counters=used, overrides=Overrides(micro_batch_size=4), plan=planned)
    assert third.overrides == Overrides(micro_batch_size=1, gradient_checkpointing=True)


def test_more_memory() -> None:
    why = ended(failed_job(137, termination_reason="OOMKilled"))
    assert why is not None
    limited = job("quotes-t1", ended_pod(137), memory=10 * GIB)
    free = after(why, job=limited)
    assert free.overrides == Overrides(memory=15 * GIB)
    machines = {"n1": Machine(memory=12 * GIB)}
    assert after(why, job=limited, machines=machines).overrides == Overrides(memory=int(12 * GIB * 0.9))
    full = after(why, job=limited, machines={"n1": Machine(memory=11 * GIB)})
    assert full.again
    assert full.overrides in (None, Overrides())
    same = after(why, job=job("quotes-t1", ended_pod(137), memory=9 * GIB), machines={"n1": Machine(memory=10 * GIB)})
    assert same.overrides in (None, Overrides()), "it has all that the machine gives"
    unlimited = after(why, job=job("quotes-t1", ended_pod(137)))
    assert unlimited.overrides in (None, Overrides())


@pytest.mark.parametrize(
    ("spec", "gib"),
    [
        ({"accelerator": {"gpu": {"type": "nvidia-h100-80gb"}}}, 234),  # a3-highgpu-1g
        ({"accelerator": {"gpu": {"type": "nvidia-l4", "count": 2}}}, 96),
        ({"accelerator": {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x2"}}, "lora": {}}, 192),
        ({"accelerator": {"cpu": {}}}, None),
    ],
)
def test_without_its_node_memory_grows_to_the_largest_machine(spec: dict[str, Any], gib: int | None) -> None:
    why = ended(failed_job(137, termination_reason="OOMKilled"))
    assert why is not None
    limit = int((gib or 100) * 0.8) * GIB
    view = job("quotes-t1", ended_pod(137), memory=limit)
    for machines in (None, {"n1": Machine()}):
        seen = situation(resource(spec), machines=machines)
        found = retry.verdict(seen, decision(attempt()), attempt(), view, why).overrides
        assert found is not None
        assert found.memory is not None
        if gib is None:
            assert found.memory == limit * 1.5, "no catalog has the machines without accelerators"
        else:
            machine = accelerators.allocatable_memory(gib * GIB)
            assert found.memory == int(machine * retry.MACHINE_SHARE)
    known = situation(resource(spec), machines={"n1": Machine(memory=400 * GIB)})
    found = retry.verdict(known, decision(attempt()), attempt(), view, why).overrides
    assert found is not None
    assert found.memory == limit * 1.5, "the node itself tells best"


def test_what_another_machine_had_is_not_carried_on() -> None:
    moved = BudgetBase(attempts=1)
    granted = Overrides(memory=30 * GIB, ephemeral_storage=40 * GIB, micro_batch_size=2)
    used = Counters(attempts=1, out_of_memory=1)
    kept = after(cause(Reason.PREEMPTED), counters=used, base=moved, overrides=granted).overrides
    assert kept == Overrides(micro_batch_size=2)
    why = ended(failed_job(137, termination_reason="OOMKilled"))
    assert why is not None
    limited = job("quotes-t1", ended_pod(137), memory=30 * GIB)
    assert after(why, counters=used, base=moved, job=limited).overrides is None, "it ran on the machine before"
    assert after(why, counters=used, base=BudgetBase(attempts=0), job=limited).overrides == Overrides(memory=45 * GIB)


def test_more_disk() -> None:
    why = ended(failed_job(13))
    assert why is not None
    limited = job("quotes-t1", memory=10 * GIB, ephemeral_storage=20 * GIB)
    found = after(why, job=limited)
    assert found.overrides == Overrides(ephemeral_storage=30 * GIB)
    machines = {"n1": Machine(ephemeral_storage=25 * GIB)}
    assert after(why, job=limited, machines=machines).overrides == Overrides(ephemeral_storage=int(22.5 * GIB))


def test_only_what_ran_out_grows() -> None:
    limited = job("quotes-t1", ended_pod(137), memory=10 * GIB, ephemeral_storage=20 * GIB)
    assert after(cause(Reason.KILLED), job=limited).overrides is None
    assert after(cause(Reason.KILLED), job=limited, overrides=Overrides()).overrides is None


def test_what_cannot_grow_keeps_what_it_has() -> None:
    granted = Overrides(memory=10 * GIB, ephemeral_storage=20 * GIB)
    limited = job("quotes-t1", memory=10 * GIB, ephemeral_storage=20 * GIB)
    machines = {"n1": Machine(memory=10 * GIB, ephemeral_storage=20 * GIB)}
    for code, why in ((137, "OOMKilled"), (13, "")):
        full = ended(failed_job(code, termination_reason=why))
        assert full is not None
        assert after(full, job=limited, machines=machines, overrides=granted).overrides == granted


def test_what_was_granted_is_carried_on() -> None:
    granted = Overrides(memory=15 * GIB, micro_batch_size=2)
    used = Counters(attempts=3, out_of_memory=1)
    assert after(cause(Reason.PREEMPTED), counters=used, overrides=granted).overrides == granted
    assert after(cause(Reason.KILLED), counters=used, overrides=granted).overrides == granted
    another_plan = BudgetBase(out_of_memory=1)
    kept = after(cause(Reason.KILLED), counters=used, base=another_plan, overrides=granted).overrides
    assert kept == Overrides(memory=15 * GIB), "downshifts belong to the plan they were made for"


def test_remedies_of_the_end() -> None:
    bad_data = ended(failed_job(12))
    killed = cause(Reason.KILLED)
    assert bad_data is not None
    before, later = remedies.final(bad_data, started=False), remedies.final(bad_data, started=True)
    assert ANNOTATION_RETRY not in before
    assert "new resource with another output.uri" in later
    assert ANNOTATION_RETRY in remedies.final(killed, started=True)
    for reason in COUNTED + FREE:
        assert not remedies.final(cause(reason), started=True).startswith("Nothing"), reason
    assert ANNOTATION_RETRY in remedies.final(cause(Reason.ACCESS_DENIED), started=False)
    assert remedies.final(cause(Reason.DEADLINE_EXCEEDED), started=True).count(ANNOTATION_RETRY) == 1
    memory = remedies.final(OOM, started=True)
    assert "accelerator" in memory
    assert ANNOTATION_RETRY in memory
    own = ended(failed_job(21, termination_message='{"message": "nan", "remedy": "Lower it."}'))
    assert own is not None
    assert remedies.final(own, started=False) == "Lower it."
    assert remedies.final(own, started=True) == "Create a new resource with another output.uri; there: Lower it."


@pytest.mark.parametrize("started", [True, False])
def test_an_image_of_another_release_needs_no_new_resource(started: bool) -> None:
    text = json.dumps({"message": "version 2", "remedy": handover.OTHER_RELEASE})
    why = ended(failed_job(ExitCode.INVALID_CONFIG, termination_message=text))
    assert why is not None
    found = remedies.final(why, started=started)
    assert found == f"{handover.OTHER_RELEASE} Then {TRY_AGAIN}."


@pytest.mark.parametrize(
    ("ahead", "rest"), [(None, 0.0), (-1, 0.0), (0, 0.0), (1, 1.0), (360, 360.0), (361, 0.0), (3600, 0.0)]
)
def test_a_pause_is_never_longer_than_the_longest(ahead: float | None, rest: float) -> None:
    """An hour ahead is the word of a clock that was wrong."""
    due = None if ahead is None else rfc3339(NOW + timedelta(seconds=ahead))
    assert retry.pause(situation(), decision(next_attempt_time=due)) == rest


@pytest.mark.parametrize(
    ("choices", "started", "remedy"),
    [
        (["use qlora", "nvidia-a100-80gb"], False, "One of: use qlora; nvidia-a100-80gb."),
        (["nvidia-a100-80gb"], True, "One of: nvidia-a100-80gb."),
        (
            ["use qlora", "dataset.maxLength 512", "nvidia-a100-80gb"],
            True,
            "One of: nvidia-a100-80gb. Or create a new resource with another output.uri, with one of: use qlora; "
            "dataset.maxLength 512.",
        ),
        (
            ["use qlora and nvidia-l4"],
            True,
            "Create a new resource with another output.uri, with one of: use qlora and nvidia-l4.",
        ),
        ([], False, "Use a larger accelerator, or a smaller model: no single change of the spec makes it fit."),
        (
            [],
            True,
            "Use a larger accelerator, or a smaller model in a new resource with another output.uri: no single change "
            "of the spec makes it fit.",
        ),
    ],
)
def test_what_does_not_fit_is_told_by_what_there_is_and_may_change(
    choices: list[str], started: bool, remedy: str
) -> None:
    assert remedies.too_large(choices, started=started) == remedy
