"""What is not built yet is refused at admission, and can be planned below that check by tests alone."""

from __future__ import annotations

import argparse

import pytest

from gemmatune_api import validate
from gemmatune_api.errors import InvalidResourceError
from gemmatune_api.names import ConditionType, Reason
from gemmatune_operator import options
from gemmatune_operator.policies import plan
from gemmatune_operator.settings import Settings
from tests.support.below import BELOW
from tests.support.situations import NOW, of_resource, resource, said

FOUR_NODES = {"accelerator": {"gpu": {"type": "nvidia-l4", "nodes": 4}}}


def test_a_shape_without_backend_is_refused_at_admission() -> None:
    decided = plan(of_resource(resource(FOUR_NODES)), NOW, Settings())
    assert said(decided, ConditionType.ACCEPTED) == ("False", Reason.NOT_SUPPORTED_YET)
    assert decided.create == ()


def test_below_the_check_the_shape_is_planned() -> None:
    decided = plan(of_resource(resource(FOUR_NODES)), NOW, BELOW)
    assert said(decided, ConditionType.ACCEPTED) == ("True", Reason.VALID)
    assert decided.status.plan is not None
    assert (decided.status.plan.hosts, decided.status.plan.chips) == (4, 4)


def test_contradictions_are_refused_below_the_check_too() -> None:
    with pytest.raises(InvalidResourceError, match="no machine has that many"):
        validate.parse(resource({"accelerator": {"gpu": {"type": "nvidia-l4", "count": 3, "nodes": 4}}}), refused=())


def test_no_option_reaches_the_table_of_refusals() -> None:
    parser: argparse.ArgumentParser = options._parser({})
    assert not [action.dest for action in parser._actions if "refus" in action.dest]
    assert options.read([], {}).settings.refused == Settings().refused
