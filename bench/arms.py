"""One arm of the trainer's benchmark: a process of its own that does optimizer steps when it is told to.

`python -m bench.arms SETTINGS` reads one JSON command per line on stdin and answers each with one line on stdout:
`{"steps": N}` does N steps, with `"measure": true` also counting floating-point work and live tensor bytes;
`{"end": FOLDER}` writes the adapter there and ends.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bench.trainer_rows import IGNORED, Rows

Arm = Literal["r1", "trainer", "trl", "ours"]
Precision = Literal["bf16", "fp32"]
RANK, ALPHA, LEARNING_RATE, SEED = 8, 16, 2e-4, 42
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Settings:
    """What an arm is told at its start; `started` is the time at which its process was started."""

    arm: Arm
    precision: Precision
    model: str
    rows: str
    batch: int
    steps: int
    threads: int
    started: float

    def argument(self) -> str:
        """The process's argument."""
        return json.dumps(asdict(self))

    @property
    def row_order(self) -> list[list[int]]:
        """The rows of each step: the same in every arm."""
        from gemmatune_trainer.data.order import step_rows

        count = len(Rows.read(Path(self.rows)).train)
        return [step_rows(SEED, step, count, self.batch) for step in range(self.steps)]


class Turns:
    """The conversation with the driver, around the steps of whatever trainer."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._left = 0
        self._measure: Measure | None = None
        self._seen: list[list[list[Any]]] = []
        self._first_step: float | None = None
        self._began = (0.0, 0.0)
        self.end: Path | None = None
        """Where to write the adapter; set when there is nothing more to do."""

    def say(self, **found: Any) -> None:
        """One line for the driver."""
        print(json.dumps(found), file=_ANSWERS, flush=True)

    def before_step(self) -> None:
        """Waits for a command where the last one is carried out."""
        if self._left or self.end:
            return
        command = json.loads(sys.stdin.readline() or '{"end": ""}')
        if "end" in command:
            self.end = Path(command["end"])
            return
        self._left = command["steps"]
        self._seen = []
        if command.get("measure"):
            self._measure = Measure()
        self._began = (time.perf_counter(), time.process_time())

    def batch(self, inputs: dict[str, Any]) -> None:
        """Notes the documents of a micro-batch: their ids and labels, without padding."""
        self._seen.append(_documents(inputs))

    def after_step(self) -> None:
        """Answers the command when its last step is done."""
        self._left -= 1
        if self._first_step is None:
            self._first_step = time.time() - self._settings.started
        if self._left:
            return
        wall, cpu = time.perf_counter() - self._began[0], time.process_time() - self._began[1]
        measured = self._measure.finish() if self._measure else {}
        self._measure = None
        peak = _peak_rss()
        _give_back()
        self.say(
            wall=wall,
            cpu=cpu,
            first_step=self._first_step,
            peak_rss=peak,
            documents=[document for batch in self._seen for document in batch],
            **measured,
        )


class Measure:
    """Floating-point work (bench/flops.py) and the most live tensor bytes, from here to `finish`."""

    def __init__(self) -> None:
        import torch

        from bench import flops

        self._resident = sum(_storages())
        self._flops = flops.counter()
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        self._flops.__enter__()

    def finish(self) -> dict[str, int]:
        """What was found."""
        self._flops.__exit__(None, None, None)
        self._profile.__exit__(None, None, None)
        events = self._profile.profiler.kineto_results.events()
        changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
        peak = now = 0
        for _, change in changes:
            now += change
            peak = max(peak, now)
        return {"flops": self._flops.get_total_flops(), "live_bytes": self._resident + peak}


def _storages() -> list[int]:
    """Sizes of the different storages of all tensors that Python knows of."""
    import gc

    import torch

    found = {}
    for item in gc.get_objects():
        if type(item) in (torch.Tensor, torch.nn.Parameter) and item.device.type == "cpu":
            storage = item.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return list(found.values())


def _documents(inputs: dict[str, Any]) -> list[list[Any]]:
    """The documents of a batch, packed (position ids restart) or padded (attention mask), as [ids, labels]."""
    found = []
    ids, labels = inputs["input_ids"].tolist(), inputs["labels"].tolist()
    for index, row in enumerate(ids):
        if "attention_mask" in inputs:
            length = int(inputs["attention_mask"][index].sum())
            spans = [(0, length)]
        else:
            begins = [place for place, value in enumerate(inputs["position_ids"][index].tolist()) if value == 0]
            spans = list(zip(begins, [*begins[1:], len(row)], strict=True))
        for begin, end in spans:
            document_labels = [IGNORED, *labels[index][begin + 1 : end]]
            if any(row[begin:end]):  # not padding
                found.append([row[begin:end], document_labels])
    return found


def _peak_rss() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _give_back() -> None:
    """Lets the others have, while they take their turns, what the C library has kept of freed memory."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _loaded(settings: Settings, turns: Turns, imported: float) -> None:
    turns.say(loaded=time.time() - settings.started, imported=imported - settings.started, rss=_rss())


def others(settings: Settings, turns: Turns) -> None:
    """The arms that are not ours: transformers.Trainer or TRL's SFTTrainer on a PEFT model."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, TrainerCallback, set_seed

    trl = settings.arm in ("r1", "trl")
    if trl:
        from trl import SFTConfig as Arguments
        from trl import SFTTrainer as Base
    else:
        from transformers import Trainer as Base
        from transformers import TrainingArguments as Arguments
    imported = time.time()

    class Callback(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.before_step()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            turns.after_step()

    class Turned(Base):  # type: ignore[misc, valid-type]
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
            if turns.end:
                raise Ended
            turns.batch(inputs)
            return super().training_step(model, inputs, *rest, **named)

        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    tokenizer = AutoTokenizer.from_pretrained(settings.model, padding_side="right")
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype)
    set_seed(SEED)
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    rows = Rows.read(Path(settings.rows))
    ordered = [rows.row(index) for step in settings.row_order for index in step]
    micro = 1 if settings.arm == "r1" else settings.batch
    common = {
        "output_dir": tempfile.gettempdir(),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": settings.batch // micro,
        "max_steps": settings.steps,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "weight_decay": 0.0,
        "bf16": settings.precision == "bf16",
        "use_cpu": not torch.cuda.is_available(),
        "seed": SEED,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "activation_checkpointing": False,
    }
    if trl:
        common["dataset_kwargs"] = {"skip_prepare_dataset": True}
    collator = {} if trl else {"data_collator": DataCollatorForSeq2Seq(tokenizer)}
    trainer = Turned(
        model=model,
        args=Arguments(**common),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"input_ids": [ids for ids, _ in ordered], "labels": [b for _, b in ordered]}),
        callbacks=[Callback()],
        **collator,
    )
    _loaded(settings, turns, imported)
    try:
        trainer.train()
        turns.before_step()
    except Ended:
        pass
    model.save_pretrained(turns.end)


class Ended(Exception):
    """The driver wants no more steps."""


def ours(settings: Settings, turns: Turns) -> None:
    """This project's torch backend, as a run uses it."""
    from gemmatune_trainer.backends.base import Step
    from gemmatune_trainer.backends.torch import TorchBackend
    from gemmatune_trainer.backends.torch_trainer import PackedTrainer
    from gemmatune_trainer.models import fetch
    from gemmatune_trainer.stop import StopFlag

    imported = time.time()
    config = run_config(settings)
    files = fetch(config.model, weights=True)
    backend = TorchBackend(config, files, StopFlag())
    backend.load()
    rows = Rows.read(Path(settings.rows))

    class Watcher:
        def micro_batch(self) -> None:
            turns.before_step()
            if turns.end:
                raise Ended

        def step_done(self, step: Step) -> None:
            turns.after_step()

    compute = PackedTrainer.compute_loss

    def noting(self: Any, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        turns.batch(inputs)
        return compute(self, model, inputs, *rest, **named)

    PackedTrainer.compute_loss = noting
    _loaded(settings, turns, imported)
    try:
        backend.train(rows, len(rows.train), settings.steps, None, Watcher())
        turns.before_step()
    except Ended:
        pass
    assert turns.end is not None
    backend.save_result(turns.end)


def run_config(settings: Settings) -> Any:
    """The RunConfig of our arm."""
    rows = Rows.read(Path(settings.rows)).train
    return build_config(settings, len(rows), max(len(ids) for ids, _ in rows))


def build_config(settings: Settings, rows: int, longest: int, **blocks: Any) -> Any:
    """A RunConfig of ours over so many rows; `blocks` replace blocks of the spec."""
    from gemmatune_api import catalog, fit
    from gemmatune_api.defaults import resolve
    from gemmatune_api.runconfig import RunIdentity, build
    from gemmatune_api.spec import FineTuneSpec

    training = {
        "maxSteps": settings.steps,
        "globalBatchSize": settings.batch,
        "microBatchSize": settings.batch,
        "gradientCheckpointing": False,
        "learningRate": LEARNING_RATE,
        "schedule": "constant",
        "warmupSteps": 0,
        "precision": settings.precision,
        "seed": SEED,
    }
    text = {
        "model": {"uri": Path(settings.model).as_uri()},
        "dataset": {"uri": Path(settings.rows).as_uri(), "text": {"template": "Quote: {text}\nAuthor: {from}"}},
        "output": {"uri": "file:///nowhere"},
        "accelerator": {"cpu": {}},
        "lora": {"rank": RANK, "alpha": ALPHA},
        "training": training,
        **blocks,
    }
    spec = resolve(FineTuneSpec.model_validate(text))
    model = catalog.by_config(json.loads(Path(settings.model, "config.json").read_text()))
    assert model is not None
    plan = fit.plan(spec, model, rows=rows, longest=longest)
    return build(spec, RunIdentity(name="arm", namespace="bench", uid="bench"), 1, plan)


_ANSWERS = sys.stdout


def main() -> None:
    """Runs the arm of the argument."""
    global _ANSWERS
    _ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    settings = Settings(**json.loads(sys.argv[1]))
    import torch

    torch.set_num_threads(settings.threads)
    turns = Turns(settings)
    (ours if settings.arm == "ours" else others)(settings, turns)
    turns.say(done=True)
    os._exit(0)


if __name__ == "__main__":
    main()
