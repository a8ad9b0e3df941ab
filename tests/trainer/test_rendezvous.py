"""The command of an attempt with several nodes, run for real: its processes meet, and rank 0 is in the first pod."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from gemmatune_api.layout import Layout
from gemmatune_api.names import LAUNCHER_MODULE, TRAINER_MODULE
from gemmatune_operator.manifests import launch, service
from tests.support.servers import LOOPBACK, free_ports

PROBE = """
import json, os, sys
import torch
import torch.distributed as dist
from gemmatune_trainer.ranks import Ranks

names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
told = {name: int(os.environ[name]) for name in names}
Ranks.of_environment().join("cpu")
total = torch.tensor([float(dist.get_rank() + 1)])
dist.all_reduce(total)
told["pod"], told["sum"], told["arguments"] = int(os.environ["POD"]), total.item(), sys.argv[1:]
with open(os.path.join(os.environ["TOLD"], f"{told['RANK']}.json"), "w") as file:
    json.dump(told, file)
dist.destroy_process_group()
"""


def pod(command: list[str], index: int, port: int, folder: Path) -> subprocess.Popen[bytes]:
    """What the kubelet would start in a pod of the Job: its variables filled in, and the first pod's name resolved."""
    endpoint = f"--meet={service.host('quotes-t1', 0)}:{service.RENDEZVOUS_PORT}"
    assert endpoint in command
    filled = [item.replace("$(JOB_COMPLETION_INDEX)", str(index)) for item in command]
    filled = [f"--meet={LOOPBACK}:{port}" if item == endpoint else item for item in filled]
    assert filled[1:3] == ["-m", LAUNCHER_MODULE]
    run = f"import sys; from {TRAINER_MODULE} import launcher; launcher.TRAINER_MODULE = 'probe'; "
    filled = [filled[0], "-c", run + "sys.exit(launcher.main(sys.argv[1:]))", *filled[3:]]
    environment = {
        **os.environ,
        "POD": str(index),
        "TOLD": str(folder),
        "PYTHONPATH": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    with (folder / f"pod-{index}.log").open("wb") as log:
        return subprocess.Popen([sys.executable, *filled[1:]], env=environment, cwd=folder, stdout=log, stderr=log)


def test_two_pods_with_two_processes_each(tmp_path: Path) -> None:
    """The second pod starts first and waits; ranks follow the completion indexes."""
    (tmp_path / "probe.py").write_text(PROBE)
    command = launch.launcher("quotes-t1", Layout(hosts=2, per_host=2, replicas=4), wait=300)
    assert command[0] == "python"
    (port,) = free_ports(1)
    pods = [pod(command, index, port, tmp_path) for index in (1, 0)]
    try:
        for process in pods:
            process.wait(timeout=300)
    finally:
        for process in pods:
            process.kill()
    logs = "\n".join(file.read_text() for file in sorted(tmp_path.glob("pod-*.log")))
    assert [process.returncode for process in pods] == [0, 0], logs[-6000:]
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    assert [(item["pod"], item["LOCAL_RANK"]) for item in told] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {item["WORLD_SIZE"] for item in told} == {4}
    assert {item["sum"] for item in told} == {10.0}
    assert {tuple(item["arguments"]) for item in told} == {("train",)}
