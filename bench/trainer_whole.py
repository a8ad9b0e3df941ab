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

from bench.arms import Settings, build_config, run_config
from bench.trainer_rows import Rows

CHECKPOINT_EVERY = 10
"""Steps between checkpoints of the whole run: far more often than every ten minutes."""


def story(settings: Settings, output: Path) -> Any:
    """The RunConfig of a whole run."""
    checkpoint = {"everySteps": CHECKPOINT_EVERY}
    return build_config(settings, 300, 200, output={"uri": output.as_uri()}, checkpoint=checkpoint)


class Listed:
    """Rows as a backend evaluates them."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def row(self, index: int) -> Any:
        """One row."""
        return self._rows[index]


def whole(settings: Settings) -> dict[str, Any]:
    """A run by the trainer's own story, in this process: seconds of its beginning, and the share lost between steps.

    Lost is what is spent in the callbacks of micro-batches and steps: progress, checkpoints and their polling.
    """
    from gemmatune_api.names import ENV_RUN
    from gemmatune_trainer import run
    from gemmatune_trainer.__main__ import main

    spent = {"lost": 0.0, "first": 0.0, "first_begins": 0.0, "last": 0.0}

    def timed(name: str) -> None:
        inner = getattr(run.Attempt, name)

        def outer(self: Any, *arguments: Any) -> Any:
            began = time.time()
            spent["first_begins"] = spent["first_begins"] or began
            if name == "step_done":
                spent["first"] = spent["first"] or began
            try:
                return inner(self, *arguments)
            finally:
                spent["last"] = time.time()
                if began > spent["first"] > 0 and began != spent["first"]:
                    spent["lost"] += spent["last"] - began

        setattr(run.Attempt, name, outer)

    timed("micro_batch")
    timed("step_done")
    assert os.environ[ENV_RUN]
    code = main(["train"])
    if code:
        sys.exit(code)
    return {
        "first_step_begins": spent["first_begins"] - settings.started,
        "first_step": spent["first"] - settings.started,
        "lost": spent["lost"] / (spent["last"] - spent["first"]),
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
