"""Hashes of documents: what repeats and what is held out, found in a file as it would be in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemmatune_trainer.data import digests
from gemmatune_trainer.data.digests import held_out

DOCUMENTS = st.lists(st.integers(0, 50), min_size=1, max_size=200)


def written(folder: Path, documents: list[int]) -> Path:
    """The digests of documents that are told apart by a number."""
    path = folder / "digests"
    (np.array(documents, dtype="<u8") * np.uint64(0x9E3779B97F4A7C15)).tofile(path)
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=DOCUMENTS, fraction=st.floats(0.001, 0.499))
def test_the_share_is_kept_and_equal_documents_stay_together(
    tmp_path: Path, documents: list[int], fraction: float
) -> None:
    held = list(held_out(written(tmp_path, documents), fraction))
    assert len(held) == len(documents)
    assert sum(held) >= max(1, fraction * len(documents) - 1e-9)
    most = max(documents.count(document) for document in documents)
    assert sum(held) <= max(1, fraction * len(documents)) + most
    kept = {document for document, is_held in zip(documents, held, strict=True) if is_held}
    assert not kept & {document for document, is_held in zip(documents, held, strict=True) if not is_held}
    again = list(held_out(written(tmp_path, documents[::-1]), fraction))[::-1]
    assert held == again, "the order of the documents does not matter"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=DOCUMENTS, group=st.sampled_from([1, 7, 1 << 18]))
def test_repeated_documents_are_counted(tmp_path: Path, documents: list[int], group: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "_DISTINCT", group)
        patch.setattr(digests, "_CHUNK", 16)
        assert digests.duplicates(written(tmp_path, documents)) == len(documents) - len(set(documents))


def test_memory_does_not_grow_with_the_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_DISTINCT", 1 << 12)
    monkeypatch.setattr(digests, "_CHUNK", 1 << 12)

    def peak(rows: int) -> int:
        path = tmp_path / "digests"
        np.random.default_rng(1).integers(0, 1 << 64, rows, dtype=np.uint64).tofile(path)
        tracemalloc.start()
        digests.duplicates(path)
        assert sum(held_out(path, 0.01)) >= 0.01 * rows
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(1 << 16) < 1.3 * peak(1 << 13)
