"""Whether a run fits its accelerator, and how it is cut into micro-batches: the planner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from gemmatune_api import (
    accelerators,
    changes_to_fit,
    memory,
    memory_devices,
    memory_mesh,
    mesh_remedies,
    pod_memory,
    scratch,
)
from gemmatune_api.catalog import GemmaModel
from gemmatune_api.defaults import DIVIDED_OPTIMIZERS, backend_of, total_steps
from gemmatune_api.layout import Layout, layout, layouts
from gemmatune_api.memory import GIB, Setting
from gemmatune_api.prices import Prices, per_hour, units
from gemmatune_api.spec import FineTuneSpec, QloraSpec
from gemmatune_api.status import Plan, PlanMemory, PlanMerge

Verdict = Literal["fits", "tight", "does not fit"]
Value = TypeVar("Value")

FITS_SHARE = 0.9
"""Share of the capacity up to which a run fits; from there to the capacity it is tight."""
ASSUMED_HOST = 8 * GIB
"""Host memory for which micro-batches are chosen on a CPU whose memory is unknown."""
HALF_SPEED_TOKENS = {"cuda": 512, "tpu": 512, "cpu": 72}
"""Tokens of a forward pass at which half of the top speed is reached (CPU: measured; others: cautious)."""
RECOMPUTE_SPEED = 0.75
"""Speed with gradient checkpointing: a second forward pass on top of a forward and a backward of twice its cost."""
ENOUGH = 0.95
"""Of the choices that reach this share of the best speed, the one with the least memory is taken."""
MOST_TOKENS = 16384
"""Tokens of a forward pass beyond which a larger micro-batch brings nothing."""
LOCAL_FILES = GIB
"""Disk for tokenizer, compile caches and logs."""
UNKNOWN_DATA = GIB
"""Disk for tokenised rows whose number is not known yet."""
MAX_REMEDIES = 3
MAX_NOTES = 8


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a run runs, as far as memory is concerned. `capacity` is that of one device in bytes, 0 if unknown."""

    device: memory.Device
    type: str
    capacity: int
    laid: Layout
    bf16: bool = True
    sharded: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Choice:
    """A way to cut the global batch, and what it takes."""

    setting: Setting
    memory: PlanMemory
    accumulation: int
    verdict: Verdict
    laid: Layout
    host_memory: int = 0
    host_capacity: int | None = None
    """What a pod gets beside its accelerators; None where that is not known."""

    @property
    def host_short(self) -> bool:
        """Whether a pod needs more host memory than it gets."""
        return self.host_capacity is not None and self.host_memory > self.host_capacity


def plan(
    spec: FineTuneSpec,
    model: GemmaModel,
    *,
    rows: int | None = None,
    longest: int | None = None,
    host_memory: int = 0,
    prices: Prices | None = None,
) -> Plan:
    """The plan of a resolved spec (`defaults.resolve`) for a model of the catalog.

    `rows` and `longest` (tokens) are what prepare counted, None before it; until then every row is taken as
    dataset.maxLength long. `host_memory` is that of a CPU node in bytes, 0 where unknown. The cost is that of the
    provisioning mode asked for.
    """
    place = _place(spec, host_memory)
    choice = _choose(spec, model, place, longest)
    place = replace(place, laid=choice.laid)
    trained, exported = memory.trained(model, choice.setting, keras=spec.backend == "keras")
    disk = _disk(spec, model, choice.setting, rows)
    mode = spec.provisioning.mode if spec.provisioning else None
    price = per_hour(prices or {}, place.type, mode)
    paid = units(spec.accelerator, place.laid.hosts, place.laid.chips)
    return Plan(
        backend=_set(spec.backend),
        method=spec.method,
        trainable_parameters=trained,
        exported_parameters=exported,
        hosts=place.laid.hosts,
        chips=place.laid.chips,
        sharded=choice.setting.shards > 1 if place.device == "cuda" and place.laid.chips > 1 else None,
        mesh=dict(zip(("data", "model"), place.laid.mesh, strict=True)) if place.laid.mesh else None,
        micro_batch_size=choice.setting.rows,
        accumulation=choice.accumulation,
        gradient_checkpointing=choice.setting.checkpointing,
        total_steps=total_steps(_set(spec.training), rows),
        memory=choice.memory,
        weights_by_bits=weights_by_bits(model),
        disk=disk,
        host_memory=choice.host_memory,
        host_capacity=choice.host_capacity,
        merge=_merge(spec, model, choice.setting, rows) if merges(spec) else None,
        verdict=choice.verdict,
        remedies=[] if choice.verdict == "fits" else _remedies(spec, model, place, choice, longest, host_memory),
        notes=_notes(spec, model, place, longest, disk),
        cost_per_hour=None if price is None else round(price * paid, 4),
    )


def weights_by_bits(model: GemmaModel) -> dict[str, int]:
    """Bytes of the base's weights as they are loaded with 32, 16, 8 and 4 bits (embeddings stay in 16 bit)."""
    kept = 2 * (model.parameters - model.quantisable)
    return {
        "32": 4 * model.parameters,
        "16": 2 * model.parameters,
        "8": int(kept + model.quantisable * memory.quantised_bytes(8)),
        "4": int(kept + model.quantisable * memory.quantised_bytes(4)),
    }


def row_length(spec: FineTuneSpec, model: GemmaModel, longest: int | None) -> int:
    """Tokens that every row is taken to have: the longest row, cut at dataset.maxLength.

    Before the data is read, dataset.maxLength or the model's context. The trainer does not cut at the context. Backend
    xla fills every sequence up to dataset.maxLength, backend keras up to the longest row, rounded up.
    """
    limit, wanted = _set(spec.dataset.max_length), longest or model.context_length
    if backend_of(spec) == "keras":
        return memory_mesh.padded_length(wanted, limit)
    return limit if backend_of(spec) == "xla" else max(1, min(limit, wanted))


def image_tokens(spec: FineTuneSpec, model: GemmaModel) -> int:
    """Tokens that the image of every row adds to those of its text, which dataset.maxLength counts alone."""
    return model.vision.tokens if model.vision is not None and spec.dataset.image_text is not None else 0


def _set(value: Value | None) -> Value:
    if value is None:
        raise ValueError("the spec is not resolved: call defaults.resolve first")
    return value


def _place(spec: FineTuneSpec, host_memory: int) -> _Place:
    accelerator, laid = spec.accelerator, layout(spec)
    if accelerator.gpu is not None:
        label = accelerator.gpu.type
        found = accelerators.gpu(label)
        if found is None:
            meant = " or ".join(accelerators.near(label))
            question = f" Did you mean {meant}?" if meant else ""
            return _Place("cuda", label, 0, laid, notes=(f"The memory of {label} is not known.{question}",))
        notes = () if found.bf16 else (f"{found.title} GPUs have no bf16: activations are fp32.",)
        return _Place("cuda", label, found.capacity, laid, found.bf16, notes=notes)
    if accelerator.tpu is not None:
        tpu = accelerators.tpu(accelerator.tpu.type)
        return _Place("tpu", accelerator.tpu.type, tpu.capacity if tpu else 0, laid)
    unknown = () if host_memory else ("The node's memory is not known: whether it fits was not checked.",)
    return _Place("cpu", "cpu", host_memory, laid, notes=unknown)


def _choose(spec: FineTuneSpec, model: GemmaModel, place: _Place, longest: int | None) -> _Choice:
    """How the devices are used best, and whether the pods have the host memory for it."""
    choice = _of_devices(spec, model, place, longest)
    if place.device == "cpu":
        return replace(choice, host_memory=choice.memory.total)
    need = pod_memory.needed(model, choice.setting, choice.laid.per_host)
    choice = replace(choice, host_memory=need, host_capacity=pod_memory.capacity(spec, need))
    return replace(choice, verdict="does not fit") if choice.host_short else choice


def _of_devices(spec: FineTuneSpec, model: GemmaModel, place: _Place, longest: int | None) -> _Choice:
    """On several GPUs each holds a copy (DDP); full tuning, and LoRA that does not fit so, divide the model (FSDP2).

    Of the meshes that are possible it takes the first that fits, else the one with the least memory.
    """
    if place.laid.mesh is not None:
        found: list[_Choice] = []
        for laid in layouts(spec):
            found.append(_cut(spec, model, replace(place, laid=laid), longest))
            if found[-1].verdict == "fits":
                return found[-1]
        return min(found, key=lambda choice: choice.memory.total)
    if place.device != "cuda" or place.laid.chips == 1 or spec.method == "qlora":
        return _cut(spec, model, place, longest)
    copies = _cut(spec, model, place, longest)
    divides = _set(_set(spec.training).optimizer) in DIVIDED_OPTIMIZERS and not (spec.lora and spec.lora.dora)
    if spec.method == "lora" and (copies.verdict == "fits" or not divides):
        return copies
    return _cut(spec, model, replace(place, sharded=True), longest)


def _cut(spec: FineTuneSpec, model: GemmaModel, place: _Place, longest: int | None) -> _Choice:
    """The fastest way to cut the batch that fits; where none fits, the one with the least memory."""
    limit = FITS_SHARE * (place.capacity or ASSUMED_HOST)
    choices = [_judged(spec, model, place, setting) for setting in _settings(spec, model, place, longest)]
    fitting = [choice for choice in choices if choice.memory.total <= limit]
    if not fitting:
        return min(choices, key=lambda choice: choice.memory.total)
    best = max(_speed(choice.setting) for choice in fitting)
    fast = [choice for choice in fitting if _speed(choice.setting) >= ENOUGH * best]
    return min(fast, key=lambda choice: choice.memory.total)


def _settings(spec: FineTuneSpec, model: GemmaModel, place: _Place, longest: int | None) -> Iterator[Setting]:
    """Every micro-batch that divides a device's rows of a step, with and without checkpointing, or what is written."""
    training, length = _set(spec.training), row_length(spec, model, longest) + image_tokens(spec, model)
    share = max(1, _set(training.global_batch_size) // place.laid.replicas)
    fixed_rows, fixed_checkpointing = training.micro_batch_size, training.gradient_checkpointing
    common = _setting(spec, place, length)
    sizes = [fixed_rows] if fixed_rows else [size for size in range(1, share + 1) if share % size == 0]
    for rows in sizes:
        if rows > 1 and fixed_rows is None and rows * length > MOST_TOKENS:
            break
        for checkpointing in (False, True) if fixed_checkpointing is None else (fixed_checkpointing,):
            yield replace(common, rows=rows, checkpointing=checkpointing)


def _setting(spec: FineTuneSpec, place: _Place, length: int) -> Setting:
    """What all ways to cut the batch have in common, for one row without checkpointing."""
    training = _set(spec.training)
    common = Setting(
        method=spec.method,
        rows=1,
        length=length,
        checkpointing=False,
        optimizer=_set(training.optimizer),
        precision=_set(training.precision),
        device=place.device,
        bf16=place.bf16,
        shards=place.laid.chips if place.sharded else 1,
        images=spec.dataset.image_text is not None,
    )
    if spec.method == "full":
        return common
    adapter = spec.adapter
    modules = _set(adapter.target_modules)
    targets = modules if isinstance(modules, str) else tuple(modules)
    with_adapter = replace(common, rank=_set(adapter.rank), targets=targets, dora=bool(adapter.dora))
    if not isinstance(adapter, QloraSpec):
        return with_adapter
    return replace(with_adapter, bits=adapter.bits or 4, double_quant=adapter.double_quant is not False)


def _judged(spec: FineTuneSpec, model: GemmaModel, place: _Place, setting: Setting) -> _Choice:
    mesh, room = place.laid.mesh, place.capacity
    if mesh is not None:
        estimate = memory_devices.estimate(backend_of(spec), model, setting, mesh, room)
    else:
        estimate = memory.estimate(model, setting, room)
    share = max(1, _set(_set(spec.training).global_batch_size) // place.laid.replicas)
    verdict: Verdict = "fits"
    if place.capacity and estimate.total > FITS_SHARE * place.capacity:
        verdict = "tight" if estimate.total <= place.capacity else "does not fit"
    return _Choice(setting, estimate, -(-share // setting.rows), verdict, place.laid)


def _speed(setting: Setting) -> float:
    """Relative speed of training: larger passes use the device better, checkpointing costs a forward pass."""
    half = HALF_SPEED_TOKENS[setting.device]
    return setting.tokens / (setting.tokens + half) * (RECOMPUTE_SPEED if setting.checkpointing else 1)


def _disk(spec: FineTuneSpec, model: GemmaModel, setting: Setting, rows: int | None) -> int:
    """Ephemeral storage: weights unless they are mounted, tokenised rows, two states on their way to the bucket."""
    state = 4 * memory.trainable(model, setting) + memory.optimizer_state(model, setting)
    return _inputs(spec, model, setting, rows) + 2 * state + LOCAL_FILES


def _inputs(spec: FineTuneSpec, model: GemmaModel, setting: Setting, rows: int | None) -> int:
    """Bytes of what a pod downloads: the weights unless they are mounted, and the tokenised rows with their images."""
    weights = (
        0 if spec.model.uri.startswith(("file://", "pvc://")) else model.stored_bytes * model.checkpoint_parameters
    )
    pixels = model.vision.pixel_bytes if model.vision is not None and setting.images else 0
    return weights + (UNKNOWN_DATA if rows is None else rows * (setting.length * 8 + pixels))


def merges(spec: FineTuneSpec) -> bool:
    """Whether a merge follows training: `full` leaves whole weights without one."""
    return bool(spec.output.merge) and spec.method != "full"


def _merge(spec: FineTuneSpec, model: GemmaModel, setting: Setting, rows: int | None) -> PlanMerge:
    """The merge holds one 16-bit model, the adapter, a shard that is being written, and logits to compare.

    The base's files are mapped: their pages give way. All merged files are on the disk before the first is uploaded,
    since they are verified as they will be read.
    """
    merged, adapter = 2 * model.parameters, memory.adapter_weights(model, setting)
    shard = min(merged, memory.LARGEST_SHARD)
    logits = 3 * 4 * memory.HEAD_CHUNK * model.vocab
    return PlanMerge(
        memory=memory.RUNTIME + merged + adapter + shard + logits,
        disk=_inputs(spec, model, setting, rows) + merged + adapter + LOCAL_FILES,
    )


def _remedies(
    spec: FineTuneSpec, model: GemmaModel, place: _Place, choice: _Choice, longest: int | None, host_memory: int
) -> list[str]:
    """Up to three changes, each of which makes it fit by a plan of its own; two at once where no single one does."""
    length, found = row_length(spec, model, longest), list[str]()
    quantised = changes_to_fit.with_qlora(spec) if spec.method != "qlora" and place.device == "cuda" else None
    single = [
        changes_to_fit.lighter(spec),
        changes_to_fit.larger(spec, 0 if choice.host_short else place.capacity),
        mesh_remedies.divided_otherwise(spec, place.laid),
        changes_to_fit.shorter(spec, length),
        changes_to_fit.more(spec),
    ]
    if quantised is not None:
        single.insert(0, iter([("use qlora", quantised)]))
    if choice.host_short:
        single = [changes_to_fit.with_lora(spec), pod_memory.larger_hosts(spec), *single]

    def add(groups: list[Iterator[changes_to_fit.Changed]], prefix: str = "") -> None:
        for group in groups:
            for text, changed in group:
                if _choose(changed, model, _place(changed, host_memory), longest).verdict == "fits":
                    found.append(prefix + text)
                    break

    add(single)
    if not found and quantised is not None:
        larger, shorter = changes_to_fit.larger(quantised, place.capacity), changes_to_fit.shorter(quantised, length)
        add([larger, shorter], "use qlora and ")
    if place.device == "cpu":
        needed = choice.memory.total / FITS_SHARE
        found = [*found[: MAX_REMEDIES - 1], f"{-int(-needed // GIB)} GiB of host memory"]
    return found[:MAX_REMEDIES]


def _notes(spec: FineTuneSpec, model: GemmaModel, place: _Place, longest: int | None, disk: int) -> list[str]:
    notes = list(place.notes)
    length = _set(spec.dataset.max_length)
    if length > model.context_length:
        notes.append(
            f"dataset.maxLength {length} is more than the context of {model.label}, {model.context_length}; "
            "longer rows are not cut there."
        )
    if longest is None:
        notes.append(f"Every row is taken as {row_length(spec, model, None)} tokens long until the data is read.")
    storage = scratch.pod_bytes(disk)
    boot_disk, usual = scratch.boot_disk_gb(storage), accelerators.DEFAULT_BOOT_DISK_GB
    if place.device != "cpu" and boot_disk > usual:
        notes.append(
            f"Needs {storage // GIB} GiB of ephemeral storage: nodes need a boot disk of {boot_disk} GB, or local SSDs "
            f"(GKE's usual {usual} GB do not suffice)."
        )
    if place.device == "cpu" and spec.method == "qlora":
        notes.append("On a CPU qlora saves little: the 16-bit checkpoint stays mapped beside the quantised weights.")
    if spec.output.merge and not merges(spec):
        notes.append("output.merge adds nothing: full tuning leaves whole weights by itself.")
    if (tokens := image_tokens(spec, model)) and model.vision is not None:
        side = model.vision.image
        notes.append(f"Every row has {tokens} tokens of its image ({side} x {side} pixels) before those of its text.")
    return [*notes, *model.all_notes][:MAX_NOTES]
