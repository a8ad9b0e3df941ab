"""Logits as plain transformers and PEFT compute them, in the torch environment: `python plainlogits.py < request.json`.

The tests of other backends start it with the Python of that environment, beside their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def plain_logits(python: Path, model: Path, adapter: Path, ids: Sequence[int], folder: Path) -> tuple[Any, Any]:
    """Logits [tokens, vocabulary] of a row by the model of a folder, and with the PEFT adapter of another one on it.

    In fp64: what fp32 rounds away is as large as what the tests allow (8.5e-5 for a position of Gemma 3 270M).
    """
    request = {"model": str(model), "adapter": str(adapter), "ids": list(ids), "folder": str(folder)}
    command = [str(python), str(Path(__file__).resolve())]
    alone = {**os.environ, "HF_HUB_OFFLINE": "1"}  # it would ask the hub about the folders' names
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr[-4000:]
    return np.load(folder / "base.npy"), np.load(folder / "tuned.npy")


def main() -> None:
    """Answers one request."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    request = json.load(sys.stdin)
    ids, folder = torch.tensor([request["ids"]]), Path(request["folder"])
    base = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float64, attn_implementation="eager")
    with torch.no_grad():
        np.save(folder / "base.npy", base.eval()(ids).logits[0].numpy())
        tuned = PeftModel.from_pretrained(base, request["adapter"]).eval()
        np.save(folder / "tuned.npy", tuned(ids).logits[0].numpy())


if __name__ == "__main__":
    main()
