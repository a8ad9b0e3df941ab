"""What one chip holds where backend xla divides a model over a mesh of data x model chips.

Weights, gradients and optimizer state lie by the rule of `sharding`: vectors, the small matrices of an adapter and what
is no matrix (fused experts) are whole on every chip. What autograd keeps is counted as in `memory`.
"""

from __future__ import annotations

from functools import lru_cache

from gemmatune_api import memory, memory_mesh, sharding
from gemmatune_api.catalog import GemmaModel, target_names
from gemmatune_api.memory import Setting
from gemmatune_api.memory_mesh import Mesh
from gemmatune_api.status import PlanMemory


def divided(model: GemmaModel, mesh: Mesh) -> int:
    """Weights of the text decoder that one chip holds."""
    total = sharding.held("embed_tokens.weight", (model.vocab, model.hidden), *mesh)
    if model.ple_width:
        shape = (model.ple_vocab, model.layers * model.ple_width)
        total += sharding.held("embed_tokens_per_layer.weight", shape, *mesh)
    for matrix in model.matrices():
        shape = (matrix.outputs, matrix.inputs)
        total += matrix.count * sharding.held(f"layers.{matrix.name}.weight", shape, *mesh)
    return total + model.norms + model.expert_weights


def trained(model: GemmaModel, setting: Setting, mesh: Mesh) -> int:
    """Trained weights that one chip holds."""
    if setting.method == "full":
        return divided(model, mesh)
    names, total = frozenset(target_names(setting.targets)), 0
    for matrix in model.matrices():
        if matrix.name.rsplit(".", 1)[-1] not in names:
            continue
        first = sharding.held(f"{matrix.name}.lora_A.default.weight", (setting.rank, matrix.inputs), *mesh)
        second = sharding.held(f"{matrix.name}.lora_B.default.weight", (matrix.outputs, setting.rank), *mesh)
        total += matrix.count * (first + second + (matrix.outputs if setting.dora else 0))
    return total


def gradients(model: GemmaModel, setting: Setting, mesh: Mesh) -> int:
    """Bytes of a step's gradients before and after a pass is added; a trained head has another before it joins."""
    head = 4 * memory_mesh.part(model.vocab, mesh[1]) * model.hidden if setting.method == "full" else 0
    return 2 * 4 * trained(model, setting, mesh) + head


def gathered(model: GemmaModel, setting: Setting, mesh: Mesh) -> int:
    """Bytes that are whole along data for a moment; with full tuning also a layer's gradients before they are summed.

    Small matrices of an adapter are there whole anyway.
    """
    found = memory_mesh.gathered(model, setting, mesh)
    if found and setting.method == "full":
        found += (setting.activation_bytes + 4) * (model.linear // model.layers // mesh[1])
    return found


def optimizer_state(model: GemmaModel, setting: Setting, mesh: Mesh) -> int:
    """Bytes of the optimizer's state: AdamW's lies as the weights do, Adafactor's rows and columns on every chip."""
    if setting.optimizer == "adafactor":
        return memory.optimizer_state(model, setting)
    return 2 * 4 * trained(model, setting, mesh)


@lru_cache(maxsize=4096)
def estimate(model: GemmaModel, setting: Setting, mesh: Mesh, capacity: int) -> PlanMemory:
    """Memory of one chip by purpose. `setting.rows` are those of a group of chips along data."""
    chips = mesh[0] * mesh[1]
    own = trained(model, setting, mesh)
    wide = 4 if setting.method == "full" or setting.precision == "fp32" else 2
    adapter = 0 if setting.method == "full" else 4 * own
    weights = wide * (divided(model, mesh) + model.towers // chips) + adapter + gathered(model, setting, mesh)
    held, optimizer = gradients(model, setting, mesh), optimizer_state(model, setting, mesh)
    head = memory.logits(model, setting)
    kept = memory_mesh.activations(memory_mesh.narrowed(model, mesh), setting, own)
    update = 4 * own if setting.optimizer == "adamw_torch" else 0  # AdamW's second moment, made anew
    kept = max(kept, update - head)
    rest = memory.overhead(model, setting)
    return memory.summed(
        capacity,
        weights=weights,
        gradients=held,
        optimizer=optimizer,
        activations=kept,
        logits=head,
        overhead=rest,
    )
