"""TRL's SFTTrainer with this project's rows, loss, random states and end: the loop of the torch backend."""

from __future__ import annotations

import copy
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from trl import SFTConfig, SFTTrainer

from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends.base import Row, Rows, Snapshot, Step, Training
from gemmatune_trainer.backends.forward import IGNORED, labelled_loss
from gemmatune_trainer.backends.usage import memory
from gemmatune_trainer.data.order import step_rows
from gemmatune_trainer.data.pack import collate, micro_batches, pack


class StepLoader:
    """The micro-batches of all steps from `first_step` (from 0) on, as one pass.

    Rows of a step are a function of (seed, epoch, step) alone. A step has ceil(global / micro) micro-batches; the
    last one has what is left.
    """

    def __init__(
        self, config: RunConfig, rows: Rows, number_of_rows: int, total_steps: int, first_step: int, pad_id: int
    ) -> None:
        self._pad_id = pad_id
        self._training = config.training
        self._packing = config.dataset.packing
        self._rows = rows
        self._number_of_rows = number_of_rows
        self._total_steps = total_steps
        self._first_step = first_step

    def __len__(self) -> int:
        return self._total_steps * accumulation(self._training.global_batch_size, self._training.micro_batch_size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """While a step trains, the micro-batches of the next one are made in the background."""
        steps = range(self._first_step, self._total_steps)
        with ThreadPoolExecutor(1, thread_name_prefix="rows") as worker:
            ahead = [worker.submit(self.step, step) for step in steps[:1]]
            for step in steps:
                batches = ahead.pop().result()
                if step + 1 in steps:
                    ahead.append(worker.submit(self.step, step + 1))
                yield from batches

    def step(self, number: int) -> list[dict[str, torch.Tensor]]:
        """The micro-batches of step `number`; rows that are not packed lie beside others of about their length."""
        training = self._training
        chosen = step_rows(training.seed, number, self._number_of_rows, training.global_batch_size)
        rows = [self._rows.row(index) for index in chosen]
        groups = micro_batches([len(ids) for ids, _ in rows], training.micro_batch_size, by_length=not self._packing)
        return [self._tensors([rows[index] for index in group]) for group in groups]

    def collate(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """One micro-batch of these rows, packed where the run packs."""
        return self._tensors([self._rows.row(index) for index in indices])

    def _tensors(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        lengths = [len(ids) for ids, _ in rows]
        sequences = pack(lengths, sum(lengths)) if self._packing else [[index] for index in range(len(rows))]
        batch = collate(rows, sequences, pad_id=self._pad_id)
        return {
            "input_ids": torch.from_numpy(batch.input_ids),
            "labels": torch.from_numpy(batch.labels),
            "position_ids": torch.from_numpy(batch.position_ids),
        }


def accumulation(global_batch_size: int, micro_batch_size: int) -> int:
    """Micro-batches per optimizer step."""
    return -(-global_batch_size // micro_batch_size)


class PackedTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose batches come from a StepLoader and whose loss is that of labelled positions alone."""

    def __init__(self, loader: StepLoader, watcher: Training, precision: str, **settings: Any) -> None:
        self._loader = loader
        self._watcher = watcher
        self._autocast = precision == "bf16"
        self._random_states: dict[str, Any] = {}
        self._tokens = self._labelled = 0
        self._loss = torch.zeros(())
        self._norm = 0.0
        self._step_started = 0.0
        super().__init__(**settings)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the labelled tokens of the whole step

    def run(self, start: Path | None) -> None:
        """Trains to the end of the schedule."""
        self._random_states = _random_states()
        self._step_started = time.monotonic()
        self.train(resume_from_checkpoint=str(start) if start else None)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The backend has put the weights in place."""

    def get_train_dataloader(self) -> Any:
        """The micro-batches, in place of a DataLoader: it draws no random numbers, so a resumed run draws the same."""
        return self._loader

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One micro-batch, forward and backward."""
        self._watcher.micro_batch()
        self._tokens += inputs["input_ids"].numel()
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._labelled = int(num_items_in_batch)
        self._loss = self._loss.to(loss.device) + loss
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Loss of a micro-batch: its summed loss over the labelled tokens of the whole step."""
        with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=self._autocast):
            total = labelled_loss(self.model, inputs["input_ids"], inputs["position_ids"], inputs["labels"])
        return total / num_items_in_batch

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device
    ) -> torch.Tensor:
        """Labelled tokens of a step."""
        return torch.stack([(batch["labels"] != IGNORED).sum() for batch in batch_samples]).sum().to(device)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Remembers the gradient norm of the step, before clipping."""
        found = super()._get_grad_norm(model, grad_norm)
        self._norm = float(found) if found is not None else 0.0
        return found

    def after_step(self) -> None:
        """Keeps the random states, for a checkpoint of this step, and tells the watcher."""
        self._random_states = _random_states()
        now = time.monotonic()
        step = Step(
            number=self.state.global_step,
            loss=float(self._loss),
            gradient_norm=self._norm,
            learning_rate=float(self.lr_scheduler.get_last_lr()[0]),
            tokens=self._tokens,
            labelled_tokens=self._labelled,
            seconds=now - self._step_started,
            memory=memory(self.args.device),
        )
        self._step_started = now
        self._tokens = self._labelled = 0
        self._loss = torch.zeros(())
        self._watcher.step_done(step)

    def snapshot(self) -> Snapshot:
        """Copies optimizer, schedule, random states and step; they are written as transformers' files."""
        optimizer = _copied(self.optimizer.state_dict(), {})
        schedule = copy.deepcopy(self.lr_scheduler.state_dict())
        random_states = self._random_states
        state = copy.deepcopy(self.state)

        def write(folder: Path) -> None:
            torch.save(optimizer, folder / OPTIMIZER_NAME)
            torch.save(schedule, folder / SCHEDULER_NAME)
            torch.save(random_states, folder / "rng_state.pth")
            state.save_to_json(str(folder / TRAINER_STATE_NAME))

        return write


class _StepEnd(TrainerCallback):  # type: ignore[misc]
    trainer: PackedTrainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.after_step()


def make_trainer(
    model: Any,
    config: RunConfig,
    tokenizer: Any,
    rows: Rows,
    number_of_rows: int,
    total_steps: int,
    start: Path | None,
    watcher: Training,
) -> PackedTrainer:
    """The trainer of a run; `start` is the folder of a state to resume from."""
    adapted = hasattr(model, "peft_config")
    kept = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad and adapted}
    callback = _StepEnd()
    trainer = PackedTrainer(
        loader=StepLoader(config, rows, number_of_rows, total_steps, step_of(start), tokenizer.pad_token_id),
        watcher=watcher,
        precision=config.training.precision,
        model=model,
        args=arguments(config, total_steps),
        processing_class=tokenizer,
        data_collator=lambda batch: batch,
        # SFTTrainer wants to see a dataset; the rows come from the loader.
        train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),
        callbacks=[callback],
    )
    callback.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    # TRL casts the adapter of a quantised base to bf16, where small updates vanish, and wraps the base's forward.
    for name, value in model.named_parameters():
        if name in kept:
            value.data = kept[name]
    (model.get_base_model() if adapted else model).__dict__.pop("forward", None)
    return trainer


def step_of(start: Path | None) -> int:
    """Optimizer steps that a saved state has behind it."""
    from transformers import TrainerState

    return int(TrainerState.load_from_json(str(start / "trainer_state.json")).global_step) if start else 0


def arguments(config: RunConfig, total_steps: int) -> SFTConfig:
    """SFTConfig with every value that matters set: its defaults differ from transformers' and from ours."""
    training = config.training
    return SFTConfig(
        output_dir=tempfile.gettempdir(),  # nothing is written there: checkpoints are ours
        use_cpu=config.device == "cpu",
        per_device_train_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=accumulation(training.global_batch_size, training.micro_batch_size),
        num_train_epochs=1,
        max_steps=total_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup(total_steps),
        optim=training.optimizer,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        label_smoothing_factor=0.0,
        bf16=False,  # the loss enters autocast itself; accelerate would cast all outputs to fp32
        fp16=False,
        activation_checkpointing=training.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        seed=training.seed,
        data_seed=training.seed,
        full_determinism=False,
        ignore_data_skip=True,  # the loader itself starts where the state ended
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        padding_free=False,
        completion_only_loss=False,
        assistant_only_loss=False,
        loss_type="nll",
        activation_offloading=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        push_to_hub=False,
        disable_tqdm=True,
        log_level="error",
    )


def _random_states() -> dict[str, Any]:
    """The states of all random numbers, as transformers reads them from its file."""
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.random.get_rng_state()
    return states


def _copied(value: Any, known: dict[int, torch.Tensor]) -> Any:
    """A state in host memory that later steps do not change; `known` keeps tensors that are shared so."""
    if isinstance(value, torch.Tensor):
        if id(value) not in known:
            known[id(value)] = value.detach().to("cpu", copy=True)
        return known[id(value)]
    if isinstance(value, Mapping):
        return {key: _copied(item, known) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item, known) for item in value)
    return value
