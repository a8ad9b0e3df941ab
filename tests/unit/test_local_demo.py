"""The demo's parts: its quotes, its resource, its model's conversion, and `gft demo` without training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api import validate, yamlio
from gemmatune_cli.demo import resource_text, write_quotes
from gemmatune_cli.local import model
from gemmatune_cli.local.convert import SPECIAL_IDS, ConversionError, check_tokenizer

STAND_IN = Path(__file__).parent / "contract_trainer"


def test_the_quotes_become_rows_with_the_columns_of_the_template(tmp_path: Path) -> None:
    assert write_quotes(tmp_path / "quotes.jsonl") == 326
    rows = [json.loads(line) for line in (tmp_path / "quotes.jsonl").read_text().splitlines()]
    assert len(rows) == 326
    assert all(set(row) == {"text", "from"} and row["text"].strip() and row["from"].strip() for row in rows)


def test_the_resource_is_valid_and_has_the_form_of_the_recipe() -> None:
    text = resource_text(Path("/d/quotes.yaml"), Path("/m"), Path("/d"), 40)
    spec = validate.parse(yamlio.load_all(text)[0]).spec
    assert spec.dataset.text is not None
    assert spec.dataset.text.template == "Quote: {text}\nAuthor: {from}"
    assert spec.training is not None
    assert (spec.training.max_steps, spec.training.global_batch_size, spec.adapter.rank) == (40, 8, 8)
    assert spec.output.uri == "file:///d/output"


def demo(folder: Path, **environment: str) -> tuple[int, str]:
    path = os.pathsep.join([str(STAND_IN), os.environ.get("PYTHONPATH", "")])
    # The model's folder exists, as after an earlier demo: nothing is converted here.
    cache = folder.parent / "cache"
    made = cache / "gemmatune" / "models" / model.NAME
    made.mkdir(parents=True, exist_ok=True)
    (made / model.MARKER).write_text(model._source())
    result = subprocess.run(
        [sys.executable, "-m", "gemmatune_cli", "demo", "--folder", str(folder), "--steps", "5"],
        env={**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return result.returncode, result.stdout


def test_the_demo_writes_its_resource_runs_it_and_says_how_long_each_part_took(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    code, output = demo(folder)
    assert code == 0, output
    assert "maxSteps: 5" in (folder / "quotes.yaml").read_text()
    assert "maxSteps: 5" in output
    assert f"adapter  {(folder / 'output').as_uri()}/adapter" in output
    assert "seconds  model 0 s, data 0 s, run" in output
    code, output = demo(folder)
    assert code == 1
    assert "exists" in output


def test_a_conversion_that_fails_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "torch.py").write_text("raise ImportError('no torch today')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said: list[str] = []
    with pytest.raises(model.ModelError, match="no torch today"):
        model.gemma_3_270m(said.append)
    assert len(said) == 1
    assert [path.name for path in (tmp_path / "cache" / "gemmatune" / "models").iterdir()] == [f"{model.NAME}.lock"]


class Words:
    """A tokenizer with one id per character and the ids of `special`."""

    def __init__(self, special: dict[str, int], begin: list[int]) -> None:
        self.special, self.begin = special, begin

    def convert_tokens_to_ids(self, text: str) -> int:
        return self.special[text]

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [*self.begin, *(1000 + ord(letter) for letter in text)]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(number - 1000) for number in ids if number >= 1000)


def test_a_tokenizer_of_another_model_is_noticed() -> None:
    check_tokenizer(Words(SPECIAL_IDS, [2]))
    for wrong in (
        Words({**SPECIAL_IDS, "<end_of_turn>": 107}, [2]),
        Words(SPECIAL_IDS, []),
        Words(SPECIAL_IDS, [2, 2]),
    ):
        with pytest.raises(ConversionError):
            check_tokenizer(wrong)
