"""TRL's SFTTrainer with this project's rows, loss, random states and end: the loop of the torch backend."""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback, set_seed
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from trl import SFTConfig, SFTTrainer

from gemmatune_api.runconfig import RunConfig, RunTraining
from gemmatune_trainer.backends import forms, moments
from gemmatune_trainer.backends.base import Row, Rows, Snapshot, Step, Training
from gemmatune_trainer.backends.forward import IGNORED, labelled_loss
from gemmatune_trainer.backends.parallel import part_like, state_from_main
from gemmatune_trainer.backends.states import copied, load_random, random_file, random_states, set_random_states
from gemmatune_trainer.backends.usage import memory
from gemmatune_trainer.backends.whole import gathered
from gemmatune_trainer.data.order import step_rows
from gemmatune_trainer.data.pack import collate, micro_batches, pack
from gemmatune_trainer.data.tokenize import RowTokenizer
from gemmatune_trainer.logs import log
from gemmatune_trainer.ranks import Ranks


class StepLoader:
    """The micro-batches of all steps from `first_step` (from 0) on, as one pass.

    Rows of a step are a function of (seed, epoch, step) alone; each rank takes an equal part of them, in order. Its
    step has ceil(part / micro) micro-batches; the last one has what is left.
    """

    def __init__(
        self,
        config: RunConfig,
        rows: Rows,
        number_of_rows: int,
        total_steps: int,
        first_step: int,
        pad_id: int,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks or Ranks()
        self._pad_id = pad_id
        self._training = config.training
        self._packing = config.dataset.packing
        self._rows = rows
        self._number_of_rows = number_of_rows
        self._total_steps = total_steps
        self._first_step = first_step

    def __len__(self) -> int:
        return self._total_steps * accumulation(self._training, self._ranks)

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
        """A rank's micro-batches of step `number`; rows that are not packed lie beside others of about their length."""
        training = self._training
        chosen = step_rows(training.seed, number, self._number_of_rows, training.global_batch_size)
        part = len(chosen) // self._ranks.size
        chosen = chosen[part * self._ranks.rank : part * (self._ranks.rank + 1)]
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


def accumulation(training: RunTraining, ranks: Ranks) -> int:
    """Micro-batches of a rank per optimizer step."""
    return -(-training.global_batch_size // ranks.size // training.micro_batch_size)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a training runs on: its configuration, the processes, and what every pass of the model goes through."""

    config: RunConfig
    ranks: Ranks
    shell: Any


class PackedTrainer(SFTTrainer):  # type: ignore[misc]
    """SFTTrainer whose batches come from a StepLoader and whose loss is that of labelled positions alone."""

    def __init__(self, loader: StepLoader, watcher: Training, setting: Setting, **settings: Any) -> None:
        self._loader = loader
        self._watcher = watcher
        self._shell = setting.shell
        self._ranks = setting.ranks
        self._autocast = setting.config.training.precision == "bf16"
        self._random_states: dict[str, Any] = {}
        self._tokens = self._labelled = 0
        self._loss = torch.zeros(())
        self._norm = self._rate = 0.0
        self._step_started = 0.0
        super().__init__(**settings)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the labelled tokens of the whole step

    def run(self, start: Path | None) -> None:
        """Trains to the end of the schedule."""
        self._random_states = random_states()
        self._step_started = time.monotonic()
        if start:
            _readable(start, self.args.train_batch_size)
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
        waits = hasattr(self._shell, "no_sync") and not self.accelerator.sync_gradients
        with self._shell.no_sync() if waits else nullcontext():  # DDP: gradients are summed once a step
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._labelled = int(num_items_in_batch)
        self._loss = self._loss.to(loss.device) + loss
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Loss of a micro-batch: its summed loss over the labelled tokens of the whole step.

        DDP and FSDP2 average gradients over the ranks; times their number, it is their sum.
        """
        with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=self._autocast):
            total = self._shell(labelled_loss, inputs["input_ids"], inputs["position_ids"], inputs["labels"])
        return total * self._ranks.size / num_items_in_batch

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device
    ) -> torch.Tensor:
        """Labelled tokens of a step, of all ranks."""
        (total,) = self._ranks.add([sum(int((batch["labels"] != IGNORED).sum()) for batch in batch_samples)])
        return torch.tensor(int(total), device=device)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Remembers the gradient norm of the step, before clipping."""
        found = super()._get_grad_norm(model, grad_norm)
        self._norm = float(gathered(found)) if found is not None else 0.0
        return found

    def before_update(self) -> None:
        """Remembers the step's learning rate: when the step has ended, the schedule has that of the next one."""
        self._rate = float(self.lr_scheduler.get_last_lr()[0])

    def after_step(self) -> None:
        """Keeps the random states, for a checkpoint of this step, and tells the watcher."""
        self._random_states = random_states()
        now = time.monotonic()
        loss, tokens = self._ranks.add([float(self._loss) / self._ranks.size, float(self._tokens)])
        step = Step(
            number=self.state.global_step,
            loss=loss,
            gradient_norm=self._norm,
            learning_rate=self._rate,
            tokens=int(tokens),
            labelled_tokens=self._labelled,
            seconds=now - self._step_started,
            memory=memory(self.args.device),
        )
        self._step_started = now
        self._tokens = self._labelled = 0
        self._loss = torch.zeros(())
        self._watcher.step_done(step)

    def snapshot(self) -> Snapshot:
        """Copies optimizer, schedule, every rank's random states, and step; they are written as transformers' files.

        The optimizer's state is written whole, whatever part of it a rank has: another number of ranks reads it too.
        """
        optimizer = copied(self.optimizer.state_dict(), {}, keep=self._ranks.main)
        schedule = copy.deepcopy(self.lr_scheduler.state_dict())
        everyones = self._ranks.gather(self._random_states)
        state = copy.deepcopy(self.state)

        def write(folder: Path) -> None:
            torch.save(optimizer, folder / OPTIMIZER_NAME)
            torch.save(schedule, folder / SCHEDULER_NAME)
            for rank, states in enumerate(everyones):
                torch.save(states, folder / random_file(rank, len(everyones)))
            state.save_to_json(str(folder / TRAINER_STATE_NAME))

        return write

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The state that rank 0 reads, in the form of this optimizer; on every rank what it has of it."""
        if checkpoint is None:
            return
        folder, found = Path(checkpoint), None
        if self._ranks.main and (folder / OPTIMIZER_NAME).exists():
            saved = torch.load(
                folder / OPTIMIZER_NAME, map_location="cpu", weights_only=True, mmap=self._ranks.size > 1
            )
            optimizer, converted = moments.fitting(saved, self.optimizer)
            schedule = torch.load(folder / SCHEDULER_NAME, map_location="cpu", weights_only=True)
            found = {"optimizer": optimizer, "schedule": moments.widened(schedule, len(self.optimizer.param_groups))}
            if converted:
                log.info("optimizer state converted", optimizer=str(self.args.optim.value))
        states = state_from_main(self._ranks, found, self.args.device) if self._ranks.size > 1 else found
        if states is None:  # keras has left none that can be read here
            moments.forward(self.lr_scheduler, forms.step_of(folder))
            return
        optimizer = states["optimizer"]
        for group, saved in zip(self.optimizer.param_groups, optimizer["param_groups"], strict=True):
            for value, number in zip(group["params"], saved["params"], strict=True):
                of_weight = optimizer["state"].get(number, {})
                of_weight.update({name: part_like(value, item) for name, item in of_weight.items()})
        self.optimizer.load_state_dict(optimizer)
        self.lr_scheduler.load_state_dict(states["schedule"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Every rank's own random states, where as many ranks have left them; else new ones by seed, step and rank."""
        if checkpoint is None:
            return
        folder, size = Path(checkpoint), self._ranks.size
        files = [folder / random_file(rank, size) for rank in range(size)]
        fit = self._ranks.main and all(file.exists() for file in files)
        fit = fit and len(list(folder.glob("rng_state*.pth"))) == size
        saved = [load_random(file) for file in files] if fit else None
        if size > 1:
            saved = self._ranks.from_main(saved)
        if saved is not None:
            set_random_states(saved[self._ranks.rank])
        else:
            set_seed(self.args.seed + self.state.global_step * size + self._ranks.rank)


class _Steps(TrainerCallback):  # type: ignore[misc]
    trainer: PackedTrainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.before_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.after_step()


def make_trainer(
    model: Any,
    setting: Setting,
    tokenizer: RowTokenizer,
    rows: Rows,
    number_of_rows: int,
    total_steps: int,
    start: Path | None,
    watcher: Training,
) -> PackedTrainer:
    """The trainer of a run; `start` is the folder of a state to resume from."""
    config, ranks = setting.config, setting.ranks
    adapted = hasattr(model, "peft_config")
    kept = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad and adapted}
    callback = _Steps()
    trainer = PackedTrainer(
        loader=StepLoader(config, rows, number_of_rows, total_steps, step_of(start), tokenizer.pad_id, ranks),
        watcher=watcher,
        setting=setting,
        model=model,
        args=arguments(config, total_steps, ranks),
        processing_class=_controls(tokenizer),
        data_collator=lambda batch: batch,
        # SFTTrainer wants to see a dataset; the rows come from the loader.
        train_dataset=Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]}),
        callbacks=[callback],
    )
    callback.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    # TRL casts the adapter of a quantised base to bf16, where small updates vanish, and wraps the base's forward.
    for name, value in model.named_parameters():
        if name in kept and value.dtype != kept[name].dtype:
            value.data = kept[name]
    (model.get_base_model() if adapted else model).__dict__.pop("forward", None)
    return trainer


def _controls(tokenizer: RowTokenizer) -> PreTrainedTokenizerFast:
    """What TRL and transformers ask of a tokenizer where the rows are tokens already: three control tokens.

    Another copy of the model's whole tokenizer takes 300 MB of every process (Gemma 3, measured).
    """
    rules = tokenizer.rules
    ids = {rules.pad: tokenizer.pad_id, rules.eos: tokenizer.eos_id, rules.bos: tokenizer.bos_id}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(ids, unk_token=rules.pad)),
        pad_token=rules.pad,
        eos_token=rules.eos,
        bos_token=rules.bos,
    )


def step_of(start: Path | None) -> int:
    """Optimizer steps that a saved state has behind it."""
    return forms.step_of(start) if start else 0


def _readable(start: Path, batch_size: int) -> None:
    """Leaves in the state's file what transformers reads, where another backend has written it: the step, and less."""
    said = json.loads((start / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    if "train_batch_size" not in said:
        said = {forms.STEP: said[forms.STEP], "train_batch_size": batch_size}
        (start / TRAINER_STATE_NAME).write_text(json.dumps(said), encoding="utf-8")


def arguments(config: RunConfig, total_steps: int, ranks: Ranks) -> SFTConfig:
    """SFTConfig with every value that matters set: its defaults differ from transformers' and from ours."""
    training = config.training
    return SFTConfig(
        output_dir=tempfile.gettempdir(),  # nothing is written there: checkpoints are ours
        use_cpu=config.device == "cpu",
        per_device_train_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=accumulation(training, ranks),
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
