"""What transformers and PEFT make of a PaliGemma and of an adapter for it; run in the torch environment.

    python -m tests.support.palireference MODEL ADAPTER INPUTS.npz OUTPUTS.npz RESAVED

INPUTS: ids [tokens], image [size, size, 3] in bytes, prefix (tokens of the text before the suffix).
OUTPUTS: logits at the text's tokens of the base and with the adapter. RESAVED gets the model as transformers saves it.
"""

from __future__ import annotations

import sys

import numpy as np


def main(model: str, adapter: str, inputs: str, outputs: str, resaved: str) -> None:
    """Loads the folders as their users do, and computes both."""
    import torch
    from peft import PeftModel
    from transformers import PaliGemmaForConditionalGeneration

    given = np.load(inputs)
    base, loading = PaliGemmaForConditionalGeneration.from_pretrained(model, output_loading_info=True)
    left = {name: found for name, found in loading.items() if found and name != "conversion_errors"}
    assert not left, f"keys that transformers does not know or misses: {left}"
    base.eval().save_pretrained(resaved)
    config = base.config
    tokens = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    ids = torch.tensor([[config.image_token_id] * tokens + given["ids"].tolist()])
    kinds = (torch.arange(ids.shape[1]) >= tokens + int(given["prefix"])).long()[None]
    pixels = torch.tensor(given["image"]).permute(2, 0, 1)[None].float() / 127.5 - 1

    def logits(module: torch.nn.Module) -> np.ndarray:
        with torch.no_grad():
            found = module(input_ids=ids, pixel_values=pixels, token_type_ids=kinds).logits
        return found[0, tokens:].float().numpy()

    plain = logits(base)
    tuned = PeftModel.from_pretrained(base, adapter).eval()
    adapted = [name for name, _ in tuned.named_parameters() if "lora_" in name]
    np.savez(outputs, base=plain, adapted=logits(tuned), names=np.array(adapted))


if __name__ == "__main__":
    main(*sys.argv[1:])
