"""docs/performance.md: the tables of the benchmarks, from the JSON files that they leave in bench/results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from gemmatune_api.docgen import table
from tools import bars, held
from tools.sections import GIB, MIB, PARTS, TARGETS, Picture, Report, Row, Table, mib, spread

HEADER = "<!-- Generated from bench/results by `make generate`; do not edit. -->\n"


def _arms(key: str, title: str, unit: str, divisor: float = 1.0) -> Callable[[Row], Iterator[bars.Group]]:
    """Groups of bars of one figure, one for each data and precision."""

    def groups(found: Row) -> Iterator[bars.Group]:
        for kind in dict.fromkeys((line["data"], line["precision"]) for line in found["arms"]):
            lines = [line for line in found["arms"] if (line["data"], line["precision"]) == kind]
            yield bars.Group(f"{title}: {', '.join(kind)}", unit, [_bar(line, key, divisor) for line in lines])

    return groups


def _bar(line: Row, key: str, divisor: float) -> bars.Bar:
    values = line[key] if isinstance(line[key], list) else [line[key]]
    low, middle, high = (of(values) / divisor for of in (min, statistics.median, max))
    return bars.Bar(line["name"], middle, low, high, line["arm"] == "ours")


def arm_groups(found: Row) -> list[bars.Group]:
    """Speed and peak memory of each arm of the trainer's benchmark."""
    speed, memory = _arms("label_tokens_per_second", "Speed", "label-tokens/s"), _arms("peak_rss", "Peak", "MiB", MIB)
    return [*speed(found), *memory(found)]


REPORTS: dict[str, Report] = {
    "memory.json": Report(
        title="Memory of the trainer against the plan",
        command="make bench-trainer",
        text="Peak host memory of one trainer process on a CPU, on the real Gemma 3 270M; MiB.",
        tables=(
            Table(
                rows=lambda found: found["measurements"],
                columns={
                    "Method": lambda row: row["method"],
                    "Rows x tokens": lambda row: f"{row['rows']} x {row['length']}",
                    "Checkpointing": lambda row: "yes" if row["checkpointing"] else "no",
                    "Measured": lambda row: mib(row["peak"]),
                    "Planned": lambda row: mib(row["plan"]["total"]),
                    "Planned / measured": lambda row: f"{row['plan']['total'] / row['peak']:.2f}",
                },
            ),
        ),
    ),
    "prepare.json": Report(
        title="Preparation of data",
        command="make bench-prepare",
        text="One prepare process on real quotes with the tokenizer of the real Gemma 3 270M, from a local file to the "
        "tokenised rows, 1% of them held out. Rows a second count from the start of the process to its end; per "
        "processor second they do not depend on what else the machine does.",
        tables=(
            Table(
                rows=lambda found: found["measurements"],
                columns={
                    "Rows": lambda row: f"{row['rows']:,}",
                    "Tokens": lambda row: f"{row['tokens']:,}",
                    "Seconds": lambda row: f"{row['seconds']:,.0f}",
                    "Rows/s": lambda row: f"{row['rows'] / row['seconds']:,.0f}",
                    "Rows per processor second": lambda row: f"{row['rows'] / row['cpu_seconds']:,.0f}",
                    "Peak memory (MiB)": lambda row: mib(row["peak"]),
                },
            ),
            Table(
                rows=lambda found: [found],
                columns={
                    "Peak memory a row more costs (bytes)": lambda row: f"{round(row['bytes_per_row'], 1) + 0:.1f}"
                },
                title="Growth",
            ),
        ),
    ),
    "trainer.json": Report(
        title="Speed and memory of the trainer",
        command="make bench-trainer",
        text="LoRA (rank 8, all linear modules) of the real Gemma 3 270M on a CPU: 8 rows a step in one micro-batch "
        "(R1's script in eight), the same in every arm, their labels compared token by token. Rows are quotes, all "
        "labelled, or instructions of 100 to 400 tokens with the loss on the answer. The arms take turns, repeat by "
        "repeat. Work is what torch counts, against what a step cannot do without. Utilisation is the necessary work "
        "against the machine's own matrix product of 2048 x 2048, both by processor time, taken in turn with the arms. "
        "A whole run has as many steps as an epoch of 2,400 rows, and a checkpoint every ten of them, where ten "
        "minutes are the default.",
        tables=(
            TARGETS,
            Table(
                rows=lambda found: found["arms"],
                columns={
                    "Rows": lambda row: f"{row['data']}, {row['precision']}",
                    "Arm": lambda row: row["name"],
                    "Label-tokens/s": lambda row: spread(row["label_tokens_per_second"], 0),
                    "By processor time": lambda row: spread(row["label_tokens_per_cpu_second"], 0),
                    "Tokens/s": lambda row: spread(row["tokens_per_second"], 0),
                    "Work": lambda row: f"{row['work']:.2f}",
                    "Utilisation": lambda row: spread(row["utilisation"]),
                    "NLL": lambda row: f"{row['nll']:.3f}",
                },
                title="Speed",
            ),
            Table(
                rows=lambda found: found["arms"],
                columns={
                    "Rows": lambda row: f"{row['data']}, {row['precision']}",
                    "Arm": lambda row: row["name"],
                    "Peak resident (MiB)": lambda row: mib(row["peak_rss"]),
                    "Above that after loading": lambda row: mib(row["above_load"]),
                    "Live tensors": lambda row: mib(row["live_bytes"]),
                    "Imports (s)": lambda row: f"{row['imported']:.1f}",
                    "First step done (s)": lambda row: f"{row['first_step']:.1f}",
                },
                title="Memory and start",
            ),
            Table(
                rows=lambda found: [line for line in found["arms"] if line["arm"] == "ours"],
                columns={
                    "Beside": lambda row: f"{row['data']}, {row['precision']}",
                    "Billions of operations a processor second": lambda row: spread(
                        [value / 1e9 for value in row["gemm"]], 0
                    ),
                },
                title="The machine's matrix product",
            ),
            Table(
                rows=lambda found: [found["whole"]],
                columns={
                    "Steps": lambda row: str(row["steps"]),
                    "Checkpoints every": lambda row: f"{row['checkpoint_every']} steps",
                    "Waiting for checkpoints and status": lambda row: f"{100 * row['waiting']:.2f} %",
                    "Steps slower beside an upload": lambda row: f"{100 * row['slowed']:.2f} %",
                    "Samples before and after": lambda row: f"{100 * row['samples']:.2f} %",
                },
                title="What a whole run loses",
            ),
            PARTS,
        ),
        picture=Picture("Bars of label-tokens a second and of peak memory for each arm", arm_groups),
    ),
    "chaos.json": Report(
        title="Kills of the trainer, and what checkpoints cost",
        command="make soak-chaos",
        text="A tiny model is killed at random moments, through fake-gcs-server; every run ended with the adapter of "
        "the undisturbed one to the bit. The costs are those of LoRA on the real Gemma 3 270M.",
        tables=(
            Table(
                rows=lambda found: [kill for run in found["runs"] for kill in run["kills"]],
                columns={
                    "Killed": lambda row: row["moment"],
                    "At step": lambda row: str(row["reached"]),
                    "Resumed from": lambda row: str(row["resumed"]),
                    "Steps lost": lambda row: str(row["lost"]),
                },
                title="Kills",
            ),
            Table(
                rows=lambda found: found["costs"],
                columns={
                    "What": lambda row: row["what"],
                    "Measured": lambda row: f"{row['value']:.3g} {row['unit']}",
                    "At most": lambda row: f"{row['most']:g} {row['unit']}" if "most" in row else "",
                    "Met": lambda row: ("yes" if row["value"] <= row["most"] else "no") if "most" in row else "",
                },
                title="Costs",
            ),
        ),
    ),
    "tpu.json": Report(
        title="Backends for TPUs, on virtual devices",
        command="make bench-tpu",
        text="LoRA (rank 8, all linear modules, fp32, gradient checkpointing) of the real Gemma 3 270M: the same rows "
        "on 1, 2, 4 and 8 virtual devices of one CPU, a row a sequence of 64 tokens, weights divided among all devices "
        "(xla along data; keras 2 x 2 and 2 x 4 on four and eight). Virtual devices share the machine's cores, so the "
        "work is equal and more devices cannot be faster: what a step takes longer is what dividing costs here. "
        "Weights are those of the model without its adapter. Backend torch has the same rows, on the CPU as it is. No "
        "TPU was measured. The Trainer is that of transformers 5.2.0 with xla_fsdp_v2, set up as in recipe R2 (from "
        "5.3.0 on it makes no optimizer there).",
        tables=(
            TARGETS,
            Table(
                rows=lambda found: found["lines"],
                columns={
                    "Arm": lambda row: row["name"],
                    "Optimizer": lambda row: row["optimizer"],
                    "Devices": lambda row: str(row["devices"]),
                    "Seconds a step": lambda row: spread(row["seconds"]),
                    "Compiling (s)": lambda row: f"{row['compile_seconds']:.0f}",
                    "Compilations": lambda row: str(row["compilations"]),
                    "After step 2": lambda row: str(row["late"]),
                    "Weights on a device (MiB)": lambda row: mib(row["weights"]),
                    "of": lambda row: mib(row["whole"]),
                    "Optimizer on a device (MiB)": lambda row: "" if row["moments"] is None else mib(row["moments"]),
                    "Peak memory of the process (GiB)": lambda row: f"{row['peak'] / GIB:.1f}",
                },
                title="Scaling at equal work",
            ),
            PARTS,
            Table(
                rows=lambda found: found["estimate"],
                columns={
                    "Accelerator": lambda row: row["type"],
                    "Peak, bf16 (TFLOP/s)": lambda row: f"{row['peak']:,.0f}",
                    "By": lambda row: row["source"],
                    "Tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
                    "Tokens for a dollar, at $1 an hour": lambda row: f"{row['tokens_at_one_dollar'] / 1e6:,.1f} M",
                    "As cheap as an L4 up to": lambda row: f"{row['as_cheap_up_to']:.1f} x its price",
                },
                title="Estimated, not measured: tokens for a dollar of one GPU or chip, LoRA of Gemma 2 9B at 40% of "
                "the published peak; divide by what you pay an hour",
            ),
        ),
    ),
    "parity.json": Report(
        title="One run by three backends",
        command="make bench-parity",
        text="LoRA (rank 8, fp32) of a tiny Gemma 3, 150 steps of 8 rows from one preparation, each backend in its own "
        "environment, xla and keras on a mesh of 2 x 2 virtual devices. Plain transformers and PEFT load base and "
        "adapters, and say the loss of a token of rows that were held out.",
        tables=(
            Table(
                rows=lambda found: found["results"],
                columns={
                    "Adapter by": lambda row: row["adapter"],
                    "Held-out loss": lambda row: f"{row['held_out']:.4f}",
                    "Against torch's": lambda row: "" if row["apart"] is None else f"{100 * row['apart']:+.2f}%",
                },
            ),
        ),
    ),
    "faults.json": Report(
        title="Faults, and how soon they show",
        command="make soak-faults",
        text=(
            "Each cause of an attempt's end or wait is provoked on a real control plane, several side by side. Seconds "
            "from the first change of an object that reveals it (for a timer: from its expiry) to the status that "
            "names it, both as a watch sees them."
        ),
        tables=(
            Table(
                rows=lambda found: found["faults"],
                columns={
                    "Fault": lambda row: row["fault"],
                    "Reason": lambda row: row["reason"],
                    "Runs": lambda row: str(row["count"]),
                    "Median": lambda row: f"{row['p50']:.2f}",
                    "95th percentile": lambda row: f"{row['p95']:.2f}",
                    "Longest": lambda row: f"{row['max']:.2f}",
                },
            ),
        ),
    ),
    "operator.json": Report(
        title="The operator",
        command="make bench-operator",
        text="The operator on a real etcd and kube-apiserver on the same machine, whose controllers do not run. The "
        "ceiling is a bare asyncio client that makes the same calls in the same order, without kopf and policies; the "
        "floor is kopf with one index and an empty handler. A resource's wait for its Job counts from the API server's "
        "answer to its creation to the Job's arrival in a watch.",
        tables=(
            TARGETS,
            Table(
                rows=held.missed,
                columns={"Target": lambda row: row["what"], "What holds it": lambda row: row["why"]},
                title="What holds those that are not met",
            ),
            Table(
                rows=lambda found: [found["ceiling"]],
                columns={
                    "First Jobs a second": lambda row: spread(row["burst_per_second"], 0),
                    "Ends a second": lambda row: spread(row["finish_per_second"], 0),
                    "Wait at 100/s, p50 (s)": lambda row: spread(row["paced_p50"], 3),
                    "Wait of one, p50 (ms)": lambda row: f"{row['idle_p50_ms']:.1f}",
                },
                title="The ceiling, in the same run",
            ),
            Table(
                rows=lambda found: found["growth"],
                columns={
                    "Resources": lambda row: f"{row['resources']:,}",
                    "First Jobs a second, created at once": lambda row: spread(row["per_second"], 0),
                    "Wait at 100/s, p50 (s)": lambda row: spread(row["p50"], 3),
                    "p95 (s)": lambda row: spread(row["p95"], 3),
                    "Processor seconds per 1,000": lambda row: spread(row["cpu_seconds_per_1000"], 1),
                },
                title="Growth",
            ),
            Table(
                rows=lambda found: found["requests"],
                columns={
                    "Request": lambda row: row["request"],
                    "Per successful run": lambda row: f"{row['per_run']:g}",
                },
                title="Requests",
            ),
            Table(
                rows=lambda found: found["processes"],
                columns={
                    "Process": lambda row: row["process"],
                    "Resident (MiB)": lambda row: mib(row["resident"]),
                },
                title="Memory",
            ),
            Table(
                rows=lambda found: found["progress_processor"],
                columns={
                    "Process": lambda row: row["process"],
                    "Processor seconds": lambda row: f"{row['seconds']:.1f}",
                    "Milliseconds a write": lambda row: f"{row['per_write_ms']:.1f}",
                },
                title="Processor time under progress writes",
            ),
        ),
    ),
}
"""What each file holds."""


def document(folder: Path) -> str:
    """The text over all result files of a folder.

    Raises:
        ValueError: a file that no report describes, or one without machine, commit and date.
    """
    files = sorted(folder.glob("*.json"))
    unknown = [file.name for file in files if file.name not in REPORTS]
    if unknown:
        raise ValueError(f"{folder}: no report in tools/performance.py describes {', '.join(unknown)}; add one there")
    lines = [
        HEADER,
        "# Performance\n",
        "Measured by the project's own benchmarks; each table names machine, commit and date. Where a measurement was "
        "repeated, the median stands first, and the least and the most of the repeats follow.\n",
    ]
    for file in files:
        lines += _section(file, json.loads(file.read_text(encoding="utf-8")))
    return "\n".join(lines)


def pictures(folder: Path) -> dict[str, str]:
    """The drawings over all result files of a folder, by file name."""
    drawn = {}
    for file in sorted(folder.glob("*.json")):
        picture = REPORTS[file.name].picture
        if picture is not None:
            drawn[f"{file.stem}.svg"] = bars.draw(picture.groups(json.loads(file.read_text("utf-8"))), picture.shows)
    return drawn


def _section(file: Path, found: Row) -> Iterator[str]:
    report = REPORTS[file.name]
    missing = [name for name in ("machine", "commit", "date") if not found.get(name)]
    if missing:
        raise ValueError(f"{file}: says nothing of {', '.join(missing)}; write it anew with `{report.command}`")
    yield f"## {report.title}\n"
    yield f"{report.text}\n"
    yield f"`{report.command}` on {found['machine']}; commit {found['commit'][:7]}, {found['date']}.\n"
    if report.picture is not None:
        yield f"![{report.picture.shows}](pictures/{file.stem}.svg)\n"
    for part in report.tables:
        if part.title:
            yield f"### {part.title}\n"
        yield from table(
            tuple(part.columns),
            (tuple(shown(row) for shown in part.columns.values()) for row in part.rows(found)),
        )
