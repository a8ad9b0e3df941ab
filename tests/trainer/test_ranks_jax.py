"""What the processes of backend keras tell each other: everything arrives as it was, and nothing of it is code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gemmatune_trainer.errors import AccessDenied, Interrupted, TrainerError, kinds
from gemmatune_trainer.ranks_jax import heard, said


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        [0.1, 1e-300, float("inf")],
        ["train", [40, 20, "{}"]],
        [["adapter", [3, 4], "float32"]],
        {"a": [1, None]},
        "\N{ROCKET} \u2028",
    ],
)
def test_plain_values(value: Any) -> None:
    assert heard(said(value)) == value


def test_a_tuple_becomes_a_list_and_a_numpy_number_a_number() -> None:
    assert heard(said(("generate", ([1, 2], np.int32(3))))) == ["generate", [[1, 2], 3]]


def test_an_image() -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    found = heard(said(("generate", (image,))))[1][0]
    assert found.dtype == image.dtype
    assert np.array_equal(found, image)


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_an_error_ends_the_others_as_it_ends_rank_0(kind: type[TrainerError]) -> None:
    error, crashed = heard(said((kind("gone", "look", 7, 2), False)))
    assert type(error) is kind
    assert (error.message, error.remedy, error.step, error.sequences, crashed) == ("gone", "look", 7, 2, False)


def test_all_kinds_are_known() -> None:
    assert {AccessDenied, Interrupted} <= set(kinds())


def test_nothing_else_is_said() -> None:
    with pytest.raises(TypeError, match="processes tell each other no set"):
        said({1, 2})
