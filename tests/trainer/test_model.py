"""The real Gemma 3 270M: LoRA by the trainer's command, and its adapter in plain PEFT on rows it has not seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemmatune_api.names import ENV_CACHE, ENV_RUN, ENV_STATUS_FILE, ENV_TERMINATION_LOG, ExitCode
from tests.support.quotes import quote_rows
from tests.trainer.conftest import run_config

TRAINED, HELD_OUT = 200, 10
TEMPLATE = "Quote: {text}\nAuthor: {from}"


def mean_loss(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> float:
    """Nats per token over the rows, each alone, by transformers' own loss."""
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = tokenizer(TEMPLATE.format(**row), return_tensors="pt").input_ids
            ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], dim=1)
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
            tokens += ids.shape[1] - 1
    return total / tokens


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_an_adapter_of_the_real_model_helps_on_rows_it_has_not_seen(gemma_270m: Path, tmp_path: Path) -> None:
    rows = quote_rows()
    data = tmp_path / "quotes.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[:TRAINED]))
    config = run_config(
        gemma_270m, data, tmp_path / "out", precision="bf16", rank=8, alpha=16, max_steps=6,
        learning_rate=1e-3, global_batch_size=4, micro_batch_size=4, every_steps=100,
        prompts=["Quote: Imagination is"], max_new_tokens=8,
    )  # fmt: skip
    env = {
        **os.environ,
        ENV_RUN: config.to_env(),
        ENV_CACHE: str(tmp_path / "cache"),
        ENV_STATUS_FILE: str(tmp_path / "status.json"),
        ENV_TERMINATION_LOG: str(tmp_path / "message"),
    }
    for role in ("prepare", "train"):
        done = subprocess.run(
            [sys.executable, "-m", "gemmatune_trainer", role], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == ExitCode.DONE, done.stderr[-3000:]
    adapter = tmp_path / "out" / "adapter"
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "google/gemma-3-270m"
    (sample,) = json.loads((tmp_path / "status.json").read_text())["samples"]
    assert sample["before"] != sample["after"]
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    base = AutoModelForCausalLM.from_pretrained(gemma_270m, dtype=torch.bfloat16).eval()
    before = mean_loss(base, tokenizer, rows[-HELD_OUT:])
    tuned = PeftModel.from_pretrained(base, adapter).eval()
    after = mean_loss(tuned, tokenizer, rows[-HELD_OUT:])
    assert after < before - 0.3, (before, after)
    turn = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    assert text == "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
