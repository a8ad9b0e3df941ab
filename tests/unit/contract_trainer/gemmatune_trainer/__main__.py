"""Counts steps; its environment says how fast, and where and how it fails."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from gemmatune_api.names import ENV_RUN, ENV_STATUS_FILE, ENV_TERMINATION_LOG, EXIT_REASONS, ExitCode
from gemmatune_api.runconfig import RunConfig

SHAPE = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 18,
    "hidden_size": 640,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "intermediate_size": 2048,
    "vocab_size": 262144,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
}


def leave(code: int, **message: Any) -> NoReturn:
    if reason := EXIT_REASONS.get(code):
        message = {"reason": str(reason), "message": "It was told to.", **message}
    Path(os.environ[ENV_TERMINATION_LOG]).write_text(json.dumps(message))
    sys.exit(code)


def prepare() -> NoReturn:
    if code := int(os.environ.get("PREPARE_EXIT", 0)):
        leave(code)
    data = {"hash": "d", "rows": 100, "tokens": 1000, "labelledTokens": 1000, "longest": 10}
    leave(0, model={"family": "gemma3_text", "revision": "r", "shape": SHAPE}, data=data)


def train(config: RunConfig) -> NoReturn:
    path = Path(os.environ[ENV_STATUS_FILE])
    status: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    step = status.get("checkpoint", {}).get("step", 0)
    print(f"started, resumed from {step}", flush=True)
    total = config.training.max_steps or 0
    output = config.output.uri

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(status))
        part.replace(path)

    def stop(*_: object) -> NoReturn:
        status["checkpoint"] = {"step": step, "uri": f"{output}/checkpoints/step-{step:08}"}
        write()
        leave(ExitCode.INTERRUPTED, step=step)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ.get("TRAINER_DEAF") else stop)
    while step < total:
        time.sleep(float(os.environ.get("TRAINER_STEP_SECONDS", 0.01)))
        step += 1
        status["progress"] = {"step": step, "totalSteps": total, "stepText": f"{step}/{total}", "loss": 1 / step}
        write()
        if step == int(os.environ.get("TRAINER_EXIT_AT", 0)):
            leave(int(os.environ["TRAINER_EXIT"]))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    status["artifacts"] = {"adapter": f"{output}/adapter", "manifest": f"{output}/manifest.json"}
    write()
    Path(output.removeprefix("file://"), "manifest.json").write_text("{}")
    leave(0, manifest=f"{output}/manifest.json", step=step)


def merge(config: RunConfig) -> NoReturn:
    if code := int(os.environ.get("MERGE_EXIT", 0)):
        leave(code)
    path, merged = Path(os.environ[ENV_STATUS_FILE]), f"{config.output.uri}/merged"
    status = json.loads(path.read_text())
    status["artifacts"]["merged"] = merged
    path.write_text(json.dumps(status))
    leave(0, manifest=f"{merged}/manifest.json", message="Nothing was merged.")


if __name__ == "__main__":
    role = sys.argv[1]
    prepare() if role == "prepare" else {"train": train, "merge": merge}[role](RunConfig.from_env(os.environ[ENV_RUN]))
