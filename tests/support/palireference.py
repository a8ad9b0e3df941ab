"""What transformers and PEFT make of a PaliGemma and of an adapter for it; run in the torch environment.

    python -m tests.support.palireference MODEL ADAPTER OTHER INPUTS.npz OUTPUTS.npz RESAVED

INPUTS: ids [tokens], image [size, size, 3] in bytes, prefix (tokens of the text before the suffix).
OUTPUTS: logits at the tokens of the text: of MODEL, of it with ADAPTER, and of OTHER, whose images have the same size.
RESAVED gets MODEL as transformers saves it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def main(model: str, adapter: str, other: str, inputs: str, outputs: str, resaved: str) -> None:
    """Loads the folders as their users do, and computes all three."""
    from peft import PeftModel

    given = np.load(inputs)
    base, second = _loaded(model), _loaded(other)
    base.save_pretrained(resaved)
    found = {"base": _logits(base, base.config, given), "other": _logits(second, second.config, given)}
    tuned = PeftModel.from_pretrained(base, adapter).eval()
    adapted = [name for name, _ in tuned.named_parameters() if "lora_" in name]
    np.savez(outputs, adapted=_logits(tuned, base.config, given), names=np.array(adapted), **found)


def _loaded(folder: str) -> Any:
    from transformers import PaliGemmaForConditionalGeneration

    model, loading = PaliGemmaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    left = {name: keys for name, keys in loading.items() if keys}
    assert not left, f"keys that transformers does not know or misses: {left}"
    return model.eval()


def _logits(model: Any, config: Any, given: Any) -> Any:
    import torch

    tokens = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    ids = torch.tensor([[config.image_token_id] * tokens + given["ids"].tolist()])
    kinds = (torch.arange(ids.shape[1]) >= tokens + int(given["prefix"])).long()[None]
    pixels = torch.tensor(given["image"]).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        found = model(input_ids=ids, pixel_values=pixels, token_type_ids=kinds).logits
    return found[0, tokens:].float().numpy()


if __name__ == "__main__":
    main(*sys.argv[1:])
