"""What is not built yet is refused at admission, and can be planned below that check by tests alone."""

from __future__ import annotations

import argparse
import io

import pytest
from rich.console import Console

from gemmatune_api import validate
from gemmatune_api.errors import InvalidResourceError
from gemmatune_api.names import ConditionType, Reason
from gemmatune_cli import plan as plan_command
from gemmatune_cli.planning import planned
from gemmatune_operator import options
from gemmatune_operator.policies import plan
from gemmatune_operator.settings import Settings
from tests.support.below import BELOW
from tests.support.situations import NOW, of_resource, resource, said

FOUR_HOSTS = {"accelerator": {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "4x4", "chipsPerNode": 4}}}


def test_a_shape_without_backend_is_refused_at_admission() -> None:
    decided = plan(of_resource(resource(FOUR_HOSTS)), NOW, Settings())
    assert said(decided, ConditionType.ACCEPTED) == ("False", Reason.NOT_SUPPORTED_YET)
    assert decided.create == ()


def test_below_the_check_the_shape_is_planned() -> None:
    decided = plan(of_resource(resource(FOUR_HOSTS)), NOW, BELOW)
    assert said(decided, ConditionType.ACCEPTED) == ("True", Reason.VALID)
    assert decided.status.plan is not None
    assert (decided.status.plan.hosts, decided.status.plan.chips) == (4, 16)


def test_contradictions_are_refused_below_the_check_too() -> None:
    with pytest.raises(InvalidResourceError, match="no machine has that many"):
        validate.parse(resource({"accelerator": {"gpu": {"type": "nvidia-l4", "count": 3, "nodes": 4}}}), refused=())


def test_no_option_reaches_the_table_of_refusals() -> None:
    parser: argparse.ArgumentParser = options._parser({})
    assert not [action.dest for action in parser._actions if "refus" in action.dest]
    assert options.read([], {}).settings.refused == Settings().refused


@pytest.mark.parametrize(
    ("accelerator", "rows", "words"),
    [
        ({"gpu": {"type": "nvidia-h100-80gb", "count": 8, "nodes": 2}}, 64, "8 x nvidia-h100-80gb in each of 2 nodes"),
        ({"gpu": {"type": "nvidia-l4", "count": 2}}, 16, "2 in 1 pod"),
        ({"tpu": {"type": "tpu-v5-lite-podslice", "topology": "4x4"}}, 64, "tpu-v5-lite-podslice 4x4"),
        (
            {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "16x16"}},
            64,
            "256 in 64 pods, mesh 64 x 4 (data x model)",
        ),
    ],
)
def test_plans_in_words(accelerator: dict[str, object], rows: int, words: str) -> None:
    training = {"globalBatchSize": rows, "maxSteps": 10}
    found = planned(validate.parse(resource({"accelerator": accelerator, "training": training}), refused=()))
    console = Console(width=200, record=True, file=io.StringIO())
    for part in plan_command._report(found, {}, False):
        console.print(part)
    text = console.export_text()
    assert words in text
    each = found.plan.micro_batch_size * found.plan.accumulation
    assert f"{rows} = {found.plan.micro_batch_size} x {found.plan.accumulation} x {rows // each}" in text
