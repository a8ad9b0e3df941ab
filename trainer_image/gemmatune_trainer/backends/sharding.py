"""Which rows of a batch each host of a mesh with the axes data and model gives, and how they are divided."""

from __future__ import annotations

from gemmatune_api.sharding import DATA, Spec


def of_rows(dimensions: int) -> Spec:
    """Activations and batches: their first dimension is divided along data."""
    return (DATA, *(None,) * (dimensions - 1))


def rows_of_host(rows: int, model: int, hosts: int, host: int) -> slice | None:
    """The rows of a batch that one of several hosts gives: those of its own chips, where each chip has rows of its own.

    None: every host gives the whole batch. So it is where chips along model share rows: PyTorch/XLA deals a host's
    share out chip by chip, whatever the mesh says (`minibatch`).
    """
    if hosts == 1 or model > 1:
        return None
    each = rows // hosts
    return slice(host * each, (host + 1) * each)
