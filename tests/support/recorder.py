"""Records what reconcile writes: a pytest plugin, `-p tests.support.recorder --record-reasons FILE`.

Every status that the operator applies on the embedded cluster passes through one method, which is wrapped here; what
is recorded was decided by the policies and written, not merely named in a test.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemmatune_api.status import FineTuneStatus
from gemmatune_cli.local.cluster import EmbeddedCluster
from gemmatune_operator.policies.finish import phase_of
from gemmatune_operator.ports import Object
from tools.operations import ATTEMPT

OPTION = "--record-reasons"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, type=Path, help="write the reasons that reconcile wrote to this file, as JSON")


def seen_in(status: FineTuneStatus) -> Iterator[tuple[str, str]]:
    """Every reason in a status with where it stands: `Training=False (Retrying)` where it makes the phase."""
    phase, deciding = phase_of(status.conditions)
    for condition in status.conditions:
        makes = f" ({phase})" if condition.type == deciding else ""
        yield condition.reason, f"{condition.type}={condition.status}{makes}"
    for attempt in status.attempts:
        if attempt.reason:
            yield attempt.reason, ATTEMPT


def makes_phase(place: str) -> bool:
    """Whether a recorded place is a condition that made the phase."""
    return place.endswith(")")


@pytest.fixture(autouse=True, scope="session")
def _recorded(request: pytest.FixtureRequest) -> Iterator[None]:
    found: dict[str, set[str]] = {}
    apply_status = EmbeddedCluster.apply_status

    async def recording(self: EmbeddedCluster, obj: Object) -> Object:
        answer = await apply_status(self, obj)
        for reason, where in seen_in(FineTuneStatus.model_validate(obj["status"])):
            found.setdefault(reason, set()).add(where)
        return answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EmbeddedCluster, "apply_status", recording)
        yield
    file: Path = request.config.getoption(OPTION)
    file.write_text(json.dumps({reason: sorted(where) for reason, where in sorted(found.items())}, indent=1))
