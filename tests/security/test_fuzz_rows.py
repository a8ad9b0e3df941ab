"""A file of tokenised rows that anybody may have written: it is read or refused, and ends no process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemmatune_api.status import DataStatus
from gemmatune_trainer.data import prepared
from gemmatune_trainer.data.mapped import SCHEMA, PreparedData, PreparedImages, with_images
from gemmatune_trainer.stored import Unreadable
from tests.security.test_fuzz import fuzzed


def test_any_file_of_rows_is_read_whole_or_refused(tmp_path: Path) -> None:
    """Of a file whose checksum is right, nothing but its own bytes is read: offsets stay inside, names are texts."""
    path, outcomes = tmp_path / prepared.ROWS, set()
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for _ in range(2):
            rows = [[[1, 2], [3, 4, 5]], [[True, False], [True, True, False]]]
            writer.write_batch(pa.record_batch(rows, schema=SCHEMA))
    sound = path.read_bytes()

    @fuzzed
    @given(st.dictionaries(st.integers(0, len(sound) - 1), st.integers(0, 255), min_size=1, max_size=3))
    def read_or_refused(changed: dict[int, int]) -> None:
        content = bytearray(sound)
        for place, byte in changed.items():
            content[place] = byte
        path.write_bytes(content)
        try:
            found = PreparedData(path, DataStatus())
        except Unreadable:
            outcomes.add("refused")
            return
        outcomes.add("read")
        for index in range(found.rows):
            ids, labels = found.row(index)
            assert len(ids) == len(labels) == found.lengths()[index]

    read_or_refused()
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize(
    ("schema", "values", "found"),
    [
        (SCHEMA, [[[1, 2]], [[True]]], "more or fewer marks than tokens"),
        (SCHEMA, [[None], [None]], "a row or a token is missing"),
        (SCHEMA, [[[1, None]], [[True, True]]], "a row or a token is missing"),
        (SCHEMA, [[], []], "it has no rows"),
        (SCHEMA.set(0, pa.field("input_ids", pa.list_(pa.int64()))), [[[1]], [[True]]], "its columns are input_ids"),
        (with_images(2), [[[1]], [[True]], [1]], "another image than the 1 that there are"),
        (with_images(2), [[[1]], [[True]], [-1]], "another image than"),
        (with_images(2), [[[1]], [[True]], [None]], "another image than"),
        (with_images(3), [[[1]], [[True]], [0]], "no images of one size"),
        (with_images(2).remove_metadata(), [[[1]], [[True]], [0]], "no images of one size"),
    ],
)
def test_rows_of_another_form_are_refused(tmp_path: Path, schema: pa.Schema, values: list[Any], found: str) -> None:
    path, pictures = tmp_path / prepared.ROWS, tmp_path / prepared.IMAGES
    pictures.write_bytes(bytes(2 * 2 * 3))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(values, schema=schema))
    with pytest.raises(Unreadable, match=found):
        PreparedImages(path, DataStatus(), pictures) if "image" in schema.names else PreparedData(path, DataStatus())
