"""An adapter merged into its base in 16 bit by PEFT, written by transformers, and compared with what it came from."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from gemmatune_trainer.backends import adapter
from gemmatune_trainer.backends.base import Row
from gemmatune_trainer.backends.forward import IGNORED, labelled_loss, packed_logits
from gemmatune_trainer.backends.usage import give_back
from gemmatune_trainer.backends.whole import set_terminators
from gemmatune_trainer.merged import Scores
from gemmatune_trainer.models import ModelFiles

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
SHARD = "5GB"
"""Largest file: that of published checkpoints, and what writing holds in memory besides the model."""
COMPARED_TOKENS = 64
"""Tokens of the first row whose logits are compared: they are held twice in fp32."""
ROUNDING = 0.05
"""Largest difference of merged and unmerged logits, relative to the logits (root mean squares)."""
LOSS_ROUNDING = 0.02
"""Largest difference of their losses, relative to the loss."""


class MergeInvalid(RuntimeError):
    """The merged model that was written is not base plus adapter."""


class Merger:
    """One merge: `load`, `write`, `verify`, in this order. No more than one model is in memory at a time.

    `alive(doing)` is called between the pieces of work; it may raise to end the merge.
    """

    def __init__(self, files: ModelFiles, rows: Sequence[Row], held_out: bool, alive: Callable[[str], None]) -> None:
        self._files = files
        self._rows = rows
        self._held_out = held_out
        self._alive = alive
        self._model: Any = None
        self._sums: dict[str, int] = {}
        self._losses: dict[str, float] = {}
        self._logits: dict[str, Tensor] = {}

    def load(self, folder: Path) -> None:
        """Loads the base in 16 bit from its own files, whatever quantisation it was trained with, and the adapter.

        Raises:
            AdapterInvalid: the adapter's tensors are not those of this base.
        """
        base = load_16_bit(self._files, self._files.folder)
        self._alive("loading the adapter")
        self._model = PeftModel.from_pretrained(base, folder, is_trainable=False)
        adapter.check_keys(self._model, folder)
        with self._model.disable_adapter():
            self._score("base")
        self._score("adapter")

    def write(self, folder: Path, terminators: Sequence[int]) -> None:
        """Merges and writes weights, config.json and generation_config.json.

        Each weight is the sum of base and delta in fp32, rounded once.
        """
        self._alive("merging")
        model: PreTrainedModel = self._model.merge_and_unload()
        self._sums = checksums(model)
        set_terminators(model, terminators)
        self._alive("writing the merged weights")
        model.save_pretrained(folder, max_shard_size=SHARD)
        self._model = model

    def verify(self, folder: Path) -> Scores:
        """Reloads what was written, as its users will, and compares it with base plus adapter.

        Raises:
            MergeInvalid: weights are missing or differ from what was merged, or the outputs differ.
        """
        tied = _is_tied(self._model)
        self._model = None  # a large model is never in memory twice
        give_back(torch.device("cpu"))
        self._alive("reloading the merged weights")
        self._model = load_16_bit(self._files, folder)
        found = checksums(self._model)
        wrong = sorted(name for name in found.keys() | self._sums.keys() if found.get(name) != self._sums.get(name))
        if wrong or _is_tied(self._model) != tied:
            raise MergeInvalid(
                f"{len(wrong)} of {len(found)} reloaded weights are not those that were merged ({', '.join(wrong[:3])})"
                if wrong
                else "the reloaded model ties its head to its embedding otherwise than the base does"
            )
        self._score("merged")
        scores = self._scores()
        self._model = None
        return scores

    def _scores(self) -> Scores:
        with_adapter, logits = self._logits["adapter"], self._logits["merged"]
        size = _rms(with_adapter)
        scores = Scores(
            rows=len(self._rows),
            held_out=self._held_out,
            tokens=sum(_labelled(labels) for _, labels in self._rows),
            base_loss=self._losses["base"],
            adapter_loss=self._losses["adapter"],
            merged_loss=self._losses["merged"],
            difference=_rms(logits - with_adapter) / size,
            delta=_rms(self._logits["base"] - with_adapter) / size,
        )
        apart = abs(scores.merged_loss - scores.adapter_loss)
        if not (scores.difference <= ROUNDING and apart <= LOSS_ROUNDING * scores.adapter_loss):
            raise MergeInvalid(
                f"the merged model is not base plus adapter: its logits differ by {scores.difference:.3g} "
                f"(at most {ROUNDING} is rounding), its loss is {scores.merged_loss:.4g} against "
                f"{scores.adapter_loss:.4g} nats per token"
            )
        return scores

    @torch.inference_mode()
    def _score(self, name: str) -> None:
        """Mean loss over the rows, and logits of the first one."""
        self._model.eval()
        total, count = 0.0, 0
        for index, (ids, labels) in enumerate(self._rows):
            self._alive("comparing base, adapter and merged model")
            inputs, targets = torch.tensor([list(ids)]), torch.tensor([list(labels)])
            positions = torch.arange(inputs.shape[1]).unsqueeze(0)
            if index == 0:
                part = slice(0, COMPARED_TOKENS)
                self._logits[name] = packed_logits(self._model, inputs[:, part], positions[:, part])
            if tokens := _labelled(labels):
                total += float(labelled_loss(self._model, inputs, positions, targets))
                count += tokens
        self._losses[name] = total / count if count else math.nan


def load_16_bit(files: ModelFiles, folder: Path) -> PreTrainedModel:
    """The model of a folder in bf16 on the CPU, never in quantised modules."""
    model: PreTrainedModel = getattr(transformers, files.model.model_class).from_pretrained(
        folder,
        dtype=torch.bfloat16,
        attn_implementation=files.model.rules.attention,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    return model.requires_grad_(False)


def checksums(model: PreTrainedModel) -> dict[str, int]:
    """CRC-32 of the bits of every weight by its name; tied weights are one."""
    return {
        name: zlib.crc32(memoryview(value.detach().contiguous().view(torch.uint8).reshape(-1).numpy()))
        for name, value in model.named_parameters()
    }


def _is_tied(model: PreTrainedModel) -> bool:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight.data_ptr() == embedding.weight.data_ptr()


def _labelled(labels: Sequence[int]) -> int:
    return sum(label != IGNORED for label in labels[1:])


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
