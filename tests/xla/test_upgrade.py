"""Runs that a former release left midway go on under today's trainer of backend xla: in a soak."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.release import Release, releases
from tests.support.soak import only_in_soak
from tests.support.upgrade import goes_on, process


@only_in_soak
@pytest.mark.parametrize("former", releases("xla"), ids=lambda release: release.folder.parent.name)
def test_the_next_attempt_goes_on_from_a_former_checkpoint(former: Release, tmp_path: Path) -> None:
    goes_on(former, "then", process, tmp_path)
