"""Two hosts of one attempt: processes that meet by JAX's coordinator and train what one process does."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from gemmatune_api.names import ExitCode
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends.keras_batches import Batches
from gemmatune_trainer.backends.keras_mesh import Share, share_of
from gemmatune_trainer.launcher import free_port
from tests.keras.conftest import MakeConfig, device_environment
from tests.support.soak import SOAK, only_in_soak
from tests.support.trainerhost import TrainerHost, TrainerProcess
from tests.support.wait import wait_for

STEPS = 30
MESH = (2, 2)
Arrays = dict[str, Any]


def output(config: RunConfig) -> Path:
    return Path(config.output.uri.removeprefix("file://"))


def at(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"output": config.output.model_copy(update={"uri": folder.as_uri()})})


def attempt(config: RunConfig, number: int) -> RunConfig:
    return config.model_copy(update={"attempt": number})


def start(host: TrainerHost, config: RunConfig, folder: Path, hosts: int = 2) -> list[TrainerProcess]:
    """The processes of an attempt, one a host, as the launchers of their pods start them; rank 0 first."""
    devices = device_environment(MESH[0] * MESH[1] // hosts)
    if hosts == 1:
        return [host.start("train", config, folder / "0", devices)]
    meet = {"WORLD_SIZE": str(hosts), "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        host.start("train", config, folder / str(rank), {**devices, **meet, "RANK": str(rank)}) for rank in range(hosts)
    ]


def run(host: TrainerHost, config: RunConfig, folder: Path, hosts: int = 2) -> list[TrainerProcess]:
    """An attempt to its good end."""
    processes = start(host, config, folder, hosts)
    for process in processes:
        assert process.wait() == ExitCode.DONE, "\n".join(each.log()[-6000:] for each in processes)
    return processes


def prepared(host: TrainerHost, config: RunConfig, folder: Path) -> RunConfig:
    done = host.run("prepare", config, folder)
    assert done.poll() == ExitCode.DONE, done.log()
    return config


def wait_for_checkpoints(process: TrainerProcess, count: int) -> None:
    """Waits until so many are saved, or the process has ended."""
    wait_for(
        lambda: len(process.events("checkpoint saved")) >= count or process.poll() is not None,
        f"{count} checkpoints",
        seconds=180,
        detail=process.log,
    )


def losses(config: RunConfig) -> list[float]:
    """Losses of all steps, unrounded, from the last checkpoint."""
    newest = max((output(config) / "checkpoints").iterdir())
    return [point["loss"] for point in json.loads((newest / "history.json").read_text())["points"]]


def adapter(config: RunConfig) -> Arrays:
    return load_file(output(config) / "adapter" / "adapter_model.safetensors")


def largest(one: Arrays, other: Arrays) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


@pytest.mark.parametrize(
    ("kind", "lost"), [("lora", False), *([("lora", True), ("full", True), ("full", False)] if SOAK else [])]
)
def test_two_hosts_train_what_one_process_does(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path, kind: str, lost: bool
) -> None:
    """2 hosts x 2 devices against 1 x 4: the losses within 1e-5. Rank 0 alone writes, and all end together.

    `lost`: SIGKILL ends rank 1 on the way; rank 0 ends by itself, and the next attempt goes on.
    """
    changes: Arrays = {"kind": "full", "learning_rate": 1e-3} if kind == "full" else {}
    config = make_config(mesh=MESH, max_steps=STEPS, every_steps=1, keep=5, eval_fraction=0.25, **changes)
    one, two = (prepared(trainer_host, at(config, tmp_path / name), tmp_path / f"p-{name}") for name in ("one", "two"))
    (alone,) = run(trainer_host, one, tmp_path / "alone", hosts=1)
    if lost:
        first, second = start(trainer_host, two, tmp_path / "first")
        wait_for_checkpoints(first, 2)
        second.signal(signal.SIGKILL)
        assert first.wait(120) not in (ExitCode.DONE, ExitCode.INTERRUPTED), first.log()
    first, second = run(trainer_host, attempt(two, 2 if lost else 1), tmp_path / "both")
    if lost:
        assert first.events("training")[0]["from_step"] >= 2
    assert len(losses(one)) == STEPS
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert first.status["progress"]["evalLoss"] == pytest.approx(alone.status["progress"]["evalLoss"], rel=1e-4)
    assert first.status["samples"] == alone.status["samples"]
    if kind == "lora":
        assert largest(adapter(one), adapter(two)) < 1e-4
    placed = {event["what"]: event for event in first.events("placed")}
    assert placed["weights"]["bytes_per_device"] == alone.events("placed")[0]["bytes_per_device"]
    assert not (second.folder / "status.json").exists()
    for event in ("checkpoint saved", "step", "done"):
        assert first.events(event), event
        assert not second.events(event), event


@only_in_soak
def test_a_host_that_is_told_to_stop_stops_all(
    make_config: MakeConfig, trainer_host: TrainerHost, tmp_path: Path
) -> None:
    """SIGTERM to rank 1 alone: both end with 30 after one checkpoint, and the next attempt goes on from it."""
    config = make_config(mesh=MESH, max_steps=60, every_steps=1, keep=2)
    prepared(trainer_host, config, tmp_path / "p")
    stopped = start(trainer_host, config, tmp_path / "stopped")
    wait_for_checkpoints(stopped[0], 2)
    stopped[1].signal(signal.SIGTERM)
    assert [process.wait() for process in stopped] == [ExitCode.INTERRUPTED] * 2, stopped[0].log() + stopped[1].log()
    reached = stopped[0].message.step
    assert reached is not None

    again = run(trainer_host, attempt(config, 2), tmp_path / "again")
    assert again[0].events("training")[0]["from_step"] == reached
    whole = prepared(trainer_host, at(config, tmp_path / "whole"), tmp_path / "pw")
    run(trainer_host, whole, tmp_path / "undisturbed", hosts=1)
    assert losses(config) == pytest.approx(losses(whole), rel=1e-5)


class Recorded:
    """Rows that remember which of them were read."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = lengths
        self.read: set[int] = set()

    def lengths(self) -> list[int]:
        return self._lengths

    def row(self, index: int) -> tuple[list[int], list[int]]:
        self.read.add(index)
        ids = [index + 10] * self._lengths[index]
        return ids, ids


@pytest.mark.parametrize(
    ("hosts", "alone"),
    [([{0}, {1}], True), ([{0}, {0}, {1}, {1}], True), ([{0, 1}, {0, 1}], False)],
    ids=["a group each", "two groups each", "groups that lie on both"],
)
def test_a_host_reads_the_rows_of_its_own_devices(make_config: MakeConfig, hosts: list[set[int]], alone: bool) -> None:
    """What all hosts read together is the whole step, and every token is counted once."""
    config = make_config(mesh=(len(hosts), 4 // len(hosts)), global_batch_size=8, micro_batch_size=1)
    lengths = [5 + 7 * index % 23 for index in range(8)]

    def batches(share: Share | None) -> tuple[list[Any], set[int]]:
        rows = Recorded(lengths)
        return Batches(config, rows, lengths, 1, len(hosts), 0, share).step(0), rows.read

    whole, everything = batches(None)
    parts = [batches(share_of(hosts, own)) for own in (0, 1)]
    assert everything == set(range(8)) == parts[0][1] | parts[1][1]
    assert (parts[0][1].isdisjoint(parts[1][1])) == alone
    for count in ("labelled", "filled"):
        wanted = sum(getattr(batch, count) for batch in whole)
        assert sum(getattr(batch, count) for part, _ in parts for batch in part) == wanted
    for index, batch in enumerate(whole):
        found = np.maximum(*(part[index].tokens for part, _ in parts))
        assert (found == batch.tokens).all()


class Pictured(Recorded):
    """Rows with a picture each."""

    def image(self, index: int) -> Any:
        return np.full((4, 4, 3), index + 1, np.uint8)


def test_hosts_have_arrays_of_one_shape_where_rows_have_pictures(make_config: MakeConfig) -> None:
    """Also a host on whose devices no row of a pass lies: XLA has one program for all."""
    config = make_config(mesh=(2, 2), global_batch_size=3, micro_batch_size=1)
    lengths = [5, 6, 7]
    hosts = [{0}, {1}]
    whole = Batches(config, Pictured(lengths), lengths, 1, 2, 0).step(0)
    parts = [Batches(config, Pictured(lengths), lengths, 1, 2, 0, share_of(hosts, own)).step(0) for own in (0, 1)]
    assert len(whole) == 2, "three rows, two at a time"
    assert not parts[1][1].tokens.any(), "nothing for the second host"
    for index, batch in enumerate(whole):
        pictures = [part[index].images for part in parts]
        assert {picture.shape for picture in pictures} == {batch.images.shape}
        assert (np.maximum(*pictures) == batch.images).all()
