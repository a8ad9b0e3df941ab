"""How a tuned model is to generate: the base's own settings, with every token at which its generation ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from gemmatune_api.catalog import GenerationRules
from gemmatune_trainer.data.tokenize import TOKENIZER_FILE
from gemmatune_trainer.models import ModelFiles

FILE = "generation_config.json"


def terminator_ids(rules: GenerationRules, folder: Path) -> list[int]:
    """Ids of the tokens that end a generation, by the catalog; by the tokenizer of `folder` where it has others."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    texts = rules.terminators if rules.chat else (rules.eos,)
    found = [token for text in texts if (token := tokenizer.token_to_id(text)) is not None]
    published = list(rules.terminator_ids)
    return published if rules.chat and set(found) <= set(published) else found


def write_generation_config(files: ModelFiles, folder: Path) -> None:
    """Writes generation_config.json: a base checkpoint names `<eos>` alone, and a tuned turn would never end."""
    rules = files.model.rules
    tokenizer = tokenizers.Tokenizer.from_file(str(files.folder / TOKENIZER_FILE))
    settings: dict[str, Any] = {"bos_token_id": tokenizer.token_to_id(rules.bos)}
    settings["pad_token_id"] = tokenizer.token_to_id(rules.pad)
    source = files.folder / FILE
    if source.is_file():
        settings |= json.loads(source.read_text(encoding="utf-8"))
    settings["eos_token_id"] = terminator_ids(rules, files.folder)
    (folder / FILE).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
