"""Which rows each host of a slice gives, and how weights are divided: rules over numbers, without any device."""

from __future__ import annotations

import pytest

from gemmatune_api.sharding import of_weight
from gemmatune_trainer.backends.sharding import rows_of_host


@pytest.mark.parametrize(("data", "hosts"), [(8, 2), (16, 4), (8, 8)])
def test_a_host_gives_the_rows_of_its_chips(data: int, hosts: int) -> None:
    """Chip by chip, as PyTorch/XLA deals them out: chip number i of all gets its three rows of the batch."""
    rows, chips = 3 * data, data // hosts
    dealt = []
    for host in range(hosts):
        mine = rows_of_host(rows, 1, hosts, host)
        assert mine is not None
        share = list(range(rows))[mine]
        each = len(share) // chips
        dealt += [share[chip * each : (chip + 1) * each] for chip in range(chips)]
    assert dealt == [list(range(3 * chip, 3 * chip + 3)) for chip in range(data)]


@pytest.mark.parametrize(("model", "hosts"), [(1, 1), (2, 1), (2, 2), (8, 4)])
def test_else_every_host_gives_the_whole_batch(model: int, hosts: int) -> None:
    assert all(rows_of_host(16, model, hosts, host) is None for host in range(hosts))


def test_weights_are_divided_where_they_can_be() -> None:
    assert of_weight("layers.0.self_attn.q_proj.weight", (64, 32), 4, 2) == ("model", "data")
    assert of_weight("layers.0.self_attn.o_proj.weight", (64, 32), 4, 2) == ("data", "model")
    assert of_weight("layers.0.self_attn.q_proj.weight", (7, 32), 4, 2) == (None, ("data", "model"))
    assert of_weight("norm.weight", (64,), 8, 1) == (None,)
