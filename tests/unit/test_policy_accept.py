"""accept: refusals with path and remedy, the plan, and who may write to an output."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gemmatune_api.names import ConditionType, Reason
from gemmatune_api.status import Counters, DataStatus, FineTuneStatus, JobRecord
from gemmatune_operator.decision import Decision, Situation
from gemmatune_operator.policies.accept import accept, model_of, replanned, rival_of
from gemmatune_operator.settings import Settings
from gemmatune_operator.views import JobView
from tests.support.play import PREPARED
from tests.support.situations import attempt, decision, ended_pod, job, plan, resource, said, situation

NEW = Decision(status=FineTuneStatus())
A = ConditionType.ACCEPTED


def test_accepted_with_plan_and_resolved_defaults() -> None:
    found = accept(situation(), NEW)
    assert said(found, A) == ("True", "Valid")
    assert not found.settled
    status = found.status
    assert status.plan is not None
    assert status.plan.verdict == "fits"
    assert status.resolved is not None
    assert status.resolved["qlora"]["rank"] == 8
    assert status.summary is not None
    assert (status.summary.model, status.summary.method, status.summary.accelerator) == (
        "gemma-2-2b",
        "qlora r8",
        "1x nvidia-l4",
    )
    assert "qlora r8 of gemma-2-2b on 1x nvidia-l4: fits" in status.conditions[0].message


@pytest.mark.parametrize(
    ("spec", "reason", "path"),
    [
        ({"training": {"maxSteps": 0}}, Reason.INVALID_SPEC, "spec.training.maxSteps"),
        ({"dataset": None}, Reason.INVALID_SPEC, "spec.dataset"),
        ({"surprise": 1}, Reason.INVALID_SPEC, "spec.surprise"),
        ({"accelerator": {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x4"}}}, None, "spec.accelerator.tpu"),
        (
            {"accelerator": {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "4x4"}}},
            Reason.NOT_SUPPORTED_YET,
            "spec.accelerator.tpu",
        ),
        (
            {"samples": {"prompts": [{"text": "a", "image": "gs://b/i.png"}]}},
            Reason.INVALID_SPEC,
            "spec.samples.prompts[0].image",
        ),
    ],
)
def test_refused(spec: dict[str, Any], reason: Reason | None, path: str) -> None:
    found = accept(situation(resource(spec)), NEW)
    assert found.settled
    for kind, value in ((A, "False"), (ConditionType.FAILED, "True"), (ConditionType.FINISHED, "True")):
        condition = said(found, kind)
        assert condition is not None
        assert condition[0] == value
        assert reason is None or condition[1] == reason
    message = found.status.conditions[0].message
    assert path in message
    assert found.remedies[A]


def test_a_contradiction_is_told_before_a_missing_feature() -> None:
    found = accept(situation(resource({"samples": {"prompts": [{"text": "a"}]}, "training": {"maxSteps": 0}})), NEW)
    assert said(found, A) == ("False", "InvalidSpec")


def test_does_not_fit() -> None:
    spec = {"model": {"uri": "hf://google/gemma-2-27b"}, "lora": {}}
    found = accept(situation(resource(spec)), NEW)
    assert said(found, A) == ("False", "DoesNotFit")
    assert said(found, ConditionType.FAILED) == ("True", "DoesNotFit")
    assert found.remedies[A].startswith("One of: ")


def test_a_spec_that_no_trainer_can_read() -> None:
    """Every dollar sign takes six bytes on its way to the trainer."""
    text = {"template": "{quote}" + "$" * 15000}
    found = accept(situation(resource({"dataset": {"uri": "gs://bucket/rows.jsonl", "text": text}})), NEW)
    assert said(found, A) == ("False", "InvalidSpec")
    assert "90385 bytes" in found.status.conditions[0].message


def test_an_unknown_model_is_planned_later() -> None:
    found = accept(situation(resource({"model": {"uri": "gs://bucket/our-own"}})), NEW)
    assert said(found, A) == ("True", "Valid")
    assert found.status.plan is None
    assert "planned after preparation" in found.status.conditions[0].message


def test_asked_once_per_generation() -> None:
    settled = decision(plan=plan(micro_batch_size=1))
    assert accept(situation(), settled) is settled
    again = accept(situation(resource(generation=2)), settled)
    assert again.status.plan != settled.status.plan


def test_a_running_attempt_keeps_its_plan() -> None:
    running = decision(attempt(), plan=plan(micro_batch_size=1))
    found = accept(situation(resource(generation=2)), running)
    assert found.status.plan == running.status.plan
    assert said(found, A) == ("True", "Valid")


def test_another_plan_starts_a_new_budget_of_downshifts() -> None:
    used = Counters(attempts=3, out_of_memory=3)
    stopped = decision(attempt(end_time="2026-03-01T12:00:00Z"), counters=used)
    found = accept(situation(resource(generation=2)), stopped)
    assert found.status.budget_base is not None
    assert found.status.budget_base.out_of_memory == 3
    later = found.update(observed_generation=2, counters=Counters(attempts=4, out_of_memory=4))
    same = accept(situation(resource(generation=3)), later)
    assert same.status.budget_base == found.status.budget_base, "the same plan keeps its budget"
    fresh = accept(situation(resource(generation=2)), decision(counters=used))
    unplanned = accept(situation(resource(generation=2)), decision(attempt(end_time="x"), counters=used, plan=None))
    assert (fresh.status.budget_base, unplanned.status.budget_base) == (None, None)


def test_a_running_attempt_is_not_refused_by_a_later_verdict() -> None:
    running = decision(attempt(), plan=plan(verdict="does not fit"))
    assert said(accept(situation(resource(generation=2)), running), A) == ("True", "Valid")


def test_only_current_data_makes_the_plan() -> None:
    spec = {"training": {"epochs": 1}}
    known = decision(prepare=JobRecord(number=1, job="quotes-p1", generation=1), data=DataStatus(rows=320))
    known = known.update(observed_generation=None)
    current = accept(situation(resource(spec)), known).status.plan
    outdated = accept(situation(resource(spec, generation=2)), known).status.plan
    assert current is not None
    assert outdated is not None
    assert (current.total_steps, outdated.total_steps) == (20, None)


def test_prices_make_a_cost() -> None:
    priced = replace(situation(), settings=Settings(prices={"nvidia-l4": 0.5}))
    costs = [accept(seen, NEW).status.plan.cost_per_hour for seen in (priced, situation())]  # type: ignore[union-attr]
    assert costs[0] is not None
    assert costs[0] >= 0.5
    assert costs[1] is None


def test_a_running_attempt_outlives_a_broken_spec() -> None:
    """It goes on with the last valid spec; Failed comes with its end."""
    resolved = accept(situation(), NEW).status.resolved
    running = decision(attempt(), resolved=resolved)
    raw = resource({"training": {"maxSteps": 0}, "suspend": True}, status=running.status.model_dump(by_alias=True))
    seen = situation(raw)
    found = accept(seen, running)
    assert said(found, A) == ("False", "InvalidSpec")
    assert said(found, ConditionType.FAILED) is None
    assert not found.settled
    assert seen.spec.suspend, "suspend is obeyed all the same"
    assert (seen.spec.training.max_steps if seen.spec.training else None) == 100


def test_a_broken_spec_without_a_running_attempt_fails() -> None:
    resolved = accept(situation(), NEW).status.resolved
    broken = {"training": {"maxSteps": 0}}
    stopped = decision(attempt(end_time="2026-03-01T12:00:00Z"), resolved=resolved)
    raw = resource(broken, status=stopped.status.model_dump(by_alias=True))
    assert said(accept(situation(raw), stopped), ConditionType.FAILED) == ("True", "InvalidSpec")
    unknown = decision(attempt(), resolved=None)
    assert said(accept(situation(resource(broken)), unknown), ConditionType.FAILED) == ("True", "InvalidSpec")


# --- what prepare found ---


def prepared_situation(shape_of: str, generation: int = 1) -> tuple[Situation, Decision]:
    message = json.dumps(PREPARED)
    done: JobView = job("quotes-p1", ended_pod(0, termination_message=message), complete=True)
    record = JobRecord(number=1, job="quotes-p1", generation=1)
    data = DataStatus(rows=320, longest=90)
    raw = resource({"model": {"uri": shape_of}}, generation=generation)
    return situation(raw, jobs=[done]), decision(prepare=record, data=data)


def test_the_model_is_what_prepare_found() -> None:
    model = model_of(*prepared_situation("gs://bucket/our-own"))
    assert model is not None
    assert model.name == "gemma-2-2b"


def test_a_result_without_a_model_says_nothing() -> None:
    seen, known = prepared_situation("hf://google/gemma-3-270m")
    silent = job("quotes-p1", ended_pod(0, termination_message='{"message": "done"}'), complete=True)
    found = model_of(replace(seen, observed=replace(seen.observed, jobs={"quotes-p1": silent})), known)
    assert found is not None
    assert found.name == "gemma-3-270m"


def test_from_the_first_attempt_on_the_preparation_holds() -> None:
    seen, known = prepared_situation("gs://bucket/our-own", generation=5)
    begun = known.update(attempts=[attempt()])
    assert model_of(seen, known) is None
    assert model_of(seen, begun) is not None


def test_a_preparation_that_runs_says_nothing() -> None:
    seen, known = prepared_situation("gs://bucket/our-own")
    open_job = replace(seen.observed.jobs["quotes-p1"], complete=False)
    running = replace(seen, observed=replace(seen.observed, jobs={"quotes-p1": open_job}))
    assert model_of(running, known) is None


def test_an_outdated_preparation_says_nothing() -> None:
    assert model_of(*prepared_situation("gs://bucket/another", generation=2)) is None
    model = model_of(*prepared_situation("hf://google/gemma-3-270m", generation=2))
    assert model is not None
    assert model.name == "gemma-3-270m"


# --- one output, one run ---


def rival(name: str = "other", uri: str = "gs://bucket/quotes", **fields: Any) -> dict[str, Any]:
    status = fields.pop("status", {})
    meta = {"creationTimestamp": "2026-03-01T11:00:00Z", "uid": "uid-0", **fields}
    return resource({"output": {"uri": uri}}, status=status) | {"metadata": {"name": name, **meta}}


def test_the_second_owner_waits() -> None:
    found = accept(situation(rivals=(rival(),)), NEW)
    assert said(found, A) == ("False", "OutputInUse")
    assert said(found, ConditionType.FAILED) is None
    assert found.settled
    assert found.wake is not None
    assert "other" in found.status.conditions[0].message
    assert "other" in found.remedies[A]


LATER = {"creationTimestamp": "2026-03-01T13:00:00Z"}
FINISHED = {"conditions": [{"type": "Finished", "status": "True"}]}


@pytest.mark.parametrize(
    ("other", "mine", "conflict"),
    [
        (rival(), None, True),
        (rival(uri="gs://bucket/quotes/"), None, True),
        (rival(uri="gs://bucket/quotes2"), None, False),
        (rival(deletionTimestamp="2026-03-01T11:30:00Z"), None, False),
        (rival(**LATER), None, False),
        (rival(creationTimestamp="2026-03-01T12:00:00Z", uid="uid-0"), None, True),
        (rival(creationTimestamp="2026-03-01T12:00:00Z", uid="uid-2"), None, False),
        (rival(**LATER, status={"attempts": [{"number": 1}]}), None, True),
        (rival(**LATER, status={"prepare": {"number": 1}}), None, True),
        (rival(status=FINISHED), None, True),
        (rival(status=FINISHED), {"output": {"uri": "gs://bucket/quotes", "overwrite": True}}, False),
        (rival(), {"output": {"uri": "gs://bucket/quotes", "overwrite": True}}, True),
    ],
)
def test_who_is_second(other: dict[str, Any], mine: dict[str, Any] | None, conflict: bool) -> None:
    assert (rival_of(situation(resource(mine), rivals=(other,))) == "other") == conflict


@pytest.mark.parametrize(
    "spec",
    [None, "text", 7, [{}], {"output": "gs://b"}, {}, {"output": None}, {"output": {}}, {"output": {"uri": None}}],
)
def test_an_odd_rival_is_none(spec: Any) -> None:
    odd = {"metadata": {"name": "odd"}, "spec": spec}
    assert rival_of(situation(rivals=(odd, {"metadata": None}, {}))) is None


def test_who_has_begun_is_not_asked_again() -> None:
    begun = decision(attempt(), observed_generation=0)
    assert said(accept(situation(rivals=(rival(),)), begun), A) == ("True", "Valid")


def test_a_plan_of_this_generation_is_not_made_again_and_another_is() -> None:
    here = situation(resource(generation=2))
    same = decision(attempt(), plan=plan(generation=2))
    assert replanned(here, same) is same
    for old in (plan(generation=1), None):
        found = replanned(here, decision(attempt(end_time="2026-03-01T12:00:00Z"), plan=old)).status.plan
        assert found is not None
        assert (found.generation, found.memory.capacity == plan().memory.capacity) == (2, False)


def test_a_change_that_leaves_the_plan_is_told_as_no_other_plan() -> None:
    first = accept(situation(), NEW)
    running = Decision(status=first.status.model_copy(update={"attempts": [attempt()]}))
    longer = accept(situation(resource({"limits": {"deadline": "9h"}}, generation=2)), running)
    assert longer.status.plan is not None
    assert longer.status.plan.generation == 2
    assert "keeps its plan" not in longer.status.conditions[0].message
    moved = accept(situation(resource({"accelerator": {"gpu": {"type": "nvidia-h100-80gb"}}}, generation=2)), running)
    assert moved.status.plan == first.status.plan
    assert "keeps its plan. The next is qlora r8 of gemma-2-2b on 1x nvidia-h100-80gb: fits" in (
        moved.status.conditions[0].message
    )


def test_a_trained_run_keeps_its_plan_without_a_word_of_a_next_attempt() -> None:
    done = decision(attempt(end_time="2026-03-01T12:00:00Z", reason=Reason.COMPLETED))
    found = accept(situation(resource({"accelerator": {"gpu": {"type": "nvidia-h100-80gb"}}}, generation=2)), done)
    assert found.status.plan == plan()
    assert "keeps its plan" not in found.status.conditions[0].message


def test_a_remedy_that_is_not_there_is_not_referred_to() -> None:
    """27 billion weights in fp32: no host of this type has room for them."""
    tpu = {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x4", "chipsPerNode": 8}}
    wanted = {"model": {"uri": "hf://google/gemma-3-27b-pt"}, "accelerator": tpu, "training": {"precision": "fp32"}}
    found = accept(situation(resource(wanted)), NEW)
    assert said(found, A) == ("False", "DoesNotFit")
    assert found.status.plan is not None
    assert found.status.plan.remedies == []
    assert found.remedies[A].startswith("Use a larger accelerator, or a smaller model")
