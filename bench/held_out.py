"""The neutral evaluator of the trainer's benchmark: plain transformers and PEFT, one unpadded row at a time, in fp32.

`python -m bench.held_out MODEL ROWS THREADS ADAPTER...` prints the base's loss and that of each adapter (nats per
labelled token) as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.trainer_rows import IGNORED, Row, Rows


def main() -> None:
    """Evaluates the base and the adapters."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, rows, threads, *adapters = sys.argv[1:]
    torch.set_num_threads(int(threads))
    held_out = Rows.read(Path(rows)).held_out
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = {"": loss(base, held_out)}
    for folder in adapters:
        tuned = PeftModel.from_pretrained(base, folder)
        found[folder] = loss(tuned, held_out)
        base = tuned.unload()
    print(json.dumps(found))


def loss(model: object, rows: list[Row]) -> float:
    """Mean loss over the labelled tokens of the rows."""
    import torch
    from torch.nn import functional

    total, count = 0.0, 0
    with torch.inference_mode():
        for ids, labels in rows:
            target = torch.tensor(labels[1:])
            kept = target != IGNORED
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1][kept]  # type: ignore[operator]
            total += float(functional.cross_entropy(logits.float(), target[kept], reduction="sum"))
            count += int(kept.sum())
    return total / count


if __name__ == "__main__":
    main()
