"""What the raw measurements of the trainer's benchmark say about its targets."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from bench.trainer_rows import IGNORED
from bench.verdict import row

Found = dict[str, Any]
OURS = "ours"
NAMES = {"r1": "R1's script", "trainer": "transformers.Trainer", "trl": "TRL SFTTrainer", "ours": "gemmatune"}
SPEED = {"quotes": 1.6, "instruct": 3.0}
UTILISATION = {"quotes": 0.35, "instruct": 0.25}
MEMORY, WORK, NLL, FIRST_STEP, LOST, RECOVERED = 0.8, 1.05, 0.01, 25.0, 0.03, 0.85


def necessary(documents: list[Any], shape: Found) -> int:
    """Floating-point operations that a step over these documents cannot do without, in training an adapter.

    Per token 4 for each weight outside the embedding (forward, and the gradient of what goes in), per labelled token
    4 for each weight of the head, 6 for each of the adapter's, and 12 x width for each pair of tokens in a document.
    """
    lengths = [len(ids) for ids, _ in documents]
    labelled = sum(label != IGNORED for _, labels in documents for label in labels)
    tokens = sum(lengths)
    pairs = sum(length**2 for length in lengths)
    work = 4 * tokens * shape["non_embedding"] + 4 * labelled * shape["embedding"] + 6 * tokens * shape["adapter"]
    return int(work + 12 * pairs * shape["attention_width"] * shape["layers"])


def arms(found: Iterable[Found], shape: Found, threads: int) -> list[Found]:
    """One line per data, precision and arm, with every repeat."""
    return [_arm(one, shape, threads) for one in found]


def _arm(one: Found, shape: Found, threads: int) -> Found:
    turns = [_turn(turn, shape) for turn in one["turns"]]
    wall, cpu = [turn["wall"] for turn in turns], [turn["cpu"] / threads for turn in turns]
    measured = one["measured"]
    peak = [turn["peak_rss"] for turn in one["turns"]][-1]
    return {
        "data": one["data"],
        "precision": one["precision"],
        "arm": one["arm"],
        "name": NAMES[one["arm"]],
        "label_tokens_per_second": [turn["labelled"] / seconds for turn, seconds in zip(turns, wall, strict=True)],
        "tokens_per_second": [turn["tokens"] / seconds for turn, seconds in zip(turns, wall, strict=True)],
        "label_tokens_per_cpu_second": [turn["labelled"] / seconds for turn, seconds in zip(turns, cpu, strict=True)],
        "utilisation": [
            turn["necessary"] / turn["cpu"] / peak_gemm for turn, peak_gemm in zip(turns, one["gemm"], strict=True)
        ],
        "gemm": one["gemm"],
        "peak_rss": peak,
        "above_load": peak - one["loaded"]["rss"],
        "live_bytes": measured["live_bytes"],
        "flops": measured["flops"],
        "work": measured["flops"] / necessary(measured["documents"], shape),
        "imported": one["loaded"]["imported"],
        "first_step": one["warm"]["first_step"],
        "nll": one["nll"],
        "base_nll": one["base_nll"],
    }


def _turn(turn: Found, shape: Found) -> Found:
    documents = turn["documents"]
    return {
        "wall": turn["wall"],
        "cpu": turn["cpu"],
        "tokens": sum(len(ids) for ids, _ in documents),
        "labelled": sum(label != IGNORED for _, labels in documents for label in labels),
        "necessary": necessary(documents, shape),
    }


def targets(lines: list[Found], quality: list[Found], whole: Found | None) -> list[Found]:
    """What was to be reached, and what was."""
    found = []
    for data in dict.fromkeys(line["data"] for line in lines):
        by_arm = {line["arm"]: line for line in lines if line["data"] == data and line["precision"] == "bf16"}
        if OURS in by_arm and len(by_arm) > 1:
            found += _compared(data, by_arm)
    if whole:
        # A file of before did not ask for samples, and did not look at what uploads slow down.
        what = "checkpoints, progress and samples" if "samples" in whole else "waiting for checkpoints and progress"
        found.append(row(f"Step time lost to {what}", "<= 3%", [100 * whole["lost"]], lambda v: v <= 3, "%", 1))
        what = "Process start to first step, with Python's bytecode compiled as in the images"
        found.append(row(what, "<= 25 s", [whole["first_step"]], lambda v: v <= FIRST_STEP, "s", 1))
    if quality:
        shares = [one["recovered"] for one in quality]
        found.append(row("NF4's share of LoRA's gain in NLL", ">= 0.85", shares, lambda v: v >= RECOVERED))
    return found


def _compared(data: str, by_arm: dict[str, Found]) -> list[Found]:
    ours, others = by_arm[OURS], {name: line for name, line in by_arm.items() if name != OURS}
    same_micro = {name: line for name, line in others.items() if name != "r1"} or others
    work, need = SPEED[data], UTILISATION[data]
    found = [
        row(f"Work of a step against the necessary, {data}", "<= 1.05", [ours["work"]], lambda v: v <= WORK, digits=3)
    ]
    for what, key in (("", "label_tokens_per_second"), (", by processor time", "label_tokens_per_cpu_second")):
        fastest = max(others.values(), key=lambda line: statistics.median(line[key]))
        ratios = [mine / other for mine, other in zip(ours[key], fastest[key], strict=True)]
        text = f"Label-tokens/s against the fastest other ({fastest['name']}), {data}{what}"
        found.append(row(text, f">= {work:g}", ratios, lambda v: v >= work))
        nll = ours["nll"] / fastest["nll"] - 1
    found.append(
        row(f"Held-out NLL against that arm's, {data}", "within 1%", [100 * nll], lambda v: abs(v) <= 1, "%", 2)
    )
    found.append(row(f"Model-FLOPs utilisation, {data}", f">= {need:g}", ours["utilisation"], lambda v: v >= need))
    leanest = min(same_micro.values(), key=lambda line: int(line["peak_rss"]))
    share = ours["peak_rss"] / leanest["peak_rss"]
    text = f"Peak resident memory against the leanest other ({leanest['name']}), {data}"
    found.append(row(text, "<= 0.8", [share], lambda v: v <= MEMORY))
    return found
