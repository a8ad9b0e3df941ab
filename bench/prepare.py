"""How fast a preparation is and what memory it takes: ten thousand to a million rows, each in its own process.

`python -m bench.prepare` prepares real quotes with the tokenizer of the real Gemma 3 270M, and writes
bench/results/prepare.json. It fails where the peak of memory grows with the rows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import about, peak
from bench.memory import DATA, RunFailed
from gemmatune_api import catalog, fit
from gemmatune_api.defaults import resolve
from gemmatune_api.messages import PrepareResult, from_text
from gemmatune_api.names import ENV_CACHE, ENV_RUN, ENV_TERMINATION_LOG
from gemmatune_api.runconfig import RunIdentity, build
from gemmatune_api.spec import FineTuneSpec
from tests.support.quotes import quote_rows

RESULTS = Path(__file__).parent / "results" / "prepare.json"
SIZES = (10_000, 100_000, 1_000_000)
MOST_GROWTH = 0.10
"""By how much the peak of the most rows may lie above that of the fewest."""
MIB = 1024**2


@dataclass(frozen=True)
class Measurement:
    """One preparation: `seconds` of the whole process, start included; `peak` is its largest resident size in bytes.

    `tokens` are those of the rows to train on: 99% of them.
    """

    rows: int
    tokens: int
    seconds: float
    cpu_seconds: float
    peak: int


def measure(rows: int, model: Path) -> Measurement:
    """Prepares `rows` rows as a process of its own.

    Raises:
        RunFailed: it ended with an error, or prepared another number of rows.
    """
    with tempfile.TemporaryDirectory(prefix="gemmatune-prepare-") as folder:
        work = Path(folder)
        _write_rows(rows, work / DATA)
        environment = {
            **os.environ,
            ENV_RUN: _config(work, model),
            ENV_CACHE: str(work / "cache"),
            ENV_TERMINATION_LOG: str(work / "message.json"),
        }
        started = time.monotonic()
        log = work / "prepare.log"
        ended = peak.run([sys.executable, "-m", "gemmatune_trainer", "prepare"], log, environment)
        seconds = time.monotonic() - started
        result = from_text((work / "message.json").read_text(), PrepareResult) if not ended.code else None
        if result is None or result.data is None or result.data.rows + (result.data.eval_rows or 0) != rows:
            raise RunFailed(f"prepare ended with {ended.code}:\n{log.read_text()[-2000:]}")
        return Measurement(rows, result.data.tokens, seconds, ended.cpu_seconds, ended.peak)


def _write_rows(rows: int, data: Path) -> None:
    """Real quotes, over and over, each with a number of its own so that none repeats another."""
    quotes = itertools.islice(itertools.cycle(quote_rows()), rows)
    with data.open("w", encoding="utf-8") as file:
        for number, quote in enumerate(quotes):
            file.write(json.dumps({"text": quote["text"], "from": f"{quote['from']}, {number}"}) + "\n")


def _config(work: Path, model: Path) -> str:
    spec = resolve(
        FineTuneSpec.model_validate(
            {
                "model": {"uri": model.as_uri()},
                "dataset": {
                    "uri": (work / DATA).as_uri(),
                    "text": {"template": "Quote: {text}\nAuthor: {from}"},
                    "evalFraction": 0.01,
                },
                "output": {"uri": (work / "out").as_uri()},
                "accelerator": {"cpu": {}},
            }
        )
    )
    known = catalog.by_name("gemma-3-270m")
    assert known is not None
    return build(spec, RunIdentity(name="prepare", namespace="bench", uid=work.name), 1, fit.plan(spec, known)).to_env()


def growth(measurements: Sequence[Measurement]) -> float:
    """Bytes of peak memory that a row more costs, from the fewest to the most rows."""
    first, last = measurements[0], measurements[-1]
    return (last.peak - first.peak) / max(1, last.rows - first.rows)


def write(measurements: Sequence[Measurement], output: Path) -> None:
    """Writes the measurements with commit, date and machine."""
    found = {
        "bytes_per_row": growth(measurements),
        "measurements": [asdict(item) for item in measurements],
    }
    about.write(found, output)


def main() -> None:
    """Measures every size, prints what was found and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    about.with_model(parser)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    arguments = parser.parse_args()
    model = about.model_of(arguments)
    measurements = []
    for rows in arguments.sizes:
        found = measure(rows, model)
        measurements.append(found)
        print(f"{rows:9,} rows: {rows / found.seconds:8,.0f} rows/s, peak {found.peak / MIB:,.0f} MiB", flush=True)
    write(measurements, arguments.output)
    grown = measurements[-1].peak / measurements[0].peak - 1
    print(f"{growth(measurements):.1f} bytes of peak memory a row ({grown:+.1%})")
    sys.exit(f"the peak grows by {grown:.1%}, at most {MOST_GROWTH:.0%} is wanted" if grown > MOST_GROWTH else 0)


if __name__ == "__main__":
    main()
