"""gft plan: verdict, memory, defaults and cost, from what this machine can know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gemmatune_cli.main import app

RESOURCE = """apiVersion: gemmatune.dev/v1alpha1
kind: GemmaFineTune
metadata: {{name: quotes}}
spec:
  model: {{uri: "{model}"}}
  dataset: {{uri: "file:///data/quotes.jsonl", text: {{template: "{{quote}}"}}}}
  training: {{globalBatchSize: 8}}
  output: {{uri: "file:///results"}}
  accelerator: {accelerator}
"""
TINY = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 18,
    "hidden_size": 640,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "intermediate_size": 2048,
    "vocab_size": 262144,
    "sliding_window": 512,
}


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as wide as they need to be."""
    monkeypatch.setenv("COLUMNS", "200")


def plan(folder: Path, *arguments: str, model: str = "hf://google/gemma-2-2b", gpu: str | None = "nvidia-l4") -> str:
    file = folder / "quotes.yaml"
    file.write_text(RESOURCE.format(model=model, accelerator=f"{{gpu: {{type: {gpu}}}}}" if gpu else "{cpu: {}}"))
    result = CliRunner().invoke(app, ["plan", str(file), *arguments])
    assert "Traceback" not in result.output
    return f"{result.exit_code}\n{result.output}"


def line(output: str, start: str) -> str:
    (found,) = (line.strip() for line in output.splitlines() if line.strip().startswith(start))
    return " ".join(found.split())


def test_a_run_that_fits(tmp_path: Path) -> None:
    output = plan(tmp_path)
    assert output.startswith("0\nquotes: gemma-2-2b, qlora r8 on 1 x nvidia-l4: fits\n")
    parts = [line(output, part) for part in ("weights", "gradients", "optimizer", "activations", "logits", "overhead")]
    total = sum(float(part.split()[1]) for part in parts)
    assert float(line(output, "total").split()[1]) == pytest.approx(total, abs=0.06)
    assert line(output, "trainable parameters") == "trainable parameters 10,383,360 of 2,614,341,888 (0.40%)"
    assert line(output, "steps") == "steps known with --rows, or after preparation"


def test_weights_at_four_widths(tmp_path: Path) -> None:
    output = plan(tmp_path)
    assert line(output, "32 bits") == "32 bits 16 bits 8 bits 4 bits"
    widths = [float(part) for part in line(output, "9.74 GiB").replace("GiB", "").replace("*", "").split()]
    assert widths == sorted(widths, reverse=True)
    assert widths[1] == pytest.approx(2_614_341_888 * 2 / 2**30, rel=0.01)


def test_what_the_user_wrote_is_no_default(tmp_path: Path) -> None:
    output = plan(tmp_path)
    assert line(output, "spec.qlora.alpha") == "spec.qlora.alpha 16"
    assert line(output, "spec.dataset.packing") == "spec.dataset.packing true"
    assert "spec.training.globalBatchSize" not in output


def test_rows_give_the_steps(tmp_path: Path) -> None:
    assert line(plan(tmp_path, "--rows", "100"), "steps") == "steps 12"


def test_shorter_rows_need_less_memory(tmp_path: Path) -> None:
    def total(*arguments: str) -> float:
        return float(line(plan(tmp_path, *arguments), "total").split()[1])

    assert total("--longest", "64") < total()


def test_what_does_not_fit_fails_with_remedies(tmp_path: Path) -> None:
    output = plan(tmp_path, model="hf://google/gemma-3-27b-it", gpu="nvidia-tesla-t4")
    assert output.startswith("1\nquotes: gemma-3-27b, qlora r8 on 1 x nvidia-tesla-t4: does not fit\n")
    assert "  remedy: " in output


def test_host_memory_that_no_pod_gets_fails_with_both_numbers(tmp_path: Path) -> None:
    """The devices' total is not told as what is too large."""
    tpu = "{tpu: {type: tpu-v5-lite-podslice, topology: 8x8}}\n  backend: keras\n  full: {}"
    file = tmp_path / "quotes.yaml"
    file.write_text(RESOURCE.format(model="hf://google/gemma-2-27b", accelerator=tpu).replace("Size: 8", "Size: 64"))
    result = CliRunner().invoke(app, ["plan", str(file)])
    assert result.exit_code == 1
    assert "does not fit\n  remedy: use lora\n  remedy: accelerator.tpu {type: " in result.output
    assert line(result.output, "host memory") == "host memory 313.29 GiB of 154.00 GiB that a pod gets"


def test_prices_give_the_cost(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("nvidia-l4: 0.75\n")
    assert line(plan(tmp_path, "--prices", str(prices)), "cost per hour") == "cost per hour 0.75"
    assert "cost per hour" not in plan(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("- 1\n", "the price table: must map accelerator types to prices per hour (found [1])"),
        (
            "a: 1\n---\nb: 1\n",
            'the price table: must map accelerator types to prices per hour (found [{"a": 1}, {"b": 1}])',
        ),
        ("nvidia-l4: cheap\n", 'nvidia-l4: must be a price per hour (found "cheap")'),
        ("nvidia-l4: -1\n", "nvidia-l4: must be a price per hour (found -1)"),
        ("nvidia-l4: true\n", "nvidia-l4: must be a price per hour (found true)"),
        ("a: 1\nb: x: y\n", "line 2, column 5: is no YAML"),
    ],
)
def test_prices_that_are_none(tmp_path: Path, content: str, problem: str) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(content)
    output = plan(tmp_path, "--prices", str(prices))
    assert output.startswith(f"1\nerror: --prices {prices}: {problem}")


def test_a_price_that_is_missing_is_said(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    for content in ("l4: 0.75\n", "# none yet\n"):
        prices.write_text(content)
        cost = line(plan(tmp_path, "--prices", str(prices)), "cost per hour")
        assert cost == "cost per hour unknown: --prices names no nvidia-l4"


def test_a_narrow_terminal_shows_every_digit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    output = plan(tmp_path)
    assert "…" not in output
    assert "2,614,341,888" in output


def test_a_folder_tells_its_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    output = plan(tmp_path, model=folder.as_uri(), gpu=None)
    assert output.startswith("0\nquotes: gemma-3-270m, lora r8 on this machine's CPU: fits\n")
    assert float(line(output, "capacity").split()[1]) > 0


def test_a_folder_of_another_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**TINY, "model_type": "llama"}))
    output = plan(tmp_path, model=folder.as_uri(), gpu=None)
    assert output.startswith("1\n")
    assert "config.json describes no Gemma" in output


def test_a_model_that_its_uri_does_not_name(tmp_path: Path) -> None:
    output = plan(tmp_path, model="gs://models/ours")
    assert output.startswith("1\n")
    assert "--model" in output
    output = plan(tmp_path, "--model", "gemma-3-1b", model="gs://models/ours")
    assert output.startswith("0\nquotes: gemma-3-1b")
    output = plan(tmp_path, "--model", "gpt-2", model="gs://models/ours")
    assert "--model gpt-2: no model of the catalog" in output
    output = plan(tmp_path, model=(tmp_path / "none").as_uri())
    assert "the folder does not exist" in output
