"""The keras backend: LoRA and full tuning by KerasHub's Gemma on JAX, its weights divided over a mesh of devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import keras
import numpy as np

from gemmatune_api.catalog import target_names
from gemmatune_api.memory_mesh import padded_length
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends import (
    forms,
    keras_devices,
    keras_images,
    keras_lora,
    keras_mesh,
    keras_state,
    keras_weights,
    keras_whole,
)
from gemmatune_trainer.backends.base import Placement, Rows, Snapshot, Step, Tally, Training, Verification
from gemmatune_trainer.backends.keras_batches import Batch, Batches, lengths_of
from gemmatune_trainer.backends.keras_steps import Steps
from gemmatune_trainer.backends.keras_tally import Counter
from gemmatune_trainer.backends.keras_updates import optimizer
from gemmatune_trainer.backends.schedules import learning_rate
from gemmatune_trainer.backends.usage import resident
from gemmatune_trainer.data.pack import IGNORED
from gemmatune_trainer.errors import passing
from gemmatune_trainer.logs import log
from gemmatune_trainer.models import ModelFiles
from gemmatune_trainer.ranks import Ranks
from gemmatune_trainer.stop import StopFlag

_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""Largest difference of logits between Keras's form of an adapter and PEFT's, relative to the largest logit."""


class KerasBackend:
    """One run's model on all devices of its mesh."""

    def __init__(self, config: RunConfig, files: ModelFiles | None, stop: StopFlag, ranks: Ranks) -> None:
        self._config = config
        if files is not None:
            self.use(files)
        self._stop = stop
        self._ranks = ranks
        self._full = config.method.kind == "full"
        mesh = config.mesh
        self._data, self._model = (mesh.data, mesh.model) if mesh else (1, 1)
        self._backbone: Any = None
        self._weights: list[keras_weights.Weight] = []
        self._adapted: list[keras_lora.Adapted] = []
        self._before: dict[str, Any] = {}
        self._optimizer: Any = None
        self._steps: Steps | None = None
        self._done = 0
        self.placed: list[keras_mesh.Placed] = []
        """Where weights and optimizer variables lie."""

    def use(self, files: ModelFiles) -> None:
        """Names the model's files; a process that follows rank 0 has them later."""
        self._files = files
        self._pad_id = files.tokenizer.pad_id

    def load(self) -> None:
        """Loads the base where the mesh divides it, and attaches a fresh adapter (by the run's seed)."""
        keras_devices.check(self._config.device)
        training = self._config.training
        keras.utils.set_random_seed(training.seed)
        self._distribution = keras_mesh.distribute(self._data, self._model)
        self._build(self._files.folder)
        if self._full:
            keras_whole.prepare(self._backbone)
            self._before = keras_whole.pieces(self._backbone)
        else:
            method = self._config.method
            self._adapted = keras_lora.attach(
                self._backbone,
                target_names(method.target_modules or "all-linear"),
                method.rank or 1,
                method.alpha or 1,
                training.seed,
                "model.language_model." if self._files.model.multimodal else "model.",
            )
        self._compile()
        self._check_placed()

    def _check_placed(self) -> None:
        """Looks where all weights lie, and tells it."""
        weights = [*self._backbone.variables, *(keras_lora.trained_variables(self._adapted) or ())]
        self.placed = keras_mesh.check(((item.path, item) for item in weights), self._distribution)
        self._tell_placed("weights", self.placed)

    def _build(self, folder: Path) -> None:
        """The backbone with the weights of a folder's files."""
        fp32 = self._config.training.precision == "fp32"
        kind = "float32" if fp32 else "mixed_bfloat16" if self._full else "bfloat16"
        checkpoint = keras_weights.Checkpoint(folder)
        self._backbone = keras_weights.build(self._files.config, kind)
        self._weights = keras_weights.table(self._backbone, checkpoint)
        keras_weights.load(self._weights, checkpoint)

    def _compile(self, further: Sequence[Any] = ()) -> None:
        checkpointing = self._config.training.gradient_checkpointing
        trained = keras_lora.trained_variables(self._adapted)
        self._steps = Steps(
            self._backbone, self._distribution, checkpointing=checkpointing, trained=trained, further=further
        )

    def _tell_placed(self, what: str, placed: Sequence[keras_mesh.Placed]) -> None:
        on_device, whole = sum(item.device_bytes for item in placed), sum(item.bytes for item in placed)
        mesh = f"data {self._data} x model {self._model}"
        log.info("placed", what=what, mesh=mesh, variables=len(placed), bytes=whole, bytes_per_device=on_device)
        for item in keras_mesh.summary(placed):
            shape, count = "x".join(map(str, item.shape)), item.count
            log.info("sharding", what=what, variable=item.name, shape=shape, count=count, placed=item.divided)

    @property
    def steps(self) -> Steps:
        """The compiled functions."""
        if self._steps is None:
            raise RuntimeError("the model is not loaded")
        return self._steps

    def generate(self, prompt: Sequence[int], new_tokens: int, stop_at: Sequence[int], image: Any = None) -> list[int]:
        """Greedy continuation of a prompt without its terminator; ends early where the process shall stop."""
        steps = self.steps
        values = steps.values()
        batch, filled, length = keras_images.prompt(self._backbone, prompt, new_tokens, self._pad_id, image)
        placed = {name: steps.copied(array) for name, array in batch.items()}
        token, cache = steps.prefill(*values, steps.cache(length), placed, np.int32(filled))
        found: list[int] = []
        while int(token) not in stop_at and len(found) < new_tokens:
            found.append(int(token))
            if self._ranks.stopping(self._stop):
                break
            place = np.int32(filled + len(found) - 1)
            token, cache = steps.decode(*values, cache, steps.copied(np.int32(found[-1])), place)
        return found

    def train(self, rows: Rows, number_of_rows: int, total_steps: int, start: Path | None, training: Training) -> Tally:
        """Trains up to `total_steps`, from the state in folder `start` where one is given; what was compiled for it."""
        if start:  # first: an adapter that another backend began brings variables of its own
            self.restore_weights(start)
        self._optimizer = optimizer(self._config.training)
        self._optimizer.build(self.steps.trained)
        kept = list(zip(self._moment_paths(), self._optimizer.variables, strict=True))
        moments = keras_mesh.check(kept, self._distribution)
        self._tell_placed("optimizer", moments)
        self.placed += moments
        first = self._restore(start) if start else 0
        batches = self._batches(rows, number_of_rows, total_steps)
        log.info("batches", sequences=batches.shape.sequences, passes=batches.shape.passes, length=batches.shape.length)
        with passing(batches.sequences_each):
            return self._loop(batches, first, total_steps, training)

    def _moment_paths(self) -> list[str]:
        """For each variable of the optimizer, the path of the weight that it belongs to; its own where it has none."""
        owner = {id(moment): item.path for item in self.steps.trained for moment in self._moments(item)}
        return [owner.get(id(item), item.path) for item in self._optimizer.variables]

    def _moments(self, variable: Any) -> list[Any]:
        place = self._optimizer._get_variable_index(variable)
        return [self._optimizer._momentums[place], self._optimizer._velocities[place]]

    def _batches(self, rows: Rows, number_of_rows: int, total_steps: int) -> Batches:
        lengths = lengths_of(rows, number_of_rows)
        share = keras_mesh.share(self._distribution) if self._ranks.size > 1 else None
        return Batches(self._config, rows, lengths, total_steps, self._data, self._pad_id, share)

    def _loop(self, batches: Batches, first: int, total_steps: int, training: Training) -> Tally:
        steps, settings = self.steps, self._config.training
        update = steps.updater(self._optimizer, settings.max_grad_norm)
        (values, frozen), state = steps.values(), [item.value for item in self._optimizer.variables]
        counter, begun = Counter(first), time.monotonic()
        for number in range(first, total_steps):
            step = batches.step(number)
            labelled, filled = self._counted(step)
            sums, loss = steps.zeros(values), 0.0
            for batch in step:
                training.micro_batch()
                sums, part = steps.accumulate(values, frozen, sums, steps.device(batch), np.float32(labelled))
                loss += float(part)
            rate = learning_rate(settings, number, total_steps)
            values, state, norm = update(values, state, sums, np.float32(rate))
            self._assign(values, state, number + 1)
            counter.step(number + 1, batches.shape.tokens, filled)
            now = time.monotonic()
            training.step_done(
                Step(
                    number=number + 1,
                    loss=loss,
                    gradient_norm=float(norm),
                    learning_rate=rate,
                    tokens=filled,
                    labelled_tokens=labelled,
                    seconds=now - begun,
                    memory=_memory(),
                )
            )
            counter.leave_out()
            begun = now
        return counter.tally

    def _counted(self, step: Sequence[Batch]) -> tuple[int, int]:
        """Labelled tokens of a step, and all of them, of all processes."""
        own = [sum(batch.labelled for batch in step), sum(batch.filled for batch in step)]
        labelled, filled = self._ranks.add(own)
        return int(labelled), int(filled)

    def _assign(self, values: Sequence[Any], state: Sequence[Any], step: int) -> None:
        """Puts a step's result into the variables: the old arrays are gone."""
        for variable, value in zip(self.steps.trained, values, strict=True):
            variable._value = value
        for variable, value in zip(self._optimizer.variables, state, strict=True):
            variable._value = value
        self._done = step

    def evaluate(self, rows: Rows, number_of_rows: int, alive: Callable[[], None]) -> tuple[float, int]:
        """Summed loss (nats) over the labelled tokens of all rows, and their number; changes nothing that is trained.

        `alive` is called before every forward pass and may raise to end it.
        """
        steps = self.steps
        values = steps.values()
        total, labelled = 0.0, 0
        batches = self._batches(rows, number_of_rows, 0)
        for batch in batches.all():
            alive()
            with passing(batches.sequences_each):
                total += float(steps.loss(*values, steps.device(batch)))
            labelled += batch.labelled
        return total, int(self._ranks.add([labelled])[0])

    def snapshot(self) -> Snapshot:
        """Copies weights, optimizer state and step as they were after the last optimizer step; rank 0 alone has all."""
        values = ((f"{index:05d}", item.value) for index, item in enumerate(self._optimizer.variables))
        optimizer_state = dict(keras_mesh.host_arrays(values, keep=self._ranks.main))
        return keras_state.snapshot(self._trained(keep=self._ranks.main), optimizer_state, self._done)

    def _trained(self, *, keep: bool = True) -> dict[str, Any]:
        """What is trained, in host memory; all processes must ask, and only those that `keep` have it."""
        if self._full:
            return keras_whole.snapshot(self._weights, keep=keep)
        return keras_lora.snapshot(self._adapted, keep=keep)

    def _restore(self, start: Path) -> int:
        """Puts a checkpoint's optimizer state in place, where keras has left one; the steps that it has behind it."""
        state = keras_state.from_main(self._ranks, lambda: keras_state.read_arrays(start, keras_state.OPTIMIZER))
        for index, item in enumerate(self._optimizer.variables if state else ()):
            keras_mesh.put(item, state[f"{index:05d}"])
        self._done = forms.step_of(start)
        return self._done

    def save_weights(self, folder: Path) -> None:
        """Writes what is trained, bit by bit."""
        arrays = self._trained(keep=self._ranks.main)
        if self._ranks.main:
            keras_state.write_arrays(arrays, folder)

    def restore_weights(self, folder: Path) -> None:
        """Puts the weights of a folder, as save_weights wrote them, into the model in place of the trained ones."""
        arrays = keras_state.from_main(self._ranks, lambda: keras_state.read_weights(folder))
        if self._full:
            keras_whole.restore(self._weights, arrays)
            return
        if keras_lora.take_form(self._adapted, arrays):
            self._compile()
            self._check_placed()
        peft = keras_lora.trained_variables(self._adapted) is not None
        keras_lora.restore(self._adapted, forms.as_peft(arrays) if peft else arrays)

    def save_result(self, folder: Path) -> None:
        """Writes the PEFT adapter, or the whole model in the run's precision."""
        arrays = self._trained(keep=self._ranks.main)
        if not self._ranks.main:
            return
        if self._full:
            keras_whole.publish(arrays, self._files, self._kind, folder)
        else:
            keras_lora.export(self._adapted, arrays, self._files.published_name, folder)

    @property
    def _kind(self) -> Any:
        return keras_whole.KINDS[self._config.training.precision]

    def verify(self, folder: Path, row: Sequence[int]) -> Verification:
        """Reloads the result of a folder as its users will and compares; what is reloaded is used from then on.

        Raises:
            AdapterInvalid, ModelInvalid: weights are missing or unexpected, the outputs differ, or nothing has changed.
        """
        trained = self.logits(row)
        return self._verify_whole(folder, row, trained) if self._full else self._verify_adapter(folder, row, trained)

    def _verify_adapter(self, folder: Path, row: Sequence[int], trained: Any) -> Verification:
        count = sum(int(np.prod(item.shape)) for item in self.steps.trained)
        tensors = keras_state.from_main(self._ranks, lambda: keras_lora.read(folder))
        rank = keras_lora.largest_rank(tensors)
        further, exported = keras_lora.use_peft_form(self._adapted, tensors)
        plain = self._compiled_logits(row, further, off=True)
        reloaded = self._compiled_logits(row, further, off=False)
        difference, delta = float(np.abs(trained - reloaded).max()), float(np.abs(reloaded - plain).max())
        if not difference <= _TOLERANCE[self._config.training.precision] * float(np.abs(trained).max()):
            raise keras_lora.AdapterInvalid(f"the adapter's logits differ by {difference:.3g} from the trained model's")
        if not delta > 0:
            raise keras_lora.AdapterInvalid("the adapter changes nothing: its logits equal the base's")
        return Verification(difference, delta, count, exported, rank, self._placements())

    def _compiled_logits(self, row: Sequence[int], further: Sequence[Any], *, off: bool) -> Any:
        keras_lora.switch(self._adapted, off=off)
        self._compile(further)
        return self.logits(row)

    def _verify_whole(self, folder: Path, row: Sequence[int], trained: Any) -> Verification:
        arrays = self._trained()
        written = keras_state.from_main(self._ranks, lambda: keras_whole.read(self._weights, folder))
        keras_whole.check_files(written, arrays, self._kind, folder)
        keras_whole.restore(self._weights, written)
        reloaded = self.logits(row)
        difference = float(np.abs(trained - reloaded).max())
        if not _rms(trained - reloaded) <= _TOLERANCE["bf16"] * _rms(trained):
            raise keras_whole.ModelInvalid(f"the reloaded model's logits differ by {difference:.3g}")
        delta = keras_whole.largest_change(self._backbone, self._before, self._kind)
        if not delta > 0:
            raise keras_whole.ModelInvalid("training has changed no weight: the result equals the base")
        count = sum(value.size for value in arrays.values())
        return Verification(difference, delta, count, placed=self._placements())

    def _placements(self) -> tuple[Placement, ...]:
        return tuple(keras_mesh.summary(self.placed))

    def logits(self, row: Sequence[int]) -> Any:
        """Logits [tokens, vocabulary] of a row, and where the model reads images of a picture with it."""
        length = padded_length(len(row), len(row))
        shape = (self._data, length)
        tokens, segments = np.full(shape, self._pad_id, np.int32), np.zeros(shape, np.int32)
        tokens[:, : len(row)], segments[:, : len(row)] = row, 1
        labels, prefix = np.full(shape, IGNORED, np.int32), np.zeros(shape[:1], np.int32)
        images = keras_images.ramps(self._backbone, self._data)
        steps = self.steps
        batch = steps.device(Batch(tokens, labels, segments, prefix, images))
        return keras_mesh.host_array(steps.logits(*steps.values(), batch))[0, : len(row)]


def _rms(values: Any) -> float:
    return float(np.sqrt(np.mean(np.square(values.astype(np.float64)))))


def _memory() -> int:
    """Bytes: the most that an accelerator has held so far, or what the process has on a CPU."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return int(statistics.get("peak_bytes_in_use", 0)) or resident()
