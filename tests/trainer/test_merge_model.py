"""The real Gemma 3 270M, trained on 4 bits and merged in 16: what the merge costs on rows it has not seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gemmatune_api.names import ENV_CACHE, ENV_RUN, ENV_STATUS_FILE, ENV_TERMINATION_LOG, ExitCode
from tests.support.quotes import quote_rows
from tests.trainer.conftest import run_config
from tests.trainer.test_merge import assert_merged
from tests.trainer.test_model import HELD_OUT, TRAINED, mean_loss


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_real_qlora_adapter_is_merged_without_loss(gemma_270m: Path, tmp_path: Path) -> None:
    rows = quote_rows()
    data = tmp_path / "quotes.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[:TRAINED]))
    config = run_config(
        gemma_270m, data, tmp_path / "out", kind="qlora", precision="bf16", rank=8, alpha=16, max_steps=6,
        learning_rate=1e-3, global_batch_size=4, micro_batch_size=4, every_steps=100,
        prompts=["Quote: Imagination is"], max_new_tokens=4,
    )  # fmt: skip
    env = {
        **os.environ,
        ENV_RUN: config.to_env(),
        ENV_CACHE: str(tmp_path / "cache"),
        ENV_STATUS_FILE: str(tmp_path / "status.json"),
        ENV_TERMINATION_LOG: str(tmp_path / "message"),
    }
    for role in ("prepare", "train", "merge"):
        done = subprocess.run(
            [sys.executable, "-m", "gemmatune_trainer", role], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == ExitCode.DONE, done.stderr[-3000:]
    assert_merged(config)
    folder = tmp_path / "out" / "merged"
    verified = json.loads((folder / "manifest.json").read_text())["verified"]
    print(verified)
    assert verified["adapter_loss"] < verified["base_loss"] - 0.3
    assert verified["merged_loss"] == pytest.approx(verified["adapter_loss"], rel=0.005)
    assert verified["difference"] < verified["delta"]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    merged = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert merged.dtype == torch.bfloat16
    base = AutoModelForCausalLM.from_pretrained(gemma_270m, dtype=torch.bfloat16).eval()
    alone = mean_loss(base, tokenizer, rows[-HELD_OUT:])
    tuned = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    by_adapter = mean_loss(tuned, tokenizer, rows[-HELD_OUT:])
    by_merge = mean_loss(merged, tokenizer, rows[-HELD_OUT:])
    print(f"held out: base {alone:.4f}, adapter {by_adapter:.4f}, merged {by_merge:.4f}")
    assert by_adapter < alone - 0.3
    assert by_merge == pytest.approx(by_adapter, rel=0.005)
