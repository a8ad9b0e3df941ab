"""A whole tuned model of the keras backend: what is trained of it, and its files as transformers reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from gemmatune_trainer.backends import forms, keras_mesh
from gemmatune_trainer.backends.keras_state import shards
from gemmatune_trainer.backends.keras_weights import Checkpoint, Weight, has_images
from gemmatune_trainer.errors import InvalidConfig
from gemmatune_trainer.generation import write_generation_config
from gemmatune_trainer.models import ModelFiles

KINDS = {"bf16": np.dtype(ml_dtypes.bfloat16), "fp32": np.dtype(np.float32)}
_PIECE = 4096
"""Numbers of every trained tensor that are remembered from before training."""


class ModelInvalid(RuntimeError):
    """The model that was written is not the one that was trained."""


def prepare(backbone: Any) -> None:
    """Trains the text decoder with its embedding; a vision tower stays as it is."""
    backbone.trainable = True
    if has_images(backbone):
        backbone.vit_encoder.trainable = False


def pieces(backbone: Any) -> dict[str, Any]:
    """The beginning of what this process has of every trained tensor, to see later that training has changed it."""
    return {item.path: _piece(item.value) for item in backbone.trainable_variables}


def _piece(value: Any) -> Any:
    return np.array(value.addressable_shards[0].data).reshape(-1)[:_PIECE].copy()


def largest_change(backbone: Any, before: dict[str, Any], kind: Any) -> float:
    """How far any remembered number has moved, in the precision of the result."""
    now = pieces(backbone)
    changes = (
        np.abs(now[path].astype(kind).astype(np.float32) - old.astype(kind).astype(np.float32)).max()
        for path, old in before.items()
    )
    return float(max(changes, default=0.0))


def snapshot(weights: list[Weight], *, keep: bool = True) -> dict[str, Any]:
    """The trained weights in host memory by their published keys, where `keep`; all processes must ask."""
    trained = {weight.key: weight for weight in weights if weight.variable.trainable}
    values = ((key, weight.variable.value) for key, weight in trained.items())
    return {key: trained[key].to_file(array) for key, array in keras_mesh.host_arrays(values, keep=keep)}


def restore(weights: list[Weight], arrays: dict[str, Any]) -> None:
    """Puts what a snapshot holds into the variables. Raises InvalidConfig where the names differ."""
    trained = {weight.key: weight for weight in weights if weight.variable.trainable}
    if trained.keys() != arrays.keys():
        raise InvalidConfig(*forms.OTHER_NAMES)
    for key, weight in trained.items():
        keras_mesh.put(weight.variable, weight.to_keras(arrays[key]))


def publish(arrays: dict[str, Any], files: ModelFiles, kind: Any, folder: Path) -> None:
    """Writes a snapshot with the untrained rest of the base, all in `kind`, and the base's configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {key: value.astype(kind) for key, value in arrays.items()}
    whole |= {key: _as(value, kind) for key, value in _rest(files.folder, set(arrays))}
    groups = shards(whole)
    index: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        name = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file(group, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(group, name)
    if len(groups) > 1:
        size = sum(value.nbytes for value in whole.values())
        text = json.dumps({"metadata": {"total_size": size}, "weight_map": index}, indent=2, sort_keys=True)
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    _write_config(files.folder, folder, str(kind))
    write_generation_config(files, folder)


def _rest(folder: Path, known: set[str]) -> Iterator[tuple[str, Any]]:
    """The tensors of the base that are not trained; a head that is stored beside the embedding is the same matrix."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                if key not in known and not key.endswith("lm_head.weight"):
                    yield key, file.get_tensor(key)


def _as(value: Any, kind: Any) -> Any:
    return value.astype(kind) if value.dtype.kind == "f" or value.dtype == KINDS["bf16"] else value


def _write_config(base: Path, folder: Path, kind: str) -> None:
    """config.json with the data type of the files."""
    settings = json.loads((base / "config.json").read_text(encoding="utf-8"))
    for block in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for name in ("dtype", "torch_dtype"):
            if name in block:
                block[name] = kind
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (base / name).is_file():
            shutil.copy(base / name, folder / name)


def read(weights: list[Weight], folder: Path) -> dict[str, Any]:
    """The trained weights of a published model, as its files have them."""
    keys = {weight.key: weight for weight in weights if weight.variable.trainable}
    return dict(Checkpoint(folder).arrays(keys))


def check_files(written: dict[str, Any], arrays: dict[str, Any], kind: Any, folder: Path) -> None:
    """Makes sure that the files hold what was trained, bit by bit in `kind`. Raises ModelInvalid."""
    wrong = [key for key, value in arrays.items() if not np.array_equal(written[key], value.astype(kind))]
    if wrong:
        raise ModelInvalid(f"{folder}: {len(wrong)} of {len(arrays)} weights are not those trained ({wrong[0]})")
