"""The xla backend: LoRA and full tuning of a model whose weights all chips of a mesh divide (SPMD)."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from gemmatune_api import trainable
from gemmatune_api.runconfig import RunConfig
from gemmatune_api.sharding import Spec, of_weight
from gemmatune_trainer.backends import adapter, whole, xla_device, xla_forward
from gemmatune_trainer.backends.base import Row, Rows, Snapshot, Tally, Training, Verification
from gemmatune_trainer.backends.fixed import LOOKED_AT, FixedBatches
from gemmatune_trainer.backends.sharding import of_rows
from gemmatune_trainer.backends.xla_device import Chips
from gemmatune_trainer.backends.xla_loop import Loop, placed
from gemmatune_trainer.backends.xla_optimizer import Optimizer
from gemmatune_trainer.errors import InvalidConfig, passing
from gemmatune_trainer.generation import terminator_ids
from gemmatune_trainer.logs import log
from gemmatune_trainer.models import ModelFiles
from gemmatune_trainer.ranks import Ranks
from gemmatune_trainer.stop import StopFlag

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch_xla)\.")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ROUND = 128
"""Tokens to a multiple of which prompts and compared rows are padded: each length is compiled once."""


def make(config: RunConfig, files: ModelFiles | None, stop: StopFlag, ranks: Ranks) -> XlaBackend:
    """The backend of a run."""
    return XlaBackend(config, files, stop, ranks)


class XlaBackend:
    """One run's model on all chips."""

    def __init__(self, config: RunConfig, files: Any, stop: StopFlag, ranks: Ranks | None = None) -> None:
        self._config = config
        self._files = files
        self._stop = stop
        self._ranks = ranks or Ranks()
        xla_device.multiply(exactly=config.training.precision == "fp32")
        mesh = config.mesh
        self._chips = Chips((mesh.data, mesh.model) if mesh else None)
        self._full = config.method.kind == "full"
        self._kind: Any = whole if self._full else adapter
        self._dtype = DTYPES[config.training.precision]
        self._model: Any = None
        self._specs: dict[str, Spec] = {}
        self._before: dict[str, Tensor] = {}
        self._written: dict[str, int] = {}
        self._loop: Loop | None = None
        self._width = 0

    def use(self, files: Any) -> None:
        """Names the model's files, where they were not known before `load`."""
        self._files = files

    def load(self) -> None:
        """Loads the base on the host, attaches a fresh adapter (by the run's seed), and divides both among the chips.

        With full tuning the base itself is what is trained.

        Raises:
            InvalidConfig: the backend does not train such models.
        """
        refused = trainable.family_refused("xla", self._files.model)
        if refused is not None:  # prepare has asked already, but for a run that another backend began
            raise InvalidConfig(f"model.uri: {refused[0]}", refused[1])
        base = self._base()
        transformers.set_seed(self._config.training.seed)
        if self._full:
            whole.prepare(base)
            self._before = whole.pieces(base)
        else:
            base = get_peft_model(base, adapter.lora_config(self._config, self._files.model.rules))
            settings = base.peft_config["default"]
            settings.base_model_name_or_path, settings.revision = self._files.published_name
        self._kind.check_dtypes(base)
        self._place(base)
        log.info("model divided", chips=self._chips.count, data=self._chips.data, model=self._chips.model)

    def _base(self, folder: Path | None = None, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """The frozen base in host memory: in the run's precision, and in fp32 for full tuning."""
        found: PreTrainedModel = getattr(transformers, self._files.model.model_class).from_pretrained(
            folder or self._files.folder,
            dtype=dtype or (torch.float32 if self._full else self._dtype),
            attn_implementation="eager",  # its mask is a tensor like others: nothing looks at values on the host
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
        found.requires_grad_(False)
        found.config.use_cache = False
        return found

    def _place(self, model: Any) -> None:
        """Moves a model to the chips, each of which takes its parts; layers give their rows divided along data."""
        model.to(self._chips.device)
        xla_forward.base_of(model).tie_weights()
        self._specs = {}
        for name, value in model.named_parameters():
            self._specs[name] = of_weight(name, value.shape, self._chips.data, self._chips.model)
            self._chips.mark(value, self._specs[name])
        for layer in _layers(model):
            xla_device.watch(layer, self._chips, lambda output: of_rows(output.dim()))
        self._model = model
        xla_device.compute()

    def device_bytes(self) -> dict[str, tuple[int, int]]:
        """Of every weight: bytes on one chip, and bytes of the whole."""
        return {name: (self._chips.bytes_of(value), value.nbytes) for name, value in self._model.named_parameters()}

    def optimizer_bytes(self) -> dict[str, tuple[int, int]]:
        """The same of the optimizer's state of every trained weight; only after `train` has begun."""
        return self._loop.optimizer_bytes() if self._loop is not None else {}

    def _autocast(self) -> Any:
        return torch.autocast(xla_device.KIND, torch.bfloat16, enabled=self._dtype == torch.bfloat16)

    def _loss(self, input_ids: Tensor, position_ids: Tensor, labels: Tensor) -> Tensor:
        with self._autocast():
            return xla_forward.labelled_loss(self._model, input_ids, position_ids, labels, self._dtype)

    @torch.no_grad()
    def generate(self, prompt: Sequence[int], new_tokens: int, stop_at: Sequence[int]) -> list[int]:
        """Greedy continuation of a prompt without its terminator; ends early where the process shall stop.

        Every token is a pass over the whole text at one fixed length: a cache that grows would be compiled anew.
        """
        self._model.eval()
        ids = list(prompt)
        self._width = max(self._width, _rounded(len(ids) + new_tokens))
        while len(ids) < len(prompt) + new_tokens and not self._ranks.stopping(self._stop):
            input_ids, position_ids = self._single(ids, self._width)
            at = torch.tensor(len(ids) - 1).to(self._chips.device)
            with self._autocast():
                found = xla_forward.next_token(self._model, input_ids, position_ids, at, self._dtype)
            xla_device.compute()
            token = int(found)
            if token in stop_at:
                break
            ids.append(token)
        return ids[len(prompt) :]

    def _single(self, ids: Sequence[int], width: int) -> tuple[Tensor, Tensor]:
        """One sequence padded to a width, on the chips; every data group computes it."""
        rows = torch.zeros(self._chips.data, width, dtype=torch.int64)
        rows[:, : len(ids)] = torch.tensor(list(ids))
        positions = torch.arange(width).repeat(self._chips.data, 1)
        return self._chips.place(rows, of_rows(2)), self._chips.place(positions, of_rows(2))

    def train(self, rows: Rows, number_of_rows: int, total_steps: int, start: Path | None, training: Training) -> Tally:
        """Trains up to `total_steps`, from the state in folder `start` where one is given; what was compiled."""
        settings = self._config.training
        transformers.set_seed(settings.seed)
        if start:
            self.restore_weights(start)
        self._model.train()
        if settings.gradient_checkpointing:
            _recompute(self._model)
        optimizer = Optimizer(self._model, settings, total_steps, self._chips, self._specs)
        batches = FixedBatches(
            self._config, rows, number_of_rows, total_steps, self._chips.data, self._files.tokenizer.pad_id
        )
        self._loop = Loop(self._chips, self._loss, optimizer, batches, self._specs, settings.seed)
        if start:
            self._loop.restore(start, self._ranks)
        log.info("passes", sequences=batches.sequences, length=batches.length)
        with passing(batches.sequences_each):
            return self._loop.run(training)

    @torch.no_grad()
    def evaluate(self, rows: Rows, number_of_rows: int, alive: Callable[[], None]) -> tuple[float, int]:
        """Summed loss (nats) over the labelled tokens of all rows, and their number; changes nothing that is trained.

        `alive` is called before every forward pass and may raise to end it.
        """
        config, pad = self._config, self._files.tokenizer.pad_id
        batches = FixedBatches(config, rows, number_of_rows, 0, self._chips.data, pad)
        training = self._model.training
        self._model.eval()
        size, total, labelled = config.training.global_batch_size, 0.0, 0
        begins = range(0, number_of_rows, size)
        batches.fit([_rows_of(rows, begin, size, number_of_rows) for begin in begins[:LOOKED_AT]])
        for begin in begins:
            step = batches.of(_rows_of(rows, begin, size, number_of_rows))
            for batch in step.passes:
                alive()
                with passing(batches.sequences_each):
                    loss = self._loss(*placed(self._chips, batch))
                    xla_device.compute()
                    total += float(loss)
            labelled += step.labelled
        self._model.train(training)
        return total, labelled

    def snapshot(self) -> Snapshot:
        """Copies weights, optimizer, schedule, random states and step as they were after the last optimizer step."""
        if self._loop is None:
            raise RuntimeError("snapshot is called before train")
        parts = (self._kind.snapshot(self._model), self._loop.snapshot())

        def write(folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            for part in parts:
                part(folder)

        return write

    def save_weights(self, folder: Path) -> None:
        """Writes what is trained, bit by bit."""
        write = self._kind.snapshot(self._model)
        if self._ranks.main:
            write(folder)

    def restore_weights(self, folder: Path) -> None:
        """Puts the weights of a folder, as save_weights wrote them, into the model in place of the trained ones."""
        self._kind.restore(self._model, folder, self._ranks)
        for name, value in self._model.named_parameters():
            if value.requires_grad:
                self._specs[name] = of_weight(name, value.shape, self._chips.data, self._chips.model)
                self._chips.mark(value, self._specs[name])
        xla_device.compute()

    def save_result(self, folder: Path) -> None:
        """Writes the PEFT adapter, or the whole model in the run's precision."""
        if self._full:
            ends = terminator_ids(self._files.tokenizer)
            # A tensor on the chips has no address by which tied weights are known.
            tied = {name: id(value) for name, value in self._model.named_parameters(remove_duplicate=False)}
            self._written = whole.publish(
                self._model, folder, self._dtype, ends, write=self._ranks.main, places=tied, together=True
            )
        else:
            self.save_weights(folder)

    def verify(self, folder: Path, row: Sequence[int]) -> Verification:
        """Reloads the result of a folder as its users will and compares; the reloaded model is used from then on.

        Raises:
            AdapterInvalid, ModelInvalid: weights are missing or unexpected, the outputs differ, or nothing has changed.
        """
        trained = self._logits(row)
        self._loop = None
        self._model = None  # a large model is never in memory twice
        gc.collect()
        if self._full:
            model = self._base(folder if self._ranks.main else None, self._dtype)
            for _, value in model.named_parameters() if self._ranks.size > 1 else ():
                whole.deal(self._ranks, value, value if self._ranks.main else None)
            sums = self._written, whole.checksums(model, self._dtype)
            after = whole.pieces(model, self._before)
            self._place(model)
            return whole.compare(model, (trained, self._logits(row)), self._before, sums, folder, after)
        self._place(self._reloaded(folder))
        reloaded = self._logits(row)
        with self._model.disable_adapter():
            plain = self._logits(row)
        if not self._ranks.main:
            return Verification(0.0, 0.0, 0)
        return adapter.compare(trained, reloaded, plain, exact=False, folder=folder)

    def _reloaded(self, folder: Path) -> Any:
        """The model with the adapter of a folder of rank 0, on the host."""
        if self._ranks.main:
            model = PeftModel.from_pretrained(self._base(), folder, is_trainable=False)
            adapter.check_keys(model, folder)
        else:
            model = get_peft_model(self._base(), adapter.lora_config(self._config, self._files.model.rules))
        adapter.restore(model, folder, self._ranks)
        return model

    @torch.no_grad()
    def _logits(self, row: Sequence[int]) -> Tensor:
        """Logits [1, length of the row, vocabulary] on the host."""
        self._model.eval()
        with self._autocast():
            found = xla_forward.logits(self._model, *self._single(row, _rounded(len(row))), self._dtype)
        return xla_device.on_host(found)[None, : len(row)]


def _layers(model: Any) -> nn.ModuleList:
    decoder = xla_forward.base_of(model).model
    found: nn.ModuleList = getattr(decoder, "language_model", decoder).layers
    return found


def _rows_of(rows: Rows, begin: int, size: int, number_of_rows: int) -> list[Row]:
    return [rows.row(index) for index in range(begin, min(begin + size, number_of_rows))]


def _rounded(length: int) -> int:
    return -(-length // ROUND) * ROUND


def _recompute(model: Any) -> None:
    """Keeps of a layer its input alone, and computes the rest again in the backward pass.

    Not of the last one: its backward pass is next, so that what it keeps would be there again at once.
    """
    for layer in _layers(model)[:-1]:
        layer.forward = _recomputed(layer.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(hidden: Tensor, **options: Any) -> Any:
        if not (torch.is_grad_enabled() and hidden.requires_grad):
            return forward(hidden, **options)
        return xla_device.recomputed(lambda value: forward(value, **options), hidden)

    return call
