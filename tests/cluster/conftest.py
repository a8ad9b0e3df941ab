"""Faults of the machinery happen once in CI and several times in a soak: most need luck to show what is wrong."""

from __future__ import annotations

import pytest

from tests.support.soak import repeats

ROUNDS = 5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test of a test_machinery_ module, `ROUNDS` times in a soak."""
    if metafunc.module.__name__.rpartition(".")[2].startswith("test_machinery_") and repeats(ROUNDS) > 1:
        metafunc.fixturenames.append("round")
        metafunc.parametrize("round", range(1, repeats(ROUNDS) + 1))
