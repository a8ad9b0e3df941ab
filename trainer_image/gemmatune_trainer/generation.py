"""How a tuned model is to generate: the base's own settings, with every token at which its generation ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemmatune_trainer.data.tokenize import RowTokenizer
from gemmatune_trainer.logs import log
from gemmatune_trainer.models import ModelFiles
from gemmatune_trainer.stored import Unreadable, parsed

FILE = "generation_config.json"


def terminator_ids(tokenizer: RowTokenizer) -> list[int]:
    """Ids of the tokens that end a generation, by the catalog; by the tokenizer where it has others."""
    rules = tokenizer.rules
    texts = rules.terminators if rules.chat else (rules.eos,)
    found = [token for text in texts if (token := tokenizer.find_id(text)) is not None]
    published = list(rules.terminator_ids)
    return published if rules.chat and set(found) <= set(published) else found


def _published(source: Path) -> dict[str, Any]:
    """The settings that a model brings; none where they cannot be read, as transformers has it."""
    try:
        found = parsed(source.read_bytes())
    except Unreadable as error:
        log.warning("the model's generation settings cannot be read", file=FILE, error=str(error))
        return {}
    return found if isinstance(found, dict) else {}


def write_generation_config(files: ModelFiles, folder: Path) -> None:
    """Writes generation_config.json: a base checkpoint names `<eos>` alone, and a tuned turn would never end."""
    settings: dict[str, Any] = {"bos_token_id": files.tokenizer.bos_id, "pad_token_id": files.tokenizer.pad_id}
    source = files.folder / FILE
    if source.is_file():
        settings |= _published(source)
    settings["eos_token_id"] = terminator_ids(files.tokenizer)
    (folder / FILE).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
