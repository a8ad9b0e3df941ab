"""For each policy a deliberately wrong branch fails the policy's own tests.

Every condition of a policy can be made wrong (tests/support/mutants.py). CI takes some of each file, evenly spread;
with GEMMATUNE_SOAK=1 (`make soak-mutants`) all of them are tried.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mutants import Mutant, mutants
from tests.support.soak import SOAK

pytestmark = [pytest.mark.slow, pytest.mark.timeout(5400)]

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "operator/gemmatune_operator"
FILES = [
    *(file for file in sorted(PACKAGE.glob("policies/*.py")) if mutants(file.read_text(encoding="utf-8"))),
    PACKAGE / "diagnose.py",
]
OTHER_TESTS = {
    "accept": ["test_policy_accept.py", "test_policy_site_defaults.py"],
    "__init__": ["test_policy_accept.py", "test_scenarios.py"],
    "attempt": [
        "test_policy_attempt.py",
        "test_policy_attempt_ends.py",
        "test_policy_queue.py",
        "test_policy_provisioning.py",
    ],
    "close": ["test_policy_attempt_ends.py", "test_policy_suspend.py", "test_scenarios.py"],
    "remedies": ["test_policy_retry.py", "test_policy_attempt_ends.py", "test_policy_merge.py"],
    "retry": ["test_policy_retry.py", "test_policy_retry_on_demand.py"],
    "results": ["test_policy_prepare.py", "test_policy_accept.py"],
    "diagnose": ["test_diagnose.py"],
}
"""Tests of what has no test file of its own name: helpers of several policies."""
PER_FILE = None if SOAK else 2
SURVIVES: dict[str, str] = {
    "accept.rival_of: _rank(raw) >= mine": "ranks end with the UID: two are never equal",
    "retry.pause: 0 <= rest <= BACKOFF_CAP_SECONDS * (1 + JITTER)": "a rest of 0 is returned as 0 either way",
    "suspend._reached: (last.to_step or 0) > saved.step": "an equal step is written over by itself",
}
"""Wrong branches that no test can tell from the right ones, and why."""


def own_tests(file: Path) -> list[str]:
    """The tests that must notice."""
    return [f"tests/unit/{name}" for name in OTHER_TESTS.get(file.stem, [f"test_policy_{file.stem}.py"])]


def chosen(file: Path) -> list[Mutant]:
    """The mutants that are tried: evenly spread over the file."""
    found = [
        mutant for mutant in mutants(file.read_text(encoding="utf-8")) if f"{file.stem}.{mutant.name}" not in SURVIVES
    ]
    count = min(PER_FILE or len(found), len(found))
    return [found[len(found) * (2 * position + 1) // (2 * count)] for position in range(count)]


class Host:
    """A copy of the operator's package, and a process that runs tests on it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.mutanthost"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, file: Path, source: str) -> tuple[int, str]:
        """Exit code and output of a module's tests, with this as its source."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        place = str(self._folder / PACKAGE.name / file.relative_to(PACKAGE))
        case = {"folder": str(self._folder), "place": place, "source": source, "tests": own_tests(file)}
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["code"], answer["output"]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    started = Host(tmp_path_factory.mktemp("mutants"))
    yield started
    assert started.process.stdin is not None
    started.process.stdin.close()
    started.process.wait(timeout=60)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_wrong_branch_is_noticed(file: Path, host: Host) -> None:
    code, output = host.ask(file, file.read_text(encoding="utf-8"))
    assert code == pytest.ExitCode.OK, f"the right module fails: {output}"
    tried = chosen(file)
    assert tried
    unnoticed = []
    for mutant in tried:
        code, output = host.ask(file, mutant.source())
        if code != pytest.ExitCode.TESTS_FAILED:
            unnoticed.append(f"{file.stem}.{mutant.name}: exit code {code}")
    assert not unnoticed, "no test notices: " + "; ".join(unnoticed)


def test_every_mutant_has_a_name_of_its_own() -> None:
    for file in FILES:
        names = [mutant.name for mutant in mutants(file.read_text(encoding="utf-8"))]
        assert len(names) == len(set(names))


def test_what_survives_still_exists() -> None:
    names = {f"{file.stem}.{mutant.name}" for file in FILES for mutant in mutants(file.read_text(encoding="utf-8"))}
    assert set(SURVIVES) <= names
