"""What the trainer's tests share: tiny random Gemma models, run configurations, and rows."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api.names import ENV_CACHE
from gemmatune_api.runconfig import (
    RunCheckpoint,
    RunConfig,
    RunDataset,
    RunIdentity,
    RunMethod,
    RunModel,
    RunOutput,
    RunSamples,
    RunTraining,
)
from gemmatune_api.spec import TextFormat
from tests.support import tinytorch
from tests.support.standin import write_tokenizer
from tests.support.trainerhost import TrainerHost

GENERATIONS = ("1", "2", "3")
SLIDING_WINDOW = 16


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_model("3")` is the folder of a random Gemma 3 with the stand-in vocabulary, written once.

    Other kinds are those of tests/support/tinytorch.py.
    """
    folders: dict[str, Path] = {}

    def make(generation: str) -> Path:
        if generation not in folders:
            write = write_tiny_model if generation in GENERATIONS else tinytorch.write_model
            folders[generation] = write(tmp_path_factory.mktemp(f"gemma{generation}"), generation)
        return folders[generation]

    return make


def write_tiny_model(folder: Path, generation: str) -> Path:
    """A random Gemma of about 100,000 weights in fp32, with a sliding window of 16 tokens."""
    import torch
    import transformers

    vocabulary = write_tokenizer(folder, generation)
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if generation != "1":
        layers = ["sliding_attention", "full_attention", "sliding_attention"]
        shape |= {"sliding_window": SLIDING_WINDOW, "layer_types": layers, "query_pre_attn_scalar": 16}
    kinds = {
        "1": (transformers.GemmaConfig, transformers.GemmaForCausalLM),
        "2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
        "3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    }
    config_class, model_class = kinds[generation]
    torch.manual_seed(0)
    model = model_class(config_class(**shape))
    with torch.no_grad():
        for value in model.parameters():  # large enough for attention and soft-capping to matter
            value.normal_(0.0, 0.15)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def trainer_host() -> Iterator[TrainerHost]:
    """Starts trainer processes without paying for their imports each time."""
    with TrainerHost() as host:
        yield host


@pytest.fixture
def make_config(
    tiny_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RunConfig]:
    """`make_config(kind="qlora", max_steps=3)`: the configuration of a run of a tiny model on quotes."""
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))

    def make(generation: str = "3", **changes: Any) -> RunConfig:
        return run_config(tiny_model(generation), write_quotes(tmp_path / "quotes.jsonl"), tmp_path / "out", **changes)

    return make


BLOCKS = {
    "run": RunIdentity.model_fields,
    "top": ("attempt",),
    "model": RunModel.model_fields,
    "dataset": RunDataset.model_fields,
    "method": RunMethod.model_fields,
    "training": RunTraining.model_fields,
    "checkpoint": RunCheckpoint.model_fields,
    "output": RunOutput.model_fields,
    "samples": RunSamples.model_fields,
}
"""The fields of each block; a name that several have is that of the first."""


def run_config(model: Path, data: Path, output: Path | str, **changes: Any) -> RunConfig:
    """A RunConfig of an fp32 LoRA run on the CPU; `changes` are fields of its blocks, by their own names."""
    out = output if isinstance(output, str) else output.as_uri()
    blocks: dict[str, dict[str, Any]] = {
        "run": {"name": "quotes", "namespace": "default", "uid": "uid-1"},
        "top": {"attempt": 1},
        "model": {"uri": model.as_uri()},
        "dataset": {
            "uri": data.as_uri(),
            "split": "train",
            "limit": None,
            "max_length": 128,
            "too_long": "truncate",
            "packing": True,
        },
        "method": {
            "kind": "lora",
            "rank": 4,
            "alpha": 8,
            "dropout": 0.0,
            "target_modules": "all-linear",
            "dora": False,
        },
        "training": {
            "max_steps": 4,
            "epochs": None,
            "warmup_steps": None,
            "global_batch_size": 4,
            "micro_batch_size": 2,
            "gradient_checkpointing": False,
            "sharded": False,
            "learning_rate": 5e-3,
            "schedule": "cosine",
            "optimizer": "adamw_torch",
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "precision": "fp32",
            "seed": 42,
            "log_every_steps": 1,
        },
        "checkpoint": {"every_steps": 2, "every_seconds": None, "keep": 2},
        "output": {"uri": out, "overwrite": False},
        "samples": {"prompts": ["Quote: Hello"], "max_new_tokens": 4},
    }
    for name, value in changes.items():
        next(blocks[block] for block, known in BLOCKS.items() if name in known)[name] = value
    if blocks["method"]["kind"] == "full":
        blocks["method"] = {"kind": "full"}
    if blocks["method"]["kind"] == "qlora":
        blocks["method"] = {"bits": 4, "quant_type": "nf4", "double_quant": True, **blocks["method"]}
    return RunConfig(
        backend="torch",
        device="cpu",
        attempt=blocks["top"]["attempt"],
        run=RunIdentity(**blocks["run"]),
        model=RunModel(**blocks["model"]),
        dataset=RunDataset(text=TextFormat(template="Quote: {text}\nAuthor: {from}"), **blocks["dataset"]),
        method=RunMethod(**blocks["method"]),
        training=RunTraining(**blocks["training"]),
        checkpoint=RunCheckpoint(**blocks["checkpoint"]),
        output=RunOutput(**blocks["output"]),
        samples=RunSamples(**blocks["samples"]),
    )


def write_quotes(path: Path, rows: int = 24) -> Path:
    """A jsonl file of `rows` short random rows, always the same."""
    chance = random.Random(7)
    words = ["Be", "yourself", "every", "day", "the", "sky", "and", "sun", "one", "two", "three", "Blue", "Rain"]
    lines = (
        {"text": " ".join(chance.choices(words, k=chance.randint(3, 12))), "from": " ".join(chance.choices(words, k=2))}
        for _ in range(rows)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class ListedRows:
    """Rows in memory, as a backend wants them."""

    def __init__(self, lengths: list[int], vocabulary: int = 400, masked: int = 0) -> None:
        chance = random.Random(3)
        ids = [[2, *(chance.randrange(110, vocabulary) for _ in range(length - 1))] for length in lengths]
        self.items = [(row, [-100] * masked + row[masked:]) for row in ids]

    def row(self, index: int) -> tuple[list[int], list[int]]:
        """One row."""
        return self.items[index]
