"""Parts of the trainer's benchmark that look at whole runs of ours: what is lost between steps, and NF4 against bf16.

`python -m bench.trainer_whole run SETTINGS` does a run with checkpoints and progress and prints what it lost;
`python -m bench.trainer_whole quality SETTINGS METHOD SEED` prints held-out losses before and after some steps.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench import checkpoint_cost
from bench.arms import Settings, build_config, run_config
from bench.trainer_rows import Rows

CHECKPOINT_EVERY = 10
"""Steps between checkpoints of the whole run: far more often than every ten minutes."""


def story(settings: Settings, output: Path) -> Any:
    """The RunConfig of a whole run."""
    checkpoint = {"everySteps": CHECKPOINT_EVERY}
    samples = {"prompts": ["Quote: Imagination is"], "maxNewTokens": 20}
    return build_config(settings, 300, 200, output={"uri": output.as_uri()}, checkpoint=checkpoint, samples=samples)


class Listed:
    """Rows as a backend evaluates them."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def row(self, index: int) -> Any:
        """One row."""
        return self._rows[index]


class Times:
    """Where the time of a run goes: looks on at an Attempt's callbacks and at the samples."""

    def __init__(self) -> None:
        self.first_begins = self.first = self.last = 0.0
        """When the first micro-batch began, the first step ended, the last callback was through."""
        self.waiting = self.samples = 0.0
        self.alone: list[float] = []
        self.beside: list[float] = []
        """Seconds of the steps between callbacks, without and with an upload beside them."""
        self._computed = 0.0
        self._uploading = False

    def look_at(self, kind: Any, name: str, note: Any) -> None:
        """Calls `note(self of the call, begin, end)` after every call of a method."""
        inner = getattr(kind, name)

        def outer(instance: Any, *arguments: Any) -> Any:
            began = time.time()
            try:
                return inner(instance, *arguments)
            finally:
                note(instance, began, time.time())

        setattr(kind, name, outer)

    def sampled(self, samples: Any, began: float, ended: float) -> None:
        """Samples were made."""
        self.samples += ended - began

    def micro_batch(self, attempt: Any, began: float, ended: float) -> None:
        """A callback before a forward pass."""
        self.first_begins = self.first_begins or began
        self._between(attempt, began, ended)

    def step_done(self, attempt: Any, began: float, ended: float) -> None:
        """The callback after a step."""
        if not self.first:
            self.first = began
            self.last = ended
            return
        self._between(attempt, began, ended)
        (self.beside if self._uploading else self.alone).append(self._computed)
        self._computed, self._uploading = 0.0, _uploads(attempt)

    def _between(self, attempt: Any, began: float, ended: float) -> None:
        if not self.first:
            return
        self._computed += began - self.last
        self._uploading = self._uploading or _uploads(attempt)
        self.waiting += ended - began
        self.last = ended

    def lost(self) -> dict[str, float]:
        """Shares of the run: waiting, slower steps beside uploads, samples, and all together."""
        whole = self.last - self.first + self.samples
        slower = checkpoint_cost.more(self.beside, self.alone) if self.alone else 0.0
        parts = {"waiting": self.waiting / whole, "slowed": slower / whole, "samples": self.samples / whole}
        return {"lost": sum(parts.values()), **parts}


def _uploads(attempt: Any) -> bool:
    return any(not upload.done() for upload in list(attempt._checkpoints._uploads.values()))


def whole(settings: Settings) -> dict[str, Any]:
    """A run by the trainer's own story, in this process: seconds of its beginning, and the share that steps lose."""
    from gemmatune_api.names import ENV_RUN
    from gemmatune_trainer import run
    from gemmatune_trainer.__main__ import main

    times = Times()
    times.look_at(run.Attempt, "micro_batch", times.micro_batch)
    times.look_at(run.Attempt, "step_done", times.step_done)
    times.look_at(run.Samples, "answers", times.sampled)
    assert os.environ[ENV_RUN]
    code = main(["train"])
    if code:
        sys.exit(code)
    return {
        "first_step_begins": times.first_begins - settings.started,
        "first_step": times.first - settings.started,
        **times.lost(),
        "steps": settings.steps,
        "checkpoint_every": CHECKPOINT_EVERY,
    }


def quality(settings: Settings, method: str, seed: int) -> dict[str, Any]:
    """Held-out loss before and after training, by the backend's own evaluation."""
    from gemmatune_trainer.backends.torch import TorchBackend
    from gemmatune_trainer.models import fetch
    from gemmatune_trainer.stop import StopFlag

    config = run_config(settings)
    changed = {"kind": method}
    if method == "qlora":
        changed |= {"bits": 4, "quant_type": "nf4", "double_quant": True}
    config = config.model_copy(
        update={
            "method": config.method.model_copy(update=changed),
            "training": config.training.model_copy(update={"seed": seed}),
        }
    )
    files = fetch(config.model, weights=True)
    backend = TorchBackend(config, files, StopFlag())
    backend.load()
    rows = Rows.read(Path(settings.rows))

    class Silent:
        def micro_batch(self) -> None:
            """Nothing."""

        def step_done(self, step: Any) -> None:
            """Nothing."""

    def held_out() -> float:
        total, count = backend.evaluate(Listed(rows.held_out), len(rows.held_out), lambda: None)
        return total / count

    before = held_out()
    backend.train(rows, len(rows.train), settings.steps, None, Silent())
    return {"method": method, "seed": seed, "before": before, "after": held_out()}


def main() -> None:
    """Does what the arguments say."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = Settings(**json.loads(sys.argv[2]))
    import torch

    torch.set_num_threads(settings.threads)
    found = whole(settings) if sys.argv[1] == "run" else quality(settings, sys.argv[3], int(sys.argv[4]))
    print(json.dumps(found), file=answers, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
