"""site_defaults: today's until a spec is accepted, those it began with from then on, and today's again for a retry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gemmatune_api.errors import InvalidResourceError
from gemmatune_api.names import ANNOTATION_RETRY, ConditionType, Reason
from gemmatune_api.site_defaults import SiteDefaults
from gemmatune_operator.observe import Observed, of_resource
from gemmatune_operator.policies.site_defaults import taken
from gemmatune_operator.ports import Object
from gemmatune_operator.reconcile import operator_fields
from gemmatune_operator.settings import Settings
from tests.support.situations import attempt, decision, resource, situation

TODAY = Settings(defaults=SiteDefaults(output_prefix="gs://today", priority_class_name="low"))
BEGAN = SiteDefaults(output_prefix="gs://then")
RETRIED = {"annotations": {ANNOTATION_RETRY: "1"}}


def observed(raw: Object, data: dict[str, str] | None = None) -> Observed:
    return replace(of_resource(raw), namespace_defaults=data or {})


def stored(*conditions: tuple[ConditionType, bool, Reason], generation: int = 1, **fields: Any) -> Object:
    """The status of a run that took its defaults at generation 1."""
    found = decision(observed_generation=1, defaults=BEGAN, **fields)
    for kind, status, reason in conditions:
        found = found.condition(situation(), kind, status, reason, "said")
    return operator_fields(found.status)


ACCEPTED = (ConditionType.ACCEPTED, True, Reason.VALID)
REFUSED = (ConditionType.ACCEPTED, False, Reason.DOES_NOT_FIT)
FAILED = (ConditionType.FAILED, True, Reason.ACCESS_DENIED)


def test_a_new_run_takes_the_namespace_s_over_the_installation_s() -> None:
    found = taken(observed(resource(), {"outputPrefix": "gs://team"}), TODAY)
    assert found == SiteDefaults(output_prefix="gs://team", priority_class_name="low")
    assert taken(observed(resource()), TODAY) == TODAY.defaults


@pytest.mark.parametrize(
    ("status", "generation", "meta", "takes"),
    [
        (stored(ACCEPTED), 1, {}, False),
        (stored(ACCEPTED), 1, RETRIED, False),
        (stored(ACCEPTED), 2, {}, True),
        (stored(REFUSED), 1, {}, True),
        (stored(ACCEPTED, FAILED), 1, {}, False),
        (stored(ACCEPTED, FAILED), 1, RETRIED, True),
        (stored(ACCEPTED, FAILED, observed_retry="1"), 1, RETRIED, False),
        (stored(ACCEPTED, FAILED, attempts=[attempt()]), 1, RETRIED, False),
        (stored(ACCEPTED, attempts=[attempt()]), 2, {}, False),
    ],
    ids=(
        "accepted",
        "an annotation on a run that has not failed",
        "a corrected spec",
        "a refused spec",
        "failed",
        "a retry before the first attempt",
        "a retry that was handled",
        "a retry after it",
        "a changed spec after it",
    ),
)
def test_which_hold(status: Object, generation: int, meta: Object, takes: bool) -> None:
    found = taken(observed(resource(status=status, generation=generation, **meta)), TODAY)
    assert found == (TODAY.defaults if takes else BEGAN)


def test_a_run_that_began_without_any_gets_none_later() -> None:
    status = {**stored(ACCEPTED, attempts=[attempt()]), "defaults": None}
    assert not taken(observed(resource(status=status)), TODAY).given


def test_a_config_map_that_cannot_be_read_stops_new_runs_only() -> None:
    bad = {"outputPrefix": "s3://team"}
    with pytest.raises(InvalidResourceError, match="ConfigMap gemmatune-defaults, outputPrefix"):
        taken(observed(resource(), bad), TODAY)
    assert taken(observed(resource(status=stored(ACCEPTED)), bad), TODAY) == BEGAN
