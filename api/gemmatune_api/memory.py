"""What one device holds while a Gemma is tuned, as a sum of named physical quantities in bytes.

No quantity is fitted to a model: each follows from the shape, the setting and how the trainer works. Bytes per token of
the activations are those that autograd really keeps (tests/trainer/test_fit_shapes.py counts them).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from gemmatune_api.catalog import GemmaModel, target_names
from gemmatune_api.spec import MethodKind
from gemmatune_api.status import PlanMemory

MIB = 1024**2
GIB = 1024**3

HEAD_CHUNK = 256
"""Labelled positions whose logits exist at a time."""
WIDE_LOGITS = 1 << 21
"""Logits of a chunk that are in fp32 at a time."""
OWN_PASSES = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text"})
"""Families whose frozen norms and feed-forward blocks our trainer computes by passes of its own."""
NF4_BLOCK = 64
"""Weights that share a quantisation constant (bitsandbytes)."""
ABSMAX_BLOCK = 256
"""Quantisation constants that share a second constant (double quantisation)."""
CUDA_CONTEXT = 512 * MIB
"""CUDA context, cuBLAS and kernels: device memory that is no tensor."""
LOADING_SHARE = 0.5
"""Segments that the CUDA allocator keeps from loading, as a share of the 16-bit embedding, its largest block.

Read off twelve measured loads of seven generations (tests/unit/test_fit_measurements.py); all lie within 10%."""
RUNTIME = 1_340 * MIB
"""Resident size of Python with torch, transformers, PEFT, TRL and Gemma's tokenizer before the weights (measured)."""
HEAP_HOLES = 0.4
"""On a CPU: freed memory that the C library cannot give back, as a share of what all layers keep without checkpointing
(measured with it and without: every layer's tensors pass through the heap either way)."""
GPU_HOST_RUNTIME = 4 * GIB
"""Host memory of a process that uses CUDA: the libraries, pinned buffers and the runtime."""
LARGEST_SHARD = 5 * GIB
"""Largest file of a published checkpoint: what loading holds in host memory at a time."""
STATE_8BIT = 1 + 4 / 256
"""Bytes of one 8-bit optimizer state: the value and its share of a block's constant (bitsandbytes)."""

Device = Literal["cuda", "cpu", "tpu"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the memory of one device depends on.

    `rows` rows of `length` tokens pass at once, each attending to itself. `all_logits`: the head is computed at every
    position at once, and activations are kept as transformers and PEFT do, as trainers other than ours do.
    """

    method: MethodKind
    rows: int
    length: int
    checkpointing: bool
    rank: int = 8
    targets: str | tuple[str, ...] = "all-linear"
    """A preset or the names of modules."""
    dora: bool = False
    optimizer: str = "adamw_torch"
    precision: Literal["bf16", "fp32"] = "bf16"
    bits: Literal[4, 8] = 4
    double_quant: bool = True
    device: Device = "cuda"
    bf16: bool = True
    """Whether the device computes in bfloat16; otherwise activations are fp32."""
    shards: int = 1
    """Devices among which weights and optimizer state are divided."""
    all_logits: bool = False
    images: bool = False
    """Whether each row has an image, whose tokens are part of `length`."""

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass."""
        return self.rows * self.length

    @property
    def activation_bytes(self) -> int:
        """Bytes of one number of an activation."""
        return 2 if self.precision == "bf16" and self.bf16 else 4


def trainable(model: GemmaModel, setting: Setting) -> int:
    """Weights that are trained: the adapter's, or all of the text decoder's."""
    if setting.method == "full":
        return model.text_parameters
    return model.trainable(setting.rank, setting.targets, dora=setting.dora)


def trained(model: GemmaModel, setting: Setting, *, keras: bool) -> tuple[int, int | None]:
    """Weights that are trained, and those of the adapter's file where these are others: Keras's adapters differ."""
    if keras and setting.method == "lora":
        return model.keras_lora_parameters(setting.rank, target_names(setting.targets))
    return trainable(model, setting), None


def quantised_bytes(bits: int, double_quant: bool = True) -> float:
    """Bytes of one quantised weight with its share of the constants: 0.516 for double-quantised NF4."""
    if bits == 8:
        return 1 + 4 / 4096  # one fp32 constant per row of a matrix, whose rows are thousands of weights long
    absmax = 1 + 4 / ABSMAX_BLOCK if double_quant else 4
    return bits / 8 + absmax / NF4_BLOCK


def base_weights(model: GemmaModel, setting: Setting) -> int:
    """Bytes of the base: 16 bit (fp32 under `full` and fp32), linear modules quantised under qlora."""
    wide = 4 if setting.method == "full" or setting.precision == "fp32" else 2
    if setting.method != "qlora":
        return model.parameters * wide
    rest = (model.parameters - model.quantisable) * wide
    return int(rest + model.quantisable * quantised_bytes(setting.bits, setting.double_quant))


def adapter_weights(model: GemmaModel, setting: Setting) -> int:
    """Bytes of the adapter, which is fp32."""
    return 0 if setting.method == "full" else 4 * trainable(model, setting)


def own_adapter(setting: Setting) -> bool:
    """Whether the adapted layers have our trainer's passes, which keep an input once and cast only the adapter."""
    return setting.method != "full" and not setting.all_logits and not setting.dora and setting.device != "tpu"


def eager(model: GemmaModel, setting: Setting) -> bool:
    """Whether attention keeps its scores: where the model needs it, and on a TPU always."""
    return model.rules.attention == "eager" or setting.device == "tpu"


def autocast_copies(model: GemmaModel, setting: Setting) -> int:
    """Bytes of the 16-bit copies that autocast keeps of fp32 weights; divided masters are gathered as such."""
    divided = setting.method == "full" and setting.shards > 1 and setting.device == "cuda"
    if divided or own_adapter(setting):
        return 0
    return 2 * trainable(model, setting) if setting.activation_bytes == 2 else 0


def loading_reserve(model: GemmaModel, setting: Setting) -> int:
    """Bytes that stay reserved from loading on a GPU."""
    return int(2 * model.embedding * LOADING_SHARE) if setting.device == "cuda" else 0


def gradients(model: GemmaModel, setting: Setting) -> int:
    """Bytes of the gradients, which are fp32; a trained head has a whole one before it joins the embedding's."""
    head = 4 * model.embedding if setting.method == "full" else 0
    return 4 * trainable(model, setting) // setting.shards + head


def gathered(model: GemmaModel, setting: Setting) -> int:
    """Bytes that FSDP2 makes whole for a moment on a GPU: the embedding, a layer, and the next one on its way.

    With full tuning, which computes in 16 bit, also a layer's gradients before they are summed in fp32.
    """
    if setting.shards == 1 or setting.device != "cuda":
        return 0
    layer = model.quantisable // model.layers
    if setting.method == "full":
        width = setting.activation_bytes
        return width * (model.embedding + 2 * layer) + (width + 4) * layer
    return (4 if setting.precision == "fp32" else 2) * (model.embedding + 2 * layer)


def step_workspace(model: GemmaModel, setting: Setting) -> int:
    """Bytes that an optimizer step takes for a moment, when the activations are gone: torch's AdamW a second moment."""
    if setting.device == "cpu" or setting.optimizer != "adamw_torch":
        return 0
    return 4 * trainable(model, setting)


def optimizer_state(model: GemmaModel, setting: Setting) -> int:
    """Bytes of the optimizer state; a paged optimizer counts as on the device."""
    count = trainable(model, setting)
    if setting.optimizer == "adafactor":
        return _factored_state(model, setting)
    return int(count * 2 * (STATE_8BIT if setting.optimizer.endswith("8bit") else 4))


def _factored_state(model: GemmaModel, setting: Setting) -> int:
    """Adafactor keeps one number per row and one per column of each matrix, fp32."""
    names = frozenset(target_names(setting.targets))
    total = 0
    for matrix in model.matrices():
        if setting.method == "full":
            total += matrix.count * (matrix.inputs + matrix.outputs)
        elif matrix.name in names:
            total += matrix.count * (matrix.inputs + matrix.outputs + 2 * setting.rank)
    return 4 * (total + (model.vocab + model.hidden + model.norms if setting.method == "full" else 0))


def layer_activations(model: GemmaModel, setting: Setting, layer: int) -> int:
    """Bytes that one layer keeps for its backward pass, without checkpointing.

    Norms keep their input in fp32 (trained ones also what they make of it), adapted modules their input, attention its
    queries, keys, values and output, the feed-forward block three tensors of its width. Our own passes keep a norm's
    input as it came, and two tensors of the feed-forward block.
    """
    width = setting.activation_bytes
    kv_heads, head_dim = model.heads_of(layer)
    query, key = model.heads * head_dim, kv_heads * head_dim
    ffn = model.ffn_of(layer)
    own = setting.method != "full" and not setting.all_logits and model.family in OWN_PASSES
    own = own and setting.device != "tpu"
    norm = width if own else 4
    per_token = norm * model.norms_per_layer * model.hidden
    if model.qk_norm:
        per_token += norm * (query + key)
    if setting.method == "full":
        per_token *= 2  # a norm's weights are trained: its normalised input is kept too
    per_token += 2 * width * (query + key) + (2 if own else 3) * width * ffn
    per_token += _linear_inputs(model, setting, query, ffn)
    if model.experts:
        per_token += 12 * model.hidden + 12 * model.experts
        per_token += model.experts_per_token * width * (3 * model.hidden + 4 * model.expert_ffn)
    if model.ple_width:
        per_token += 4 * model.hidden + 3 * width * model.ple_width
    if model.altup_inputs:
        per_token += model.altup_inputs * model.hidden * (3 * width + 4)
    return setting.tokens * per_token + _scores(model, setting, layer)


def _scores(model: GemmaModel, setting: Setting, layer: int) -> int:
    """Bytes that attention keeps beside its inputs and output.

    Eager attention keeps its scores. SDPA keeps its mask as numbers: ours has one only where rows are longer than the
    sliding window, for all rows of one length.
    """
    width = setting.activation_bytes
    if eager(model, setting):
        copies = 4 + (width if width == 2 else 0) + (width if model.attn_softcapping else 0)
        return setting.tokens * setting.length * model.heads * copies
    if setting.all_logits:
        return setting.tokens * setting.length * width
    window = 0 if model.is_global(layer) else model.sliding_window or 0
    return setting.length**2 * width if 0 < window < setting.length else 0


def _linear_inputs(model: GemmaModel, setting: Setting, query: int, ffn: int) -> int:
    """Bytes per token of the linear modules' inputs that are kept to train them."""
    width = setting.activation_bytes
    if setting.method == "full":
        return width * (2 * model.hidden + query + ffn)
    names = frozenset(target_names(setting.targets))
    sizes = {"q_proj": model.hidden, "k_proj": model.hidden, "v_proj": model.hidden, "o_proj": query}
    sizes |= {"gate_proj": model.hidden, "up_proj": model.hidden, "down_proj": ffn}
    total = width * setting.rank * len(names & sizes.keys())  # what each A gives to its B
    if width == 2 and not own_adapter(setting):  # autocast copies the input of each
        return total + width * sum(size for name, size in sizes.items() if name in names)
    shared = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]
    return total + width * sum(sizes[group[0]] for group in shared if names & set(group))


def workspace(model: GemmaModel, setting: Setting) -> int:
    """Bytes alive for a moment in the backward pass of the widest layer, and the matrix that qlora restores there."""
    widest = max(model.ffn_of(layer) for layer, _ in model.layer_kinds)
    width = setting.activation_bytes
    gradients = setting.tokens * ((4 + 3 * width) * widest + 8 * model.hidden)
    if eager(model, setting):
        gradients += setting.tokens * setting.length * model.heads * (4 + width)
    restored = 0
    if setting.method == "qlora":
        restored = width * max(matrix.inputs * matrix.outputs for matrix in model.matrices())
    return gradients + restored


def masks(model: GemmaModel, setting: Setting) -> int:
    """Bytes of the attention masks that all layers share: one for global and one for sliding layers."""
    kinds = 2 if model.sliding_window else 1
    width = setting.activation_bytes if eager(model, setting) else 1
    each = setting.all_logits or setting.device == "tpu"  # a mask for every sequence of documents
    return (setting.tokens if each else setting.length) * setting.length * kinds * width


def activations(model: GemmaModel, setting: Setting) -> int:
    """Bytes kept for the backward pass, and what its workspace takes beyond the logits, which are free by then.

    Checkpointing keeps the layers' inputs and one layer at a time.
    """
    per_layer = [(layer_activations(model, setting, layer), count) for layer, count in model.layer_kinds]
    all_layers = kept = sum(size * count for size, count in per_layer)
    if setting.checkpointing:
        streams = max(1, model.altup_inputs)
        width = 4 if setting.method == "full" else setting.activation_bytes  # fp32 masters make fp32 sums
        inputs = setting.tokens * model.hidden * streams * width * model.layers
        kept = min(kept, inputs + max(size for size, _ in per_layer))
    kept += masks(model, setting) + autocast_copies(model, setting)
    if setting.device == "cpu":
        kept += int(all_layers * HEAP_HOLES)
    return kept + max(0, workspace(model, setting) - logits(model, setting))


def logits(model: GemmaModel, setting: Setting) -> int:
    """Bytes of logits, their soft-max and their gradient at the positions of one chunk, and of the hidden gradients.

    Ours, at 256 positions at a time: logits, which become their own gradient, a few rows of them at a time in fp32 with
    their log-soft-max; a soft cap adds three fp32 tensors. `all_logits`: the fp32 copy and its gradient at every
    position.
    """
    width = setting.activation_bytes
    hidden = setting.tokens * model.hidden * (width + 4)
    if setting.all_logits:
        return setting.tokens * model.vocab * (width + 4 + 4) + hidden
    if setting.device == "tpu":  # 256 positions of every sequence, in fp32 with what the soft-max makes of them
        chunk = setting.rows * min(HEAD_CHUNK, setting.length) * model.vocab
        return chunk * (width + 12 + (4 if model.final_softcapping else 0)) + hidden
    chunk = min(HEAD_CHUNK, setting.tokens) * model.vocab
    return chunk * width + min(WIDE_LOGITS, chunk) * (8 + (12 if model.final_softcapping else 0)) + hidden


def towers(model: GemmaModel, setting: Setting) -> int:
    """Bytes that the vision tower takes for a moment before the decoder has kept anything."""
    if model.vision is None or not setting.images:
        return 0
    return model.vision.moment(setting.rows, setting.activation_bytes)


def mapped_files(model: GemmaModel, setting: Setting) -> int:
    """Bytes of the checkpoint's pages that stay mapped on a CPU beside the weights made from them.

    Weights of the files' own width are those pages; quantised ones and ones of another width are not.
    """
    if setting.device != "cpu":
        return 0
    wide = 4 if setting.method == "full" or setting.precision == "fp32" else 2
    if wide != model.stored_bytes:
        return model.stored_bytes * model.parameters
    return model.stored_bytes * model.quantisable if setting.method == "qlora" else 0


def overhead(model: GemmaModel, setting: Setting) -> int:
    """Bytes of what is no tensor: the CUDA context and allocator, or on a CPU the runtime and the mapped files."""
    if setting.device == "cpu":
        return RUNTIME + mapped_files(model, setting)
    return CUDA_CONTEXT + loading_reserve(model, setting)


def summed(capacity: int, **purposes: int) -> PlanMemory:
    """Bytes by purpose, with their sum."""
    return PlanMemory(**purposes, total=sum(purposes.values()), capacity=capacity)


@lru_cache(maxsize=4096)
def estimate(model: GemmaModel, setting: Setting, capacity: int) -> PlanMemory:
    """Memory of one device by purpose."""
    weights = (base_weights(model, setting) + adapter_weights(model, setting)) // setting.shards
    weights += gathered(model, setting)
    held = gradients(model, setting)
    optimizer = optimizer_state(model, setting) // setting.shards
    kept, head, rest = activations(model, setting), logits(model, setting), overhead(model, setting)
    kept = max(kept, towers(model, setting) - head, step_workspace(model, setting) // setting.shards - head)
    return summed(
        capacity,
        weights=weights,
        gradients=held,
        optimizer=optimizer,
        activations=kept,
        logits=head,
        overhead=rest,
    )
