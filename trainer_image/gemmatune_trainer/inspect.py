"""Shows the first rows as tokens with their labels, one JSON line each: what `gft inspect` colours."""

from __future__ import annotations

import json
import sys
from typing import TextIO

from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.data.formats import documents
from gemmatune_trainer.data.pack import IGNORED
from gemmatune_trainer.data.sources import open_rows
from gemmatune_trainer.data.templates import check, render
from gemmatune_trainer.data.tokenize import fit
from gemmatune_trainer.models import cache_folder, fetch

DEFAULT_ROWS = 3


def inspect(config: RunConfig, rows: int = DEFAULT_ROWS, out: TextIO | None = None) -> None:
    """Prints the first `rows` rows: {row, text, tokens, labels, length, cut, dropped}.

    `text` is the rendered row, `tokens` its tokens as text, `labels` whether each is trained. `length` counts the
    tokens before anything was cut; `cut` those that dataset.maxLength takes; a row that is `dropped` shows what it
    would have been. Only model and data are touched, never the output.

    Raises:
        TrainerError: model or data cannot be read, or a row does not fit the format.
    """
    out = out or sys.stdout
    files = fetch(config.model, weights=False)
    check(config.dataset, files.model.rules)
    tokenizer = files.tokenizer
    limit = min(rows, config.dataset.limit or rows)
    dataset = config.dataset.model_copy(update={"limit": limit})
    for where, document in documents(open_rows(dataset, cache_folder("")), dataset):
        segments = render(document, tokenizer.rules)
        whole = tokenizer.encode(segments)
        length = len(whole.input_ids)
        fitted = fit(whole, dataset.max_length, "truncate" if dataset.too_long == "fail" else dataset.too_long)
        dropped = fitted is None or fitted.tokens is None
        shown = whole.cut(dataset.max_length)
        line = {
            "row": where,
            "text": "".join(segment.text for segment in segments),
            "tokens": tokenizer.texts(shown.input_ids),
            "labels": [label != IGNORED for label in shown.labels],
            "length": length,
            "cut": max(0, length - dataset.max_length),
            "dropped": dropped,
        }
        out.write(json.dumps(line, ensure_ascii=False) + "\n")
    out.flush()
