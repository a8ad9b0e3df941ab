"""A backend as an arm of the TPU benchmark: a training in its environment, by xla and keras on virtual devices.

`python -m bench.tpu_arm SETTINGS` prints one line of JSON: loss and seconds of each step, what was compiled, and the
bytes that weights and optimizer take of a device and as a whole.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from bench import arms
from bench.tpu_settings import LEARNING_RATE, MAY_COMPILE, SEED, Settings
from bench.trainer_rows import Rows

Bytes = dict[str, tuple[int, int]]
"""Bytes of one device, and of the whole, by what they hold."""


class Watcher:
    """Keeps loss and seconds of the steps, and what was compiled after those that may."""

    def __init__(self, compiled: Any) -> None:
        self.steps: list[Any] = []
        self._compiled = compiled
        self.early = 0

    def micro_batch(self) -> None:
        """Nothing."""

    def step_done(self, step: Any) -> None:
        """Keeps it."""
        self.steps.append(step)
        if step.number == MAY_COMPILE:
            self.early = self._compiled()[0]


def run_config(settings: Settings) -> Any:
    """The RunConfig of this arm: one row a sequence, as the arm that it is held against has it."""
    mesh = _mesh(settings)
    micro_batch_size = settings.batch // (mesh.data if mesh else 1)
    training = {
        "maxSteps": settings.steps,
        "globalBatchSize": settings.batch,
        "microBatchSize": micro_batch_size,
        "gradientCheckpointing": True,
        "learningRate": LEARNING_RATE,
        "schedule": "constant",
        "warmupSteps": 0,
        "optimizer": settings.optimizer,
        "precision": "fp32",
        "seed": SEED,
    }
    common = arms.Settings("ours", "fp32", settings.model, settings.rows, settings.batch, settings.steps, 1, 0.0)
    dataset = {
        "uri": Path(settings.rows).as_uri(),
        "text": {"template": "Quote: {text}\nAuthor: {from}"},
        "maxLength": settings.length,
        "packing": False,
    }
    blocks = {
        "training": training,
        "dataset": dataset,
        "backend": settings.arm,
        "accelerator": {"cpu": {} if settings.arm == "torch" else {"devices": settings.devices}},
    }
    config = arms.build_config(common, len(Rows.read(Path(settings.rows)).train), settings.length, **blocks)
    # The plan for this machine must not decide these.
    fixed = {"micro_batch_size": micro_batch_size, "gradient_checkpointing": True}
    return config.model_copy(update={"mesh": mesh, "training": config.training.model_copy(update=fixed)})


def _mesh(settings: Settings) -> Any:
    """xla: along data alone, as fully_shard divides weights. keras: along data in two, and the rest along model.

    A CPU keeps what keras gathers along data until the backward pass has used it, whole for each group: four groups of
    the 270M in fp32 take more than 24 GB.
    """
    from gemmatune_api.runconfig import RunMesh

    if settings.arm == "torch":
        return None
    data = min(settings.devices, 2) if settings.arm == "keras" else settings.devices
    return RunMesh(data=data, model=settings.devices // data)


def _compiled_by_jax() -> Any:
    """Counts what JAX compiles from now on: a function that gives number and seconds."""
    import jax

    seconds: list[float] = []

    def heard(name: str, duration: float, **_: Any) -> None:
        if name == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(heard)
    return lambda: (len(seconds), sum(seconds))


def _compiled(arm: str) -> Any:
    """A function that gives number and seconds of what was compiled so far."""
    if arm == "xla":
        from gemmatune_trainer.backends import xla_device

        return xla_device.compilations
    return _compiled_by_jax() if arm == "keras" else lambda: (0, 0.0)


def _bytes(arm: str, backend: Any, weights: int) -> Bytes:
    """Of the model without its adapter, which keras has on every device, and of the optimizer.

    `weights`: how many of what keras has placed are weights.
    """
    if arm == "keras":
        pairs = [(item.path, (item.device_bytes, item.bytes)) for item in backend.placed]
        model, moments = pairs[:weights], [pair for _, pair in pairs[weights:]]
    elif arm == "xla":
        model, moments = backend.device_bytes().items(), backend.optimizer_bytes().values()
    else:
        model, moments = [(name, (one.nbytes, one.nbytes)) for name, one in backend._model.named_parameters()], None
    found = {"weights": _sum(pair for name, pair in model if "lora_" not in name)}
    return found if moments is None else {**found, "optimizer": _sum(moments)}


def _sum(pairs: Any) -> tuple[int, int]:
    pairs = list(pairs)
    return sum(int(one) for one, _ in pairs), sum(int(whole) for _, whole in pairs)


def main() -> None:
    """Trains, and tells."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    settings = Settings(**json.loads(sys.argv[1]))
    from gemmatune_trainer import backends
    from gemmatune_trainer.models import fetch
    from gemmatune_trainer.ranks import Ranks
    from gemmatune_trainer.stop import StopFlag

    config = run_config(settings)
    backend: Any = backends.make(config, fetch(config.model, weights=True), StopFlag(), Ranks())
    compiled = _compiled(settings.arm)
    backend.load()
    before, before_seconds = compiled()
    weights = len(backend.placed) if settings.arm == "keras" else 0
    rows, watcher = Rows.read(Path(settings.rows)), Watcher(compiled)
    backend.train(rows, len(rows.train), settings.steps, None, watcher)
    after, after_seconds = compiled()
    found = {
        "losses": [step.loss for step in watcher.steps],
        "seconds": [step.seconds for step in watcher.steps],
        "tokens": [step.tokens for step in watcher.steps],
        "compilations": after - before,
        "late": after - watcher.early,
        "compile_seconds": after_seconds - before_seconds,
        "bytes": _bytes(settings.arm, backend, weights),
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(found), file=answers, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
