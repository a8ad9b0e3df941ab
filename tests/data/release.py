"""A run as a release left it midway, and the tool that stores one: `python -m tests.data.release BACKEND`.

Once for each release and backend, by the release's own code and in the backend's environment. A stored run is never
written anew: the trainers of later versions are held against it, as they meet it when an operator is upgraded while
runs are under way. So is their CustomResourceDefinition, by the resources and the one that they were stored under.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmatune_api.names import (
    DEFAULT_CACHE,
    ENV_CACHE,
    ENV_CLAIMS,
    ENV_GCS_ENDPOINT,
    ENV_RUN,
    ENV_STATUS_FILE,
    ENV_TERMINATION_LOG,
    GROUP,
    PLURAL,
    ExitCode,
)
from gemmatune_trainer.checkpoints import prefix_of
from gemmatune_trainer.versions import versions
from tests.support.fakegcs import FakeGcs
from tests.support.play import Play
from tests.support.tinymodels import write_model

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).parent
BUCKET, OUTPUT = "former", "runs/quotes/"
STEP, STEPS = 4, 8
"""The step of the checkpoint that is stored, and the run's last one."""
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 16,
}
DEFINITION = "crd.yaml"
"""The release's CustomResourceDefinition, beside the backends' runs."""
RESULT = "adapter/adapter_model.safetensors"
BACKENDS: Mapping[str, dict[str, Any]] = {
    "torch": {"lora": {"rank": 2, "dropout": 0.1}},
    "xla": {"lora": {"rank": 2}, "accelerator": {"cpu": {"devices": 2}}, "mesh": {"data": 2, "model": 1}},
    "keras": {"lora": {"rank": 2}, "accelerator": {"cpu": {"devices": 2}}, "mesh": {"data": 2, "model": 1}},
}
"""What the backends' runs differ in."""


@dataclass(frozen=True)
class Release:
    """A stored run: what its operator and its trainer wrote, and how it ended where nothing came between."""

    folder: Path

    @property
    def claims(self) -> Path:
        """The volumes that it reads: base model and rows."""
        return self.folder / "claims"

    @property
    def facts(self) -> dict[str, Any]:
        """Version, libraries, and the losses of its steps."""
        found: dict[str, Any] = json.loads((self.folder / "release.json").read_text())
        return found

    @property
    def resource(self) -> dict[str, Any]:
        """The resource as it stood after the first attempt."""
        found: dict[str, Any] = json.loads((self.folder / "resource.json").read_text())
        return found

    def told(self, job: str) -> dict[str, str]:
        """The environment of a Job's container: `p1`, `t1` or `t2`."""
        found: dict[str, str] = json.loads((self.folder / f"{job}.json").read_text())
        return found

    def environment(self, job: str, gcs: FakeGcs, scratch: Path) -> dict[str, str]:
        """The same for a process of this machine: its scratch folder, volumes and bucket are elsewhere."""
        moved = {name: value.replace(DEFAULT_CACHE, str(scratch)) for name, value in self.told(job).items()}
        here = {ENV_CACHE: str(scratch), ENV_CLAIMS: str(self.claims), ENV_GCS_ENDPOINT: gcs.endpoint}
        return {**moved, **here, ENV_RUN: self.told(job)[ENV_RUN], "OMP_NUM_THREADS": "1"}

    def upload(self, gcs: FakeGcs) -> None:
        """Fills the bucket with what the first attempt left."""
        bucket = gcs.client().bucket(gcs.new_bucket(BUCKET))
        for path in sorted((self.folder / "bucket").rglob("*")):
            if path.is_file():
                name = OUTPUT + path.relative_to(self.folder / "bucket").as_posix()
                bucket.blob(name).upload_from_filename(str(path))


def releases(backend: str) -> list[Release]:
    """The stored runs of a backend, oldest first."""
    return [Release(folder) for folder in sorted(FOLDER.glob(f"*/{backend}"))]


def record(folder: Path, backend: str) -> None:
    """Lets a run come to its end by operator, preparation and trainer of this tree, and keeps what lay there midway."""
    write_model(folder / "claims/former/model", "3", **SHAPE)
    words = ["be", "yourself", "every", "day", "the", "sky", "and", "sun", "one", "two", "three", "blue", "rain"]
    rows = [{"quote": " ".join(words[n % 5 : n % 5 + 3 + n % 7]), "author": words[n % 11]} for n in range(24)]
    (folder / "claims/former/quotes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    release = Release(folder)
    play = Play(_spec(backend))
    play.look()
    with FakeGcs() as gcs, tempfile.TemporaryDirectory() as scratch:
        gcs.new_bucket(BUCKET)
        _keep(release, play, "p1")
        play.ends("quotes-p1", 0, _run(release, "p1", "prepare", gcs, Path(scratch)))
        play.runs("quotes-t1")
        _keep(release, play, "t1")
        _run(release, "t1", "train", gcs, Path(scratch))
        for name in gcs.names(BUCKET, OUTPUT):
            kept = name.removeprefix(OUTPUT)
            if kept.startswith(("run.json", "attempts/", "prepared/", prefix_of(STEP))):
                _write(folder / "bucket" / kept, _unnamed(gcs.read(BUCKET, name)))
        _write(folder / "result" / Path(RESULT).name, gcs.read(BUCKET, OUTPUT + RESULT))
        status = json.loads((Path(scratch) / "status.json").read_text())
    play.ends("quotes-t1", ExitCode.INTERRUPTED, {"message": "stopped", "step": STEP})
    play.wait(600)
    _keep(release, play, "t2")
    (folder / "resource.json").write_text(json.dumps(play.resource, indent=1))
    progress = status["progress"]
    facts = {
        "version": version(),
        "losses": dict(zip(progress["historySteps"], progress["historyLoss"], strict=True)),
        "libraries": versions(),
    }
    (folder / "release.json").write_text(json.dumps(facts, indent=1))


def version() -> str:
    """The version of this tree."""
    found: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return found


def _spec(backend: str) -> dict[str, Any]:
    return {
        "model": {"uri": "pvc://former/model"},
        "backend": backend,
        "dataset": {
            "uri": "pvc://former/quotes.jsonl",
            "text": {"template": "Quote: {quote}\nAuthor: {author}"},
            "maxLength": 64,
            "evalFraction": 0.2,
        },
        "output": {"uri": f"gs://{BUCKET}/{OUTPUT}".rstrip("/")},
        "training": {
            "maxSteps": STEPS,
            "globalBatchSize": 4,
            "microBatchSize": 2,
            "learningRate": 5e-3,
            "precision": "fp32",
            "logEverySteps": 1,
        },
        "checkpoint": {"everySteps": STEP, "best": True},
        "samples": {"prompts": ["Quote: be"], "maxNewTokens": 4},
        "accelerator": {"cpu": {}},
        **BACKENDS[backend],
    }


def _keep(release: Release, play: Play, job: str) -> None:
    """Stores the environment that the operator gives to a Job's container."""
    (container,) = play.job(f"quotes-{job}")["spec"]["template"]["spec"]["containers"]
    plain = {item["name"]: item["value"] for item in container["env"] if "value" in item}
    (release.folder / f"{job}.json").write_text(json.dumps(plain, indent=1))


def _run(release: Release, job: str, role: str, gcs: FakeGcs, scratch: Path) -> dict[str, Any]:
    """A role of the trainer as a process; its termination message."""
    message = scratch / "message"
    own = {ENV_TERMINATION_LOG: str(message), ENV_STATUS_FILE: str(scratch / "status.json")}
    env = {**os.environ, **release.environment(job, gcs, scratch), **own}
    done = subprocess.run([sys.executable, "-m", "gemmatune_trainer", role], env=env, check=False)
    if done.returncode != 0:
        raise SystemExit(f"the trainer's {role} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(message.read_text())
    return found


def _unnamed(data: bytes) -> bytes:
    """An object without the name of the machine, which the record of an attempt holds."""
    return data.replace(json.dumps({"host": socket.gethostname()})[1:-1].encode(), b'"host": "node"')


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def main() -> None:
    """Stores this release's run of a backend, where there is none."""
    parser = argparse.ArgumentParser(description="Store a run of this release midway, for the tests of later ones.")
    parser.add_argument("backend", choices=sorted(BACKENDS))
    backend = parser.parse_args().backend
    target = FOLDER / version() / backend
    if target.exists():
        raise SystemExit(f"{target} exists: what a release left is not written anew. Raise the version first.")
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder), backend)
        shutil.copytree(folder, target)
    if not (definition := target.parent / DEFINITION).exists():
        shutil.copy(ROOT / f"crds/{PLURAL}.{GROUP}.yaml", definition)
    print(f"{target.relative_to(ROOT)}: {sum(path.stat().st_size for path in target.rglob('*')) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
