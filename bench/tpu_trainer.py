"""transformers' Trainer with xla_fsdp_v2, as R2's source sets it up: the arm that backend xla is held against.

`python -m bench.tpu_trainer SETTINGS` runs in an environment of its own (tpu_trainer.txt), prints what tpu_arm prints,
and imports nothing of this project beside the settings.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.tpu_settings import ALPHA, LEARNING_RATE, MAY_COMPILE, RANK, SEED, TARGETS, Settings


def main() -> None:
    """Trains, and tells."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = Settings(**json.loads(sys.argv[1]))
    print(json.dumps(train(settings)), file=answers, flush=True)
    os._exit(0)


class Record:
    """What was seen of the steps: their beginnings and ends in turn, exact losses, and compilations so far."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.losses: list[float] = []
        self.compiled: list[int] = []

    @property
    def seconds(self) -> list[float]:
        """From the end of the step before (of the first one: its beginning) to a step's end, loss on the host."""
        ends = self.times[1::2]
        return [end - begin for begin, end in zip([self.times[0], *ends], ends, strict=False)]


def train(settings: Settings) -> dict[str, Any]:
    """A training by the Trainer; every step ends with its loss on the host, since each is logged."""
    import torch_xla.runtime

    torch_xla.runtime.use_spmd()
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed

    steps = json.loads(Path(settings.ordered).read_text())
    rows = [_padded(row, settings.length) for step in steps for row in step]
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32, attn_implementation="eager")
    layer = type(model.model.layers[0]).__name__
    set_seed(SEED)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0, task_type="CAUSAL_LM")
    record = Record()
    trainer = _trainer(get_peft_model(model, lora), rows, settings, layer, record)
    trainer.train()
    number, spent = _compilations()
    return {
        "losses": record.losses,
        "seconds": record.seconds,
        "tokens": [sum(len(ids) for ids, _ in step) for step in steps],
        "compilations": number,
        "late": number - record.compiled[MAY_COMPILE - 1],
        "compile_seconds": spent,
        "bytes": {"weights": _bytes(trainer.model)},
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _trainer(model: Any, rows: list[Any], settings: Settings, layer: str, record: Record) -> Any:
    """The Trainer, with rows in their order and eyes on each step."""
    import torch
    from transformers import Trainer, TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            record.times.append(time.monotonic())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                record.losses.append(logs["loss"])
                record.times.append(time.monotonic())
                record.compiled.append(_compilations()[0])

    class Ordered(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, *arguments: Any, **named: Any) -> Any:
            self.newest = super().training_step(*arguments, **named)
            return self.newest

        def log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
            # What it logs is rounded to four digits: what that was made from is there by now.
            super().log({**logs, "loss": float(self.newest)} if "loss" in logs else logs, *rest, **named)

    return Ordered(model=model, args=_arguments(settings, layer), train_dataset=rows, callbacks=[Watch()])


def _arguments(settings: Settings, layer: str) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=settings.batch,
        max_steps=settings.steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim=settings.optimizer,
        weight_decay=0.0,
        logging_steps=1,
        dataloader_drop_last=True,
        fsdp="full_shard",
        fsdp_config={
            "transformer_layer_cls_to_wrap": [layer],
            "xla": True,
            "xla_fsdp_v2": True,
            "xla_fsdp_grad_ckpt": True,
        },
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
    )


def _padded(row: list[list[int]], length: int) -> dict[str, list[int]]:
    ids, labels = row
    rest = length - len(ids)
    return {
        "input_ids": ids + [0] * rest,
        "attention_mask": [1] * len(ids) + [0] * rest,
        "labels": labels + [-100] * rest,
    }


def _compilations() -> tuple[int, float]:
    import torch_xla.debug.metrics

    found = torch_xla.debug.metrics.metric_data("CompileTime")
    return (int(found[0]), found[1] / 1e9) if found else (0, 0.0)


def _bytes(model: Any) -> tuple[int, int]:
    """Bytes of the weights without the adapter on the fullest device, and of the whole."""
    import torch_xla

    on_one = whole = 0
    for name, value in model.named_parameters():
        if "lora_" in name:
            continue
        (shards,) = torch_xla._XLAC._get_local_shards([value])
        on_one += max(shard.nbytes for shard, _ in shards)
        whole += value.nbytes
    return on_one, whole


if __name__ == "__main__":
    main()
