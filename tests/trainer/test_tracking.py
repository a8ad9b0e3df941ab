"""Experiment trackers: what two attempts leave in each, read back from its own files, and that none can end a run."""

from __future__ import annotations

import json
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gemmatune_api.runconfig import RunConfig
from gemmatune_api.runtracking import RunMlflow, RunTracking, RunWandb
from gemmatune_trainer import tracking
from gemmatune_trainer.history import Evaluated, Point
from gemmatune_trainer.report import settings
from gemmatune_trainer.tracking import Ending, open_tracking
from gemmatune_trainer.tracking import wandb as our_wandb
from tests.support.wait import wait_for
from tests.trainer.conftest import run_config, write_quotes

SECRET = "0123456789abcdef0123456789abcdef01234567"
LEVELDB_BLOCK = 32 * 1024
MakeRun = Callable[..., RunConfig]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    monkeypatch.setattr(tracking, "CLOSE_SECONDS", dict.fromkeys(tracking.CLOSE_SECONDS, 240.0))
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    data = write_quotes(tmp_path / "quotes.jsonl")

    def make(**trackers: Any) -> RunConfig:
        config = run_config(tmp_path / "model", data, tmp_path / "out")
        return config.model_copy(update={"tracking": RunTracking(**trackers)})

    return make


def attempt(config: RunConfig, number: int, first: int, last: int, ending: Ending, scratch: Path) -> list[Any]:
    """Tells the trackers of the steps of one attempt; the log's warnings."""
    config = config.model_copy(update={"attempt": number})
    with capture_logs() as lines:
        found = open_tracking(config, settings(config), scratch / str(number), first - 1)
        found.evaluated(Evaluated(first - 1, 3.0))
        for step in range(first, last + 1):
            found.point(Point(step, 4.0 / step, 1e-4, float("inf"), 100.0, 2**30))
        found.close(ending)
    return [line for line in lines if line["log_level"] == "warning"]


def test_of_several_processes_one_speaks(run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert not attempt(run(tensorboard=True), 1, 1, 2, "finished", tmp_path)
    assert not (tmp_path / "out").exists()


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of the event files of a folder: tag -> step -> value."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        place = 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += 16 + length
            if event.session_log.status == event.session_log.START and event.HasField("session_log"):
                for steps in found.values():
                    for step in [step for step in steps if step >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_tensorboard_reads_two_attempts_as_one_run(run: MakeRun, tmp_path: Path) -> None:
    config = run(tensorboard=True)
    assert not attempt(config, 1, 1, 9, "interrupted", tmp_path)
    assert not attempt(config, 2, 6, 12, "finished", tmp_path)  # steps 6 to 9 were lost and are told again
    found = scalars(tmp_path / "out/report/tensorboard")
    assert list(found["train/loss"]) == list(range(1, 13))
    assert found["train/loss"][8] == pytest.approx(0.5)
    assert found["train/memory_bytes"][12] == 2**30
    assert found["eval/loss"] == {0: 3.0, 5: 3.0}
    assert "train/gradient_norm" not in found, "an infinite value is left out"


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run, which W&B writes in LevelDB's log format after 7 bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = file.read_bytes(), 7, b""
    while place < len(data):
        rest = LEVELDB_BLOCK - place % LEVELDB_BLOCK
        if rest < 7:
            place += rest
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def test_wandb_without_a_key_leaves_files_of_one_run(run: MakeRun, tmp_path: Path) -> None:
    config = run(wandb=RunWandb(project="gemma", entity="team"))
    assert not attempt(config, 1, 1, 3, "interrupted", tmp_path)
    assert not attempt(config, 2, 3, 4, "finished", tmp_path)
    files = sorted((tmp_path / "out/report/wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == ["run-uid-1.wandb"] * 2
    steps = []
    for file in files:
        for record in wandb_records(file):
            if record.HasField("run"):
                assert (record.run.run_id, record.run.project, record.run.entity) == ("uid-1", "gemma", "team")
                config_keys = {item.key for item in record.run.config.update}
                assert {"training.learningRate", "lora.rank"} <= config_keys
            values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            if "train/loss" in values:
                steps.append(int(values["step"]))
                assert json.loads(values["train/loss"]) == pytest.approx(4.0 / steps[-1])
    assert steps == [1, 2, 3, 3, 4]


def test_mlflow_knows_two_attempts_as_one_run(run: MakeRun, tmp_path: Path) -> None:
    config = run(mlflow=RunMlflow(uri=(tmp_path / "mlruns").as_uri()))
    assert not attempt(config, 1, 1, 3, "interrupted", tmp_path)
    changed = config.model_copy(update={"training": config.training.model_copy(update={"micro_batch_size": 1})})
    assert not attempt(changed, 2, 3, 4, "finished", tmp_path)
    (losses,) = (tmp_path / "mlruns").glob("*/*/metrics/train/loss")
    told = [line.split() for line in losses.read_text().splitlines()]
    assert [int(step) for _, _, step in told] == [1, 2, 3, 3, 4]
    folder = losses.parents[2]
    assert (folder / "tags/gemmatune.uid").read_text() == "uid-1"
    assert (folder / "tags/gemmatune.attempt").read_text() == "2"
    assert (folder / "params/lora.rank").read_text() == "4"
    assert "status: 3" in (folder / "meta.yaml").read_text(), "FINISHED"


class Refusing(BaseHTTPRequestHandler):
    """A server that lets nobody in, and remembers who asked."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization", ""))
        body = json.dumps({"error_code": "UNAUTHENTICATED", "message": f"no: {SECRET}"}).encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(autouse=True)
def fresh_wandb() -> Iterator[None]:
    """W&B reads its environment once a process, as a trainer does."""
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture
def refusing() -> Iterator[ThreadingHTTPServer]:
    Refusing.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_trackers_that_refuse_end_nothing_and_tell_no_secret(
    run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: ThreadingHTTPServer
) -> None:
    address = f"http://127.0.0.1:{refusing.server_port}"
    for name, value in (("WANDB_API_KEY", SECRET), ("WANDB_BASE_URL", address), ("MLFLOW_TRACKING_TOKEN", SECRET)):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(our_wandb, "_INIT_SECONDS", 5.0)
    monkeypatch.setattr(tracking, "INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.01)
    config = run(wandb=RunWandb(project="gemma"), mlflow=RunMlflow(uri=address))
    told = attempt(config, 1, 1, 3, "finished", tmp_path)
    assert sorted(line["tracker"] for line in told) == ["mlflow", "wandb"], told
    assert f"Bearer {SECRET}" in Refusing.seen
    assert SECRET not in json.dumps(told)
    assert next(line for line in told if line["tracker"] == "wandb")["offline"].endswith("/report/wandb")
    (file,) = (tmp_path / "out/report/wandb").glob("offline-run-*/*.wandb")
    assert SECRET.encode() not in file.read_bytes()


def test_a_tracker_gets_again_what_it_did_not_take(run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.01)

    class Moody:
        name = "moody"

        def __init__(self) -> None:
            self.opened = self.refused = 0
            self.taken: list[int] = []

        def open(self) -> None:
            self.opened += 1
            if self.opened < 3:
                raise OSError("not yet")

        def log(self, records: Any) -> None:
            if records and self.refused < 2:
                self.refused += 1
                raise OSError("not now")
            self.taken += [record.step for record in records]

        def close(self, ending: Ending) -> None:
            self.taken.append(-1)

    with capture_logs() as lines:
        moody = Moody()
        found = tracking.Tracking([moody])
        for step in range(5):
            found.evaluated(Evaluated(step, 1.0))
        wait_for(lambda: len(moody.taken) == 5, "the values", seconds=60)
        found.close("finished")
    assert moody.taken == [0, 1, 2, 3, 4, -1]
    assert [line["event"] for line in lines] == ["tracker"], "the trouble is told once"
