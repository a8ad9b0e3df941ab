"""A stand-in vocabulary for Gemma generations whose own tokenizer cannot be had here.

It is built like Gemma's tokenizers (spaces as ▁, BPE with bytes for unknown characters, the published ids of the
control tokens), but it knows only single characters and a few words. What it shows is the handling of control tokens,
borders and labels, never how a real Gemma 1, 2 or 4 splits a text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from gemmatune_api import catalog

_TURN_IDS = {"1": (106, 107), "2": (106, 107), "3": (105, 106), "3n": (105, 106), "4": (105, 106)}
"""Ids of the tokens that begin and end a turn, as published."""
_WORDS = """
user model system assistant ▁is ▁the ▁and ▁to ▁a ▁of ▁you ▁we ▁not Quote Author ▁Be ▁yourself ▁every ▁day ▁sky ▁sun
▁one ▁two ▁three Hello Hi What Why Blue Rain Four
"""


def standin_tokenizer(generation: str) -> Tokenizer:
    """The stand-in of a generation."""
    rules = catalog.rules(generation)
    start, end = _TURN_IDS[generation]
    words: dict[int, str] = {0: rules.pad, 1: rules.eos, 2: rules.bos, 3: "<unk>", 4: "<mask>"}
    words |= {start: rules.turn_start, end: rules.turn_end, end + 1: "\n", end + 2: "\n\n"}
    unused = (f"<unused{number}>" for number in range(200))
    vocabulary = {words.get(index) or next(unused): index for index in range(end + 3)}
    special = [text for text in vocabulary if not text.isspace()]
    spaces = [text for text in vocabulary if text.isspace()]
    for text in [*(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(33, 127)), "▁"]:
        vocabulary.setdefault(text, len(vocabulary))
    merges: list[tuple[str, str]] = []
    for word in _WORDS.split():
        for length in range(2, len(word) + 1):
            pair = (word[: length - 1], word[length - 1])
            if pair not in merges:
                merges.append(pair)
            vocabulary.setdefault(word[:length], len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{rules.bos} $A", pair=f"{rules.bos} $A {rules.bos} $B", special_tokens=[(rules.bos, 2)]
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in spaces])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    return tokenizer


def write_tokenizer(folder: Path, generation: str) -> int:
    """Writes the stand-in as a model's tokenizer files; the number of its tokens."""
    rules = catalog.rules(generation)
    tokenizer = standin_tokenizer(generation)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": rules.bos, "eos_token": rules.eos, "pad_token": rules.pad, "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.get_vocab_size()


_FAMILIES = {"1": "gemma", "2": "gemma2", "3": "gemma3_text", "4": "gemma4_text"}


def write_small_model(folder: Path, generation: str, **changes: Any) -> None:
    """Writes what prepare reads of a model: a tiny config.json and the stand-in tokenizer, and no real weights.

    `changes` are fields of config.json to change, or with None to leave out.
    """
    config = {
        "model_type": _FAMILIES[generation],
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "intermediate_size": 128,
        "vocab_size": write_tokenizer(folder, generation),
        "sliding_window": 32,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    (folder / "model.safetensors").write_bytes(bytes(16))
