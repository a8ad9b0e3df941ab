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
from tests.security.mutations import resources
from tests.security.statuses import Stage, stages, stored
from tests.security.test_fuzz_status import look
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
    held = {}
    for number, stage in enumerate(stages()):
        made = {**resource(f"quotes-{number}"), "spec": stage.resource["spec"]}
        held[stage.name] = crd.api.create(path, made)
    taken: list[str] = []
    examples = 2700 if SOAK else 135

    @settings(max_examples=examples, **FUZZED)
    @given(stored())
    def answered(stage: Stage) -> None:
        now = held[stage.name]
        place = f"{path}/{now['metadata']['name']}/status"
        try:
            answer = crd.api.call("PUT", place, {**now, "status": sent(stage.resource["status"])}, dryRun="All")
        except ApiError as error:
            refused(error)
            return
        taken.append(stage.name)
        # As the API server has it, but with the Jobs and pods of the stage, which know their owner by its UID.
        look(stage._replace(resource={**answer, "metadata": stage.resource["metadata"]}), 60)

    answered()
    assert len(taken) > examples / 2, "most are taken, or the operator's part is hardly looked at"
    assert len(set(taken)) > len(held) / 2
