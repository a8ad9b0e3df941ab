"""describe: the words of conditions and columns."""

from __future__ import annotations

from typing import Any

import pytest

from gemmatune_api import catalog
from gemmatune_api.errors import Problem
from gemmatune_api.names import Reason
from gemmatune_api.status import DataStatus
from gemmatune_operator.policies import describe
from tests.support.situations import GIB, plan, resource, situation

TPU = {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x4"}}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "qlora r8 of gemma-2-2b on 1x nvidia-l4"),
        ({"lora": {"rank": 4}, "accelerator": {"cpu": {}}}, "lora r4 of gemma-2-2b on cpu"),
    ],
)
def test_what(changes: dict[str, Any], text: str) -> None:
    spec = situation(resource(changes)).spec
    assert describe.what(spec, catalog.by_name("gemma-2-2b")) == text


def test_a_model_without_a_name_goes_by_its_uri() -> None:
    spec = situation(resource({"model": {"uri": "gs://bucket/mine/"}})).spec
    assert describe.model_name(spec, None) == "mine"
    assert describe.model_name(spec, catalog.by_name("gemma-2-2b")) == "gemma-2-2b"


def test_a_slice_by_its_topology() -> None:
    accelerator = type(situation().spec.accelerator).model_validate(TPU)
    assert describe.accelerator(accelerator) == "tpu-v5-lite-podslice 2x4"


def test_memory_and_verdict() -> None:
    known = plan()
    assert describe.memory(known) == "10.0 of 20.0 GiB"
    assert describe.verdict(known) == "fits (10.0 of 20.0 GiB)"
    assert describe.verdict(None) == "its memory is planned after preparation"
    unknown = plan(memory=known.memory.model_copy(update={"capacity": 0}))
    assert describe.memory(unknown) == "10.0 GiB needed"
    short = plan(host_memory=313 * GIB, host_capacity=154 * GIB)
    pod = "each pod needs 313.0 GiB of host memory, and gets 154.0 of its machine"
    assert describe.memory(short) == f"{pod} (10.0 of 20.0 GiB on each device)"
    assert describe.memory(plan(host_memory=154 * GIB, host_capacity=154 * GIB)) == "10.0 of 20.0 GiB"


def test_data_says_what_was_cut_and_dropped_only_where_something_was() -> None:
    found = DataStatus(hash="d1", rows=1200, tokens=9000, labelled_tokens=800)
    plain = "1,200 rows, 9,000 tokens, 800 of them trained"
    assert describe.data(found) == plain
    cut = found.model_copy(update={"truncated_rows": 2, "cut_tokens": 30})
    assert describe.data(cut) == f"{plain}; 2 rows cut at maxLength (30 tokens)"
    dropped = found.model_copy(update={"dropped_rows": 3})
    assert describe.data(dropped) == f"{plain}; 3 rows dropped as too long"
    held = {"eval_rows": 9, "eval_truncated_rows": 0, "eval_cut_tokens": 0, "eval_dropped_rows": 0}
    assert describe.data(found.model_copy(update=held)) == plain
    both = found.model_copy(update={**held, "eval_truncated_rows": 4, "eval_cut_tokens": 50, "eval_dropped_rows": 5})
    cut_and_dropped = "4 rows for evaluation cut (50 tokens); 5 rows for evaluation dropped as too long"
    assert describe.data(both) == f"{plain}; {cut_and_dropped}"


def problem(number: int, reason: Reason = Reason.INVALID_SPEC) -> Problem:
    return Problem(path=f"spec.a{number}", message=f"wrong {number}", remedy=f"Correct {number}.", reason=reason)


def test_five_problems_are_told_and_the_rest_counted() -> None:
    five = [problem(number) for number in range(5)]
    _, message, remedy = describe.problems(five)
    assert all(f"wrong {number}" in message for number in range(5))
    assert "more" not in message
    assert remedy == "Correct 0."
    _, message, _ = describe.problems([*five, problem(5), problem(6)])
    assert "wrong 5" not in message
    assert message.endswith("and 2 more")


def test_a_contradiction_is_told_before_a_missing_feature() -> None:
    missing = problem(1, Reason.NOT_SUPPORTED_YET)
    assert describe.problems([missing, problem(2)])[0] is Reason.INVALID_SPEC
    assert describe.problems([missing])[0] is Reason.NOT_SUPPORTED_YET
