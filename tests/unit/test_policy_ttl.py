"""ttl: the resource goes so long after its end, in exactly the version that was looked at."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gemmatune_api import names
from gemmatune_api.names import ConditionType, Reason
from gemmatune_operator import conditions
from gemmatune_operator.decision import Decision, Deletion
from gemmatune_operator.policies.ttl import AGAIN_SECONDS, ttl
from tests.support.situations import NOW, resource, situation

GONE = (Deletion(names.KIND, "quotes", "uid-1", "7"),)


def look(after: float, limit: str | None = "1h", *, finished: bool = True, changed: bool = False) -> Decision:
    found = conditions.put([], ConditionType.FINISHED, finished, Reason.COMPLETED, "", 1, NOW)
    status = {"conditions": [item.model_dump(by_alias=True) for item in found]}
    raw = resource({"ttlAfterFinished": limit}, status=status)
    seen = situation(raw, now=NOW + timedelta(seconds=after))
    decided = Decision(status=seen.observed.status)
    return ttl(seen, decided.update(message="news") if changed else decided)


@pytest.mark.parametrize(("after", "wake"), [(0, 3600), (3599, 1)])
def test_it_waits_for_its_time(after: float, wake: float) -> None:
    assert (look(after).delete, look(after).wake) == ((), wake)


@pytest.mark.parametrize("after", [3600, 10**7])
def test_then_it_goes(after: float) -> None:
    assert (look(after).delete, look(after).wake) == (GONE, AGAIN_SECONDS)


def test_another_ttl_moves_the_end() -> None:
    assert look(600, "10m").delete == GONE
    assert look(3600, "2h").wake == 3600


def test_who_is_not_finished_stays() -> None:
    found = look(10**7, finished=False)
    assert (found.delete, found.wake) == ((), None)


def test_without_a_ttl_it_stays() -> None:
    found = look(10**7, None)
    assert (found.delete, found.wake) == ((), None)


def test_what_changes_is_written_down_first() -> None:
    found = look(10**7, changed=True)
    assert (found.delete, found.wake) == ((), AGAIN_SECONDS)


def test_a_spec_that_cannot_be_read_says_no_ttl() -> None:
    seen = situation(resource({"ttlAfterFinished": "1h", "training": {"maxSteps": 0}}))
    assert ttl(seen, Decision(status=seen.observed.status)).delete == ()
