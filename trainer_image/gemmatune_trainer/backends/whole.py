"""A whole tuned model as files: exact for checkpoints, and in the run's precision for those who use it."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from gemmatune_trainer.backends import forms
from gemmatune_trainer.backends.base import Snapshot, Verification
from gemmatune_trainer.errors import InvalidConfig
from gemmatune_trainer.ranks import Ranks

FILES = "weights-*.safetensors"
SHARD_BYTES = 5_000_000_000
"""Largest file of a state."""
RESULT_SHARD = "5GB"
"""Largest file of the result: that of published checkpoints."""
PIECE = 4096
"""Numbers of every trained tensor that are remembered from before training."""
_ROUNDING = 0.05
"""Largest difference of logits by rounding the masters to 16 bit, relative to the logits (root mean squares)."""


class ModelInvalid(RuntimeError):
    """The model that was written is not the one that was trained."""


def prepare(model: Any) -> None:
    """Trains the text decoder with its embedding and head; towers of other modalities stay as they are.

    The masters are fp32, whatever the file's type: updates of 1e-5 vanish in bf16.
    """
    model.requires_grad_(False)
    decoder = getattr(model.model, "language_model", model.model)
    decoder.requires_grad_(True)
    model.get_output_embeddings().requires_grad_(True)


def trained(model: Any) -> list[tuple[str, Tensor]]:
    """Names and values of what is trained, tied weights once."""
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def check_dtypes(model: Any) -> None:
    """Makes sure that the masters are fp32. Raises ModelInvalid."""
    wrong = [f"{name} is {value.dtype}" for name, value in trained(model) if value.dtype != torch.float32]
    if wrong:
        raise ModelInvalid(f"the weights must be trained in fp32: {wrong[0]}")


def gathered(value: Tensor) -> Tensor:
    """The whole tensor, where the processes hold parts of it; all of them must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def deal(ranks: Ranks, value: Tensor, whole: Tensor | None) -> None:
    """Writes a tensor of rank 0, of the weight's own type there, into a weight on every rank."""
    # Between the hosts of a TPU slice numbers that the chips do not compute travel through the hosts.
    where = "cpu" if value.device.type == "xla" else value.device
    put(value, ranks.broadcast(whole, (value.shape, value.dtype), where))


@torch.no_grad()
def put(value: Tensor, whole: Tensor) -> None:
    """Writes a whole tensor into a weight, of which this process may hold a part."""
    whole = whole.to(value.device, value.dtype)
    if isinstance(value, DTensor):
        whole = distribute_tensor(whole, value.device_mesh, value.placements, src_data_rank=None)
        local(value).copy_(local(whole))
    else:
        value.copy_(whole)


def pieces(model: Any, names: Container[str] | None = None) -> dict[str, Tensor]:
    """The beginning of every trained tensor, or of those named, to see later that training has changed something."""
    chosen = trained(model) if names is None else [item for item in model.named_parameters() if item[0] in names]
    return {name: _piece(value) for name, value in chosen}


def _piece(value: Tensor) -> Tensor:
    return local(value).detach().reshape(-1)[:PIECE].cpu().clone()


def snapshot(model: Any, *, keep: bool = True) -> Snapshot:
    """Copies the trained weights as they are; all processes take part, those that `keep` can write them."""
    tensors: dict[str, Tensor] = {}
    for name, value in trained(model):
        found = gathered(value.detach())
        if keep:
            tensors[name] = found.to("cpu", copy=True).contiguous()

    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, shard in enumerate(_shards(tensors)):
            save_file(shard, folder / FILES.replace("*", f"{number:05d}"), metadata={"format": "pt"})

    return write


def _shards(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if shard and sum(item.nbytes for item in shard.values()) + value.nbytes > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = value
    if shard:
        yield shard


def restore(model: Any, folder: Path, ranks: Ranks) -> None:
    """Loads what a snapshot, or that of keras, wrote into a folder of rank 0, in place, on all processes.

    Raises:
        ModelInvalid: the names differ.
    """
    wanted = trained(model)
    paths = sorted(folder.glob(FILES)) or sorted(folder.glob(forms.KERAS_WEIGHTS))
    with ExitStack() as opened:
        files = [opened.enter_context(safe_open(path, framework="pt")) for path in paths]
        found = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no mapping
        if ranks.main and found.keys() != dict(wanted).keys():
            missing = sorted(dict(wanted).keys() - found.keys())
            unexpected = sorted(found.keys() - dict(wanted).keys())
            if forms.kept(folder) is not None:
                raise InvalidConfig(*forms.OTHER_NAMES)
            raise ModelInvalid(
                f"{folder}: {len(missing)} tensors are missing and {len(unexpected)} unexpected "
                f"({', '.join([*missing, *unexpected][:3])})"
            )
        for name, value in wanted:
            deal(ranks, value, found[name].get_tensor(name) if ranks.main else None)


def publish(
    model: Any,
    folder: Path,
    dtype: torch.dtype,
    terminators: Sequence[int],
    *,
    write: bool = True,
    places: Mapping[str, int] | None = None,
    together: bool = False,
) -> dict[str, int]:
    """Writes the model in `dtype` with its configuration, as transformers reads it; the checksums of its weights.

    All processes take part, those that `write` write; `together` also brings each value to its host. `places` tells
    tied weights by equal numbers, where addresses in memory do not.
    """
    converted: dict[int, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        place = local(value).data_ptr() if places is None else places.get(name, id(value))
        whole = gathered(value)
        if write or together:
            kind = dtype if whole.is_floating_point() else whole.dtype
            tensors[name] = converted.setdefault(place, whole.to(kind).cpu().contiguous())
    if not write:
        return {}
    set_terminators(model, terminators)
    model.save_pretrained(folder, state_dict=tensors, max_shard_size=RESULT_SHARD)
    _write_dtype(folder, dtype)
    names = {name for name, _ in model.named_parameters()}
    return {name: _checksum(value) for name, value in tensors.items() if name in names}


def set_terminators(model: Any, terminators: Sequence[int]) -> None:
    """Lets generation end at these tokens too, besides those of the base."""
    settings = model.generation_config
    old = settings.eos_token_id if settings.eos_token_id is not None else []
    found = list(dict.fromkeys([*terminators, *(old if isinstance(old, list) else [old])]))
    settings.eos_token_id = found[0] if len(found) == 1 else found


def _write_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Names the data type of the files; save_pretrained names that of the masters."""
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for block in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        if "dtype" in block:
            block["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_files(folder: Path, sums: dict[str, int]) -> None:
    """Makes sure that the files hold the weights of these checksums, whatever their names. Raises ModelInvalid."""
    found: Counter[int] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found.update(_checksum(file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 - no mapping
    if missing := Counter(sums.values()) - found:
        raise ModelInvalid(f"{folder}: {missing.total()} of {len(sums)} weights are not those that were trained")


@torch.no_grad()
def round_to(model: Any, dtype: torch.dtype) -> None:
    """Rounds the weights to a data type, in place, and keeps them in their own."""
    for value in model.parameters():
        part = local(value)
        part.copy_(part.to(dtype).to(part.dtype))


def checksums(model: Any, dtype: torch.dtype) -> dict[str, int]:
    """CRC-32 of every weight's bits in `dtype`, by its name; tied weights are one. All processes must ask."""
    return {name: _checksum(gathered(value).detach().to(dtype).cpu()) for name, value in model.named_parameters()}


def _checksum(value: Tensor) -> int:
    return zlib.crc32(memoryview(value.contiguous().view(torch.uint8).reshape(-1).numpy()))


def compare(
    model: Any,
    logits: tuple[Tensor, Tensor],
    before: dict[str, Tensor],
    sums: tuple[dict[str, int], dict[str, int]],
    folder: Path,
    after: dict[str, Tensor] | None = None,
) -> Verification:
    """Holds the reloaded model against the trained one: `logits` and `sums` are (trained, reloaded).

    `before` are the `pieces` of the base; `model` is the reloaded one, and `after` its pieces where they are known.
    Raises ModelInvalid.
    """
    written, found = sums
    wrong = sorted(name for name in found.keys() | written.keys() if found.get(name) != written.get(name))
    if wrong and written:
        raise ModelInvalid(
            f"{folder}: {len(wrong)} of {len(found)} reloaded weights are not those that were trained "
            f"({', '.join(wrong[:3])})"
        )
    of_trained, of_reloaded = logits
    difference = float((of_trained - of_reloaded).abs().max())
    if not _rms(of_trained - of_reloaded) <= _ROUNDING * _rms(of_trained):
        raise ModelInvalid(f"the reloaded model's logits differ by {difference:.3g} from the trained model's")
    parts = dict(model.named_parameters())
    found_after = pieces(model, before) if after is None else after
    changes: Iterator[float] = (
        float((found_after[name].float() - old.to(parts[name].dtype).float()).abs().max())
        for name, old in before.items()
        if old.numel()
    )
    delta = max(changes, default=0.0)
    if not delta > 0:
        raise ModelInvalid("training has changed no weight: the result equals the base")
    return Verification(difference, delta, sum(parts[name].numel() for name in before))


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
