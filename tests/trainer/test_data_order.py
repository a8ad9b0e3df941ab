"""Rows of a step, packing and collation, as properties."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmatune_trainer.data.order import step_rows, steps_per_epoch
from gemmatune_trainer.data.pack import IGNORED, Row, collate, micro_batches, pack

SEEDS = st.integers(0, 2**31 - 1)


@given(SEEDS, st.integers(1, 200), st.integers(1, 40), st.integers(0, 3))
def test_an_epoch_visits_each_row_at_most_once_and_drops_the_partial_batch(seed, rows, batch, epoch):
    per_epoch = steps_per_epoch(rows, batch)
    steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    visited = Counter(chain.from_iterable(step_rows(seed, step, rows, batch) for step in steps))
    assert set(visited.values()) <= {1}
    assert visited.total() == per_epoch * batch
    assert rows - visited.total() < batch
    assert set(visited) <= set(range(rows))


@given(SEEDS, st.integers(0, 50), st.integers(0, 50))
def test_a_step_depends_on_nothing_asked_before(seed, first, second):
    alone = step_rows(seed, second, 64, 8)
    step_rows(seed + 1, first, 64, 8)
    step_rows(seed, first, 64, 8)
    assert step_rows(seed, second, 64, 8) == alone


def test_epochs_and_seeds_differ():
    first_epoch = [step_rows(42, step, 64, 8) for step in range(8)]
    second_epoch = [step_rows(42, step, 64, 8) for step in range(8, 16)]
    other_seed = [step_rows(43, step, 64, 8) for step in range(8)]
    assert first_epoch != second_epoch
    assert first_epoch != other_seed


def test_the_order_never_changes_between_versions():
    # Written down once: a run that resumes on a newer trainer must see the same rows.
    assert step_rows(42, 0, 10, 5) == [1, 6, 5, 4, 2]
    assert step_rows(42, 3, 10, 5) == [0, 7, 3, 1, 2]


def test_every_row_is_as_likely_at_every_place():
    # 1,500 seeds: the number of times that a row stands at a place, and that it follows another, spread as chance does.
    rows, seeds = 24, 1500
    places, followers = np.zeros((rows, rows)), np.zeros((rows, rows))
    for seed in range(seeds):
        order = step_rows(seed, 0, rows, rows)
        places[np.arange(rows), order] += 1
        followers[order[:-1], order[1:]] += 1
    np.fill_diagonal(followers, np.nan)
    for counts, freedom in ((places, (rows - 1) ** 2), (followers, rows * (rows - 1) - 1)):
        expected = np.nanmean(counts)
        chi_squared = np.nansum((counts - expected) ** 2) / expected
        assert abs(chi_squared / freedom - 1) < 0.25


def test_a_step_of_a_trillion_rows_takes_the_memory_of_a_step():
    tracemalloc.start()
    rows = step_rows(42, 5, 10**12, 64)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert len(set(rows)) == 64
    assert max(rows) < 10**12


@pytest.mark.parametrize(("step", "rows"), [(0, 7), (-1, 8)])
def test_impossible_steps_are_refused(step, rows):
    with pytest.raises(ValueError, match="step"):
        step_rows(1, step, rows, 8)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 9), st.booleans())
def test_micro_batches_hold_each_row_once(lengths, size, by_length):
    groups = micro_batches(lengths, size, by_length=by_length)
    assert sorted(chain.from_iterable(groups)) == list(range(len(lengths)))
    assert [len(group) for group in groups[:-1]] == [size] * (len(groups) - 1)
    flat = list(chain.from_iterable(groups))
    if by_length:
        assert [lengths[row] for row in flat] == sorted(lengths, reverse=True)
        padded = sum(len(group) * max(lengths[row] for row in group) for group in groups)
        in_order = micro_batches(lengths, size, by_length=False)
        assert padded <= sum(len(group) * max(lengths[row] for row in group) for group in in_order)
    else:
        assert flat == list(range(len(lengths)))


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(50, 120))
def test_packing_keeps_every_row_whole_and_within_the_capacity(lengths, capacity):
    sequences = pack(lengths, capacity)
    assert sorted(chain.from_iterable(sequences)) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in sequence) <= capacity for sequence in sequences)
    assert pack(lengths, capacity) == sequences
    # First fit: a sequence's longest row fitted into none of the sequences before it.
    for index, sequence in enumerate(sequences):
        for earlier in sequences[:index]:
            longer = sum(lengths[row] for row in earlier if lengths[row] >= lengths[sequence[0]] and row != sequence[0])
            assert longer + lengths[sequence[0]] > capacity


def test_packing_by_example():
    assert pack([3, 9, 5, 5, 1, 2], 10) == [[1, 4], [2, 3], [0, 5]]


@pytest.mark.parametrize("lengths", [[11], [0]])
def test_rows_that_fit_no_sequence_are_refused(lengths):
    with pytest.raises(ValueError, match="row 0"):
        pack(lengths, 10)


@st.composite
def tokenised_rows(draw) -> list[Row]:
    rows = []
    for ids in draw(st.lists(st.lists(st.integers(1, 999), min_size=1, max_size=12), min_size=1, max_size=12)):
        trained = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        rows.append((ids, [token if label else IGNORED for token, label in zip(ids, trained, strict=True)]))
    return rows


@settings(max_examples=60)
@given(tokenised_rows(), st.integers(12, 40), st.integers(0, 5))
def test_collation_loses_no_label_but_the_first_of_each_document(rows, capacity, extra):
    sequences = pack([len(ids) for ids, _ in rows], capacity)
    batch = collate(rows, sequences, pad_id=0, length=capacity + extra)
    assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape == (len(sequences), capacity + extra)
    assert (batch.labels[batch.input_ids == 0] == IGNORED).all()
    assert (batch.labels[batch.position_ids == 0] == IGNORED).all()
    labelled = batch.labels != IGNORED
    assert (batch.labels[labelled] == batch.input_ids[labelled]).all()
    assert batch.labelled_tokens == sum(label != IGNORED for _, labels in rows for label in labels[1:])
    tokens = sorted(token for ids, _ in rows for token in ids)
    assert sorted(batch.input_ids[batch.input_ids != 0].tolist()) == tokens
    # A document boundary is where positions do not go up by one: one for each row, and one for padding.
    steps = np.diff(batch.position_ids, axis=1, prepend=-2)
    padded = sum(sum(len(rows[row][0]) for row in sequence) < capacity + extra for sequence in sequences)
    assert int((steps != 1).sum()) == len(rows) + padded


def test_collation_by_example():
    rows: list[Row] = [([2, 7, 8], [IGNORED, 7, 8]), ([2, 9], [2, 9]), ([2, 3, 4], [IGNORED, IGNORED, 4])]
    batch = collate(rows, [[0, 1], [2]], pad_id=0)
    assert batch.input_ids.tolist() == [[2, 7, 8, 2, 9], [2, 3, 4, 0, 0]]
    assert batch.labels.tolist() == [[-100, 7, 8, -100, 9], [-100, -100, 4, -100, -100]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 0, 1]]


def test_a_sequence_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="at most 2 fit"):
        collate([([1, 2, 3], [1, 2, 3])], [[0]], pad_id=0, length=2)
