"""What one chip of a TPU slice holds where backend keras divides a model over a mesh of data x model chips.

Large matrices are divided along both axes, as far as their dimensions are divisible; an adapter with its gradients and
moments lies on every chip. Bytes of weights are exact; what autograd keeps is counted as in `memory`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from gemmatune_api import memory
from gemmatune_api.catalog import GemmaModel, target_names
from gemmatune_api.memory import Setting
from gemmatune_api.shapes import LINEAR_TARGETS
from gemmatune_api.status import PlanMemory

FINE, COARSE = 8, 128
"""Lengths of sequences are multiples of the one, above it of the other (lanes of a TPU)."""
HEAD_CHUNK = 128
"""Positions of every sequence whose logits exist at a time."""

Mesh = tuple[int, int]
"""Chips along data and along model."""


def padded_length(longest: int, limit: int) -> int:
    """Length of the sequences for rows of at most `longest` tokens: not above `limit`, rounded up."""
    wanted = max(1, min(longest, limit))
    step = FINE if wanted <= COARSE else COARSE
    return -(-wanted // step) * step


def part(size: int, chips: int) -> int:
    """What a chip has of a dimension that is divided among `chips`: all of it where it is not divisible."""
    return size // chips if size % chips == 0 else size


def divided(model: GemmaModel, mesh: Mesh) -> int:
    """Weights of the text decoder that one chip holds.

    Matrices beside attention and feed-forward block, which other generations have, stay whole.
    """
    data, along = mesh
    hidden = part(model.hidden, data)
    units = {"q_proj": model.heads, "o_proj": model.heads, "k_proj": model.kv_heads, "v_proj": model.kv_heads}
    total = part(model.vocab, along) * hidden + model.norms + model.ple + model.expert_weights
    for matrix in model.matrices():
        if matrix.name not in LINEAR_TARGETS:
            total += matrix.parameters
            continue
        whole = matrix.inputs * matrix.outputs // model.hidden  # the dimension that is not the hidden one
        unit = units.get(matrix.name, whole)
        total += matrix.count * hidden * (whole // unit) * part(unit, along)
    return total


def narrowed(model: GemmaModel, mesh: Mesh) -> GemmaModel:
    """The model as one chip computes it: its part of the heads and of the feed-forward block."""
    _, along = mesh
    return replace(
        model,
        heads=part(model.heads, along),
        kv_heads=part(model.kv_heads, along),
        ffn=part(model.ffn, along),
    )


def gathered(model: GemmaModel, setting: Setting, mesh: Mesh) -> int:
    """Bytes of what is whole along data for a moment: the embedding, a layer, and the next one on its way."""
    if mesh[0] == 1:
        return 0
    layer = model.linear // model.layers // mesh[1]
    return setting.activation_bytes * (part(model.vocab, mesh[1]) * model.hidden + 2 * layer)


def logits(model: GemmaModel, setting: Setting) -> int:
    """Bytes of the logits of a chunk with their soft-max and gradient, in fp32, and of the hidden states' gradients."""
    chunk = setting.rows * min(HEAD_CHUNK, setting.length) * model.vocab
    hidden = setting.tokens * model.hidden * (setting.activation_bytes + 4)
    return chunk * (12 + (4 if model.final_softcapping else 0)) + hidden


def activations(narrow: GemmaModel, setting: Setting, trained: int) -> int:
    """Bytes kept for the backward pass, with 16-bit copies of the trained weights that this chip has."""
    copies = 2 * trained if setting.activation_bytes == 2 else 0
    return memory.activations(narrow, setting) - memory.autocast_copies(narrow, setting) + copies


@lru_cache(maxsize=4096)
def estimate(model: GemmaModel, setting: Setting, mesh: Mesh, capacity: int) -> PlanMemory:
    """Memory of one chip by purpose. `setting.rows` are those of a group of chips along data."""
    base = divided(model, mesh)
    wide = 4 if setting.method == "full" or setting.precision == "fp32" else 2
    if setting.method == "full":
        trained = base
        adapter = 0
    else:
        trained, _ = model.keras_lora_parameters(setting.rank, target_names(setting.targets))
        adapter = 4 * trained
    weights = wide * (base + model.towers) + adapter + gathered(model, setting, mesh)
    held = 2 * 4 * trained  # those of a pass, and their sum over the passes of a step
    head = logits(model, setting)
    kept = max(activations(narrowed(model, mesh), setting, trained), memory.towers(model, setting) - head)
    rest = memory.overhead(model, setting)
    return memory.summed(
        capacity,
        weights=weights,
        gradients=held,
        optimizer=2 * 4 * trained,
        activations=kept,
        logits=head,
        overhead=rest,
    )
