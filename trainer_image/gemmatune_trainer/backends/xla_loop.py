"""The training loop on a mesh of chips: passes of one shape, gradients that add up on the chips, one update a step."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.trainer_pt_utils import safe_globals

from gemmatune_api.sharding import Spec
from gemmatune_trainer.backends import forms, moments, xla_device
from gemmatune_trainer.backends.base import COMPILING_STEPS, Snapshot, Step, Tally, Training
from gemmatune_trainer.backends.fixed import FixedBatches, FixedStep
from gemmatune_trainer.backends.sharding import of_rows
from gemmatune_trainer.backends.xla_device import Chips
from gemmatune_trainer.backends.xla_optimizer import Optimizer, shared
from gemmatune_trainer.data.pack import Batch
from gemmatune_trainer.logs import log
from gemmatune_trainer.ranks import Ranks

OPTIMIZER, SCHEDULER, RANDOM, STATE = "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"
"""Files of a state: those of transformers' Trainer, which the torch backend writes and reads."""

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Summed loss of (input ids, position ids, labels), on the chips."""


class Loop:
    """The steps of one training."""

    def __init__(
        self,
        chips: Chips,
        loss: Loss,
        optimizer: Optimizer,
        batches: FixedBatches,
        specs: dict[str, Spec],
        seed: int,
    ) -> None:
        """`specs`: how the weights are divided, by name; `seed`: that of the run, for dropout."""
        self._seed = seed
        self._chips = chips
        self._loss = loss
        self._optimizer = optimizer
        self._batches = batches
        self._specs = [specs[name] for name in optimizer.names]
        self._gradients = [
            chips.mark(torch.zeros_like(value, dtype=torch.float32), spec)
            for value, spec in zip(optimizer.parameters, self._specs, strict=True)
        ]
        self._done = 0
        self._random: dict[str, Any] = {}
        self._computed = self._filled = 0
        self._compiled, self._late, self._compiling = 0, 0, 0.0

    def restore(self, folder: Path, ranks: Ranks) -> None:
        """Goes on from the state in a folder of rank 0, of any backend; the step is in every rank's.

        Where keras has left no optimizer that can be read here, it begins anew.
        """
        self._done = forms.step_of(folder)
        optimizer = schedule = None
        if ranks.main and (folder / OPTIMIZER).exists():
            with safe_globals():
                optimizer = moments.of_torch(torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu"))
                schedule = torch.load(folder / SCHEDULER, weights_only=True)
        if ranks.size > 1:
            schedule = ranks.from_main(schedule)
            optimizer = shared(ranks, optimizer) if schedule is not None else None
        if optimizer is None or schedule is None:
            self._optimizer.begin_at(self._done)
        else:
            self._optimizer.restore(optimizer, schedule)

    def run(self, training: Training) -> Tally:
        """Trains to the last step; what was compiled and padded."""
        may_compile = self._done + COMPILING_STEPS
        self._keep_random()
        xla_device.compute()
        started = time.monotonic()
        for number, step in enumerate(self._batches.steps(self._done), self._done + 1):
            before, seconds_before = xla_device.compilations()
            rate = self._optimizer.rate
            loss, norm = self._step(step, training)
            self._done = number
            self._keep_random()
            after, seconds_after = xla_device.compilations()
            compiled = after - before
            self._compiled += compiled
            self._compiling += seconds_after - seconds_before
            if compiled and number > may_compile:
                self._late += compiled
                log.warning("the step was compiled anew", step=number, compilations=compiled)
            now = time.monotonic()
            seconds, started = now - started, now
            training.step_done(Step(number, loss, norm, rate, step.tokens, step.labelled, seconds, xla_device.memory()))
        return self.tally

    def _keep_random(self) -> None:
        self._random = {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "cpu": torch.random.get_rng_state(),
        }

    def _step(self, step: FixedStep, training: Training) -> tuple[float, float]:
        """Loss and gradient norm of one step."""
        total = torch.zeros((), device=self._chips.device)
        scale = torch.tensor(1.0 / max(1, step.labelled)).to(self._chips.device)
        for number, batch in enumerate(step.passes):
            training.micro_batch()
            if number == 0 and not self._computed:
                log.info("compiling", step=self._done + 1)  # minutes in which nothing else is said
            xla_device.set_random_state(_number(self._seed, self._done, number))
            total = total + self._pass(batch, scale, first=number == 0)
            xla_device.compute()
        norm = self._optimizer.step(self._gradients)
        xla_device.compute()
        self._computed += sum(batch.input_ids.size for batch in step.passes)
        self._filled += step.tokens
        return float(total), float(norm)

    def _pass(self, batch: Batch, scale: Tensor, first: bool) -> Tensor:
        """One pass, forward and backward; its gradients are added to those of the step."""
        keep = torch.tensor(0.0 if first else 1.0).to(self._chips.device)
        loss = self._loss(*placed(self._chips, batch)) * scale
        loss.backward()
        for index, value in enumerate(self._optimizer.parameters):
            held = torch.where(keep > 0, self._gradients[index], torch.zeros_like(self._gradients[index]))
            if value.grad is not None:
                held = held + value.grad.float()
            value.grad = None
            # Marked after every pass: left to itself, the compiler divides what it gives back as it likes.
            self._gradients[index] = self._chips.mark(held, self._specs[index])
        return loss.detach()

    @property
    def tally(self) -> Tally:
        """What was compiled and padded so far."""
        padding = 1.0 - self._filled / self._computed if self._computed else 0.0
        return Tally(self._compiled, self._late, self._compiling, padding)

    def optimizer_bytes(self) -> dict[str, tuple[int, int]]:
        """Of the optimizer's state of every weight: bytes on one chip, and bytes of the whole."""
        return self._optimizer.device_bytes()

    def snapshot(self) -> Snapshot:
        """Optimizer, schedule, random states and step as they were after the last step."""
        optimizer, schedule = self._optimizer.state()
        states, done = copy.deepcopy(self._random), self._done

        def write(folder: Path) -> None:
            torch.save(optimizer, folder / OPTIMIZER)
            torch.save(schedule, folder / SCHEDULER)
            torch.save(states, folder / RANDOM)
            (folder / STATE).write_text(json.dumps({"global_step": done}), encoding="utf-8")

        return write


def _number(*parts: int) -> int:
    """A random number of 63 bits that these numbers decide: dropout of a pass depends on nothing that came before."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def placed(chips: Chips, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Input ids, position ids and labels of a batch on the chips."""
    arrays = [batch.input_ids, batch.position_ids, batch.labels]
    input_ids, position_ids, labels = chips.place_rows(arrays, of_rows(2))
    return input_ids, position_ids, labels
