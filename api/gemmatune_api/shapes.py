"""What the numbers of a Gemma decoder imply: its matrices, its weights and the memory they take at a given width."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_TARGETS = ("gate_proj", "up_proj", "down_proj")
LINEAR_TARGETS = ATTENTION_TARGETS + MLP_TARGETS
"""Names of the linear modules of every Gemma decoder layer, by transformers' names."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """`count` equal linear modules of the decoder: weight (outputs, inputs), no bias."""

    name: str
    inputs: int
    outputs: int
    count: int = 1

    @property
    def parameters(self) -> int:
        """Weights of all of them."""
        return self.inputs * self.outputs * self.count


_MOST_LAYERS = 10_000
LARGEST = 2**31
"""No number of a shape reaches it."""


def is_size(value: object) -> bool:
    """Whether a value is a whole number that something of a model can measure."""
    return isinstance(value, int) and 0 < value < LARGEST


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """The numbers of a text decoder, in transformers' terms.

    `global_every` n means that every n-th layer attends to everything and the others to `sliding_window` tokens
    (0: all layers attend to everything). `shared_kv_layers` last layers reuse the keys and values of earlier ones.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    norms_per_layer: int = 4
    qk_norm: bool = False
    sliding_window: int | None = None
    global_every: int = 0
    global_head_dim: int | None = None
    global_kv_heads: int | None = None
    value_is_key: bool = False
    """Global layers have no v_proj: values are the keys before their norm (Gemma 4)."""
    shared_kv_layers: int = 0
    wide_shared_ffn: bool = False
    """Layers with shared keys and values have a feed-forward block twice as wide (Gemma 4 E2B)."""
    layer_scalar: bool = False
    ple_width: int = 0
    """Width of the per-layer embeddings; 0: none."""
    ple_vocab: int = 262144
    experts: int = 0
    expert_ffn: int = 0
    experts_per_token: int = 0
    altup_inputs: int = 0
    """Parallel residual streams (Gemma 3n); 0: none."""
    laurel_rank: int = 0
    attn_softcapping: float | None = None
    final_softcapping: float | None = None

    @property
    def is_possible(self) -> bool:
        """Whether a planner can count with these numbers: they may be anybody's, and it goes through all layers."""
        sizes = (self.hidden, self.heads, self.kv_heads, self.head_dim, self.ffn, self.vocab, self.ple_vocab)
        some = (
            self.sliding_window, self.global_every, self.global_head_dim, self.global_kv_heads, self.shared_kv_layers,
            self.ple_width, self.experts, self.expert_ffn, self.experts_per_token, self.altup_inputs, self.laurel_rank,
        )  # fmt: skip
        caps = (self.attn_softcapping, self.final_softcapping)
        return (
            0 < self.layers <= _MOST_LAYERS
            and all(is_size(value) for value in sizes)
            and all(value in (None, 0) or is_size(value) for value in some)
            and all(value is None or isinstance(value, int | float) for value in caps)
        )

    def is_global(self, layer: int) -> bool:
        """Whether a layer (from 0) attends to everything."""
        return not self.global_every or (layer + 1) % self.global_every == 0 or layer == self.layers - 1

    def shares_kv(self, layer: int) -> bool:
        """Whether a layer (from 0) has no key and value weights of its own."""
        return layer >= self.layers - self.shared_kv_layers

    def heads_of(self, layer: int) -> tuple[int, int]:
        """(key-value heads, head dimension) of a layer."""
        if not self.is_global(layer):
            return self.kv_heads, self.head_dim
        return self.global_kv_heads or self.kv_heads, self.global_head_dim or self.head_dim

    def ffn_of(self, layer: int) -> int:
        """Width of a layer's dense feed-forward block."""
        return self.ffn * (2 if self.wide_shared_ffn and self.shares_kv(layer) else 1)

    def layer_matrices(self, layer: int) -> list[Matrix]:
        """The linear modules of one layer."""
        kv_heads, head_dim = self.heads_of(layer)
        query, key, ffn = self.heads * head_dim, kv_heads * head_dim, self.ffn_of(layer)
        found = [Matrix("q_proj", self.hidden, query)]
        if not self.shares_kv(layer):
            found.append(Matrix("k_proj", self.hidden, key))
            if not (self.value_is_key and self.is_global(layer)):
                found.append(Matrix("v_proj", self.hidden, key))
        found += [
            Matrix("o_proj", query, self.hidden),
            Matrix("gate_proj", self.hidden, ffn),
            Matrix("up_proj", self.hidden, ffn),
            Matrix("down_proj", ffn, self.hidden),
        ]
        if self.ple_width:
            found.append(Matrix("per_layer_input_gate", self.hidden, self.ple_width))
            found.append(Matrix("per_layer_projection", self.ple_width, self.hidden))
        if self.experts:
            found.append(Matrix("router.proj", self.hidden, self.experts))
        if self.laurel_rank:
            found.append(Matrix("linear_left", self.hidden, self.laurel_rank))
            found.append(Matrix("linear_right", self.laurel_rank, self.hidden))
        if self.altup_inputs:
            found.append(Matrix("correction_coefs", self.altup_inputs, self.altup_inputs))
            found.append(Matrix("prediction_coefs", self.altup_inputs, self.altup_inputs**2))
            found.append(Matrix("modality_router", self.hidden, self.altup_inputs))
        return found

    def matrices(self) -> tuple[Matrix, ...]:
        """All linear modules of the decoder, equal ones counted together; not the embeddings, not fused experts."""
        return self._matrices

    @cached_property
    def _matrices(self) -> tuple[Matrix, ...]:
        counts: dict[Matrix, int] = {}
        for layer in range(self.layers):
            for matrix in self.layer_matrices(layer):
                counts[matrix] = counts.get(matrix, 0) + 1
        if self.ple_width:
            counts[Matrix("per_layer_model_projection", self.hidden, self.layers * self.ple_width)] = 1
        if self.altup_inputs:
            counts[Matrix("altup_projections", self.hidden, self.hidden)] = 2 * (self.altup_inputs - 1)
        return tuple(Matrix(m.name, m.inputs, m.outputs, count) for m, count in counts.items())

    @cached_property
    def layer_kinds(self) -> tuple[tuple[int, int], ...]:
        """(a layer, how many are like it) for every kind of layer: alike are those of equal heads and width."""
        kinds: dict[tuple[int, int, int], list[int]] = {}
        for layer in range(self.layers):
            kinds.setdefault((*self.heads_of(layer), self.ffn_of(layer)), []).append(layer)
        return tuple((layers[0], len(layers)) for layers in kinds.values())

    @property
    def embedding(self) -> int:
        """Weights of the token embedding, which is also the head."""
        return self.vocab * self.hidden

    @property
    def ple(self) -> int:
        """Weights of the per-layer embedding table."""
        return self.ple_vocab * self.layers * self.ple_width

    @cached_property
    def linear(self) -> int:
        """Weights of all linear modules: what quantisation shrinks."""
        return sum(matrix.parameters for matrix in self.matrices())

    @property
    def expert_weights(self) -> int:
        """Weights of the fused experts, which are no linear modules: quantisation leaves them in 16 bit."""
        return self.layers * self.experts * 3 * self.hidden * self.expert_ffn

    @cached_property
    def norms(self) -> int:
        """Norm weights and other vectors."""
        total = self.hidden + (self.ple_width if self.ple_width else 0)
        for layer in range(self.layers):
            head_dim = self.heads_of(layer)[1]
            total += self.norms_per_layer * self.hidden
            if self.qk_norm:
                total += head_dim * (1 if self.shares_kv(layer) else 2)
            total += self.hidden * (1 if self.ple_width else 0) + (1 if self.layer_scalar else 0)
            if self.experts:
                total += 4 * self.hidden + self.experts  # three norms, the router's scale and a scale per expert
            total += (self.hidden if self.laurel_rank else 0) + (2 * self.hidden if self.altup_inputs else 0)
        return total

    @property
    def text_parameters(self) -> int:
        """Weights of the text decoder, as transformers loads it."""
        return self.embedding + self.ple + self.linear + self.expert_weights + self.norms

    @cached_property
    def unused_kv(self) -> int:
        """Key and value weights that a checkpoint stores for layers which share them, and transformers drops."""
        total = 0
        for layer in range(self.layers):
            if self.shares_kv(layer):
                kv_heads, head_dim = self.heads_of(layer)
                total += 2 * self.hidden * kv_heads * head_dim + (head_dim if self.qk_norm else 0)
        return total

    def lora_parameters(self, rank: int, targets: Iterable[str], *, dora: bool = False) -> int:
        """Weights of a LoRA adapter of the given rank on the named modules of every layer (PEFT's count)."""
        names = frozenset(targets)
        total = 0
        for matrix in self.matrices():
            if matrix.name.rsplit(".", 1)[-1] in names:
                magnitude = matrix.outputs if dora else 0
                total += matrix.count * (rank * (matrix.inputs + matrix.outputs) + magnitude)
        return total

    def keras_lora_parameters(self, rank: int, targets: Iterable[str]) -> tuple[int, int]:
        """Weights of the same adapter in KerasHub's shape, and of that as an adapter for PEFT.

        Keras shares one B among the heads of a query, key or value projection: fewer weights in B and more in A. PEFT's
        form of it has the rank heads x r.
        """
        names = frozenset(targets)
        trained = exported = 0
        for matrix in self.matrices():
            name = matrix.name.rsplit(".", 1)[-1]
            if name not in names:
                continue
            heads = matrix.outputs // self.head_dim if name in ("q_proj", "k_proj", "v_proj") else 1
            trained += matrix.count * rank * (heads * matrix.inputs + matrix.outputs // heads)
            exported += matrix.count * rank * heads * (matrix.inputs + matrix.outputs)
        return trained, exported


def siglip_parameters(
    *, hidden: int, layers: int, ffn: int, patch: int, image: int, text_hidden: int, projector_norm: bool
) -> int:
    """Weights of a SigLIP vision tower and of its projection into the text decoder.

    Gemma 3 projects without bias behind a norm (`projector_norm`), PaliGemma with a bias and no norm.
    """
    embeddings = 3 * patch * patch * hidden + hidden + (image // patch) ** 2 * hidden
    layer = 4 * (hidden * hidden + hidden) + 4 * hidden + 2 * hidden * ffn + ffn + hidden
    projection = hidden * text_hidden + (hidden if projector_norm else text_hidden)
    return embeddings + layers * layer + 2 * hidden + projection
