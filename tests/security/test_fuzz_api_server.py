"""The CRD on the real API server: any document gets an answer below 500, and what is stored ends no look."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from gemmatune_api import names
from gemmatune_operator.observe import of_resource
from gemmatune_operator.policies import plan
from gemmatune_operator.settings import Settings
from tests.security.mutations import anything, resources
from tests.support.api import ApiError
from tests.support.controlplane import ControlPlane
from tests.support.resources import resource
from tests.support.soak import SOAK

pytestmark = pytest.mark.cluster
FUZZED: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": not SOAK}
NOW = datetime(2026, 3, 1, tzinfo=UTC)
_REFUSALS = (400, 403, 413, 422)


@pytest.fixture
def path(crd: ControlPlane, namespace: str) -> str:
    return f"/apis/{names.API_VERSION}/namespaces/{namespace}/{names.PLURAL}"


def refused(error: ApiError) -> None:
    """The API server said no, in words, and not because something broke in it."""
    assert error.status in _REFUSALS, error
    assert error.body["message"]


def sent(document: Any) -> Any:
    """What JSON can carry of it: no infinities, no half surrogates."""
    text = json.dumps(document).replace("NaN", "0").replace("-Infinity", "0").replace("Infinity", "0")
    return json.loads(text.encode("utf-8", "replace"))


def test_any_resource_gets_an_answer(crd: ControlPlane, path: str) -> None:
    taken: list[int] = []

    @settings(max_examples=2000 if SOAK else 100, **FUZZED)
    @given(resources())
    def answered(document: dict[str, Any]) -> None:
        try:
            stored = crd.api.call("POST", path, sent(document), dryRun="All")
        except ApiError as error:
            refused(error)
            return
        taken.append(1)
        decision = plan(of_resource(stored), NOW, Settings())
        json.dumps(decision.status.model_dump(mode="json", by_alias=True))

    answered()
    assert len(taken) > 5, "some are taken, or the operator's part is never looked at"


def test_any_status_gets_an_answer_and_ends_no_look(crd: ControlPlane, path: str) -> None:
    """A compromised trainer, or a hand, may write whatever the status' schema takes."""
    made = crd.api.create(path, resource())
    place = f"{path}/{made['metadata']['name']}"
    fields = ("phase", "conditions", "attempts", "progress", "samples", "timers", "counters", "artifacts", "resolved")

    @settings(max_examples=300 if SOAK else 15, **FUZZED)
    @given(anything, anything)
    def answered(one: Any, two: Any) -> None:
        for number, field in enumerate(fields):
            status = {field: sent(one), fields[number - 1]: sent(two)}
            try:
                stored = crd.api.call(
                    "PATCH",
                    f"{place}/status",
                    {"status": status},
                    content_type="application/merge-patch+json",
                    dryRun="All",
                )
            except ApiError as error:
                refused(error)
                continue
            plan(of_resource(stored), NOW, Settings())

    answered()
