"""The plant on which all faults are provoked: one control plane, KWOK, a node of processes, the real operator."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemmatune_api import names
from tests.faults import nodes, waits
from tests.faults.runner import Runner
from tests.faults.scene import GPU_LABEL, GPU_TAINT, KWOK_GPU, REAL_GPU, SHARED, Plant
from tests.support.api import Api, ApiError, Object
from tests.support.controlplane import ControlPlane
from tests.support.history import PATHS, History
from tests.support.kwok import Kwok
from tests.support.nodeagent import NodeAgent
from tests.support.operator_process import OperatorProcess
from tests.support.wait import wait_for

NAMESPACES = (SHARED, waits.QUOTA, waits.NO_PODS, waits.LIMITED)
SPOT_LABEL = {"cloud.google.com/gke-spot": "true"}
SPOT_TAINT: Object = {"key": "cloud.google.com/gke-spot", "value": "true", "effect": "NoSchedule"}
HEALTHY = 12
"""Nodes that do nothing: where more than 55% of a zone's nodes are dead, the node controller evicts no pod of any."""
TRAINER = Path(__file__).parent / "trainer"
PLENTY = {"cpu": "10000", "memory": "100Ti", "ephemeral-storage": "1000Ti", "pods": "10000", "nvidia.com/gpu": "10000"}


@pytest.fixture(scope="module")
def plant(crd: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """Nodes, namespaces with their quotas, and the history of it all; gone with the module.

    The tests of other modules play the kubelet themselves: KWOK would run their pods, too.
    """
    folder, api = tmp_path_factory.mktemp("faults"), crd.api
    wait_for(lambda: _served(api), "the API server to serve the resource")
    _namespaces(api)
    environment = {"PYTHONPATH": str(TRAINER)}
    node = NodeAgent(
        crd,
        folder / "node",
        labels={GPU_LABEL: REAL_GPU},
        taints=[GPU_TAINT],
        resources=PLENTY,
        environment=environment,
    )
    with History(api) as history, Kwok(crd, folder / "kwok") as kwok, node:
        kwok.node("kwok-cpu")
        kwok.node("kwok-gpu", labels={GPU_LABEL: KWOK_GPU}, taints=[GPU_TAINT], resources=PLENTY)
        spot = {GPU_LABEL: KWOK_GPU, **SPOT_LABEL}
        kwok.node("kwok-spot", labels=spot, taints=[GPU_TAINT, SPOT_TAINT], resources=PLENTY)
        for number in range(HEALTHY):
            kwok.node(f"kwok-healthy-{number}", taints=[GPU_TAINT])
        yield Plant(crd, history, node, folder, environment)


@pytest.fixture(scope="module")
def operators(plant: Plant) -> Iterator[None]:
    """The real operator's process, and one that runs several nodes; at the end neither has logged an exception."""
    prices = plant.folder / "prices.yaml"
    prices.write_text(f"{KWOK_GPU}: {waits.PRICE}\n")
    with (
        _operator(
            plant,
            "operator",
            OperatorProcess(*_told(plant, "operator"), namespaces=NAMESPACES, arguments=["--prices", str(prices)]),
        ),
        _operator(
            plant,
            "below",
            OperatorProcess(*_told(plant, "below"), namespaces=[nodes.SEVERAL], command=("-m", "tests.faults.below")),
        ),
    ):
        yield


def _told(plant: Plant, name: str) -> tuple[Path, Path]:
    return plant.control_plane.operator_kubeconfig, plant.folder / f"{name}.log"


@contextlib.contextmanager
def _operator(plant: Plant, name: str, process: OperatorProcess) -> Iterator[None]:
    try:
        process.ready()
        yield
    finally:
        code = process.stop()
    log = (plant.folder / f"{name}.log").read_text()
    assert code == 0, f"the {name} ended with {code}:\n{process.server.tail(40)}"
    assert "Traceback" not in log, log[-8000:]


@pytest.fixture(scope="module")
def results(plant: Plant, operators: None, request: pytest.FixtureRequest) -> Runner:
    """Every selected fault, provoked FAULT_RUNS times."""
    faults = [item.callspec.params["fault"] for item in request.session.items if _is_fault(item)]
    runner = Runner(plant, runs=int(os.environ.get("FAULT_RUNS", "1")))
    runner.run(faults)
    return runner


def _is_fault(item: pytest.Item) -> bool:
    return "fault" in getattr(getattr(item, "callspec", None), "params", {})


def _served(api: Api) -> bool:
    try:
        api.get(PATHS[names.KIND])
    except ApiError as error:
        if error.status == 429:  # just established: "storage is (re)initializing"
            return False
        raise
    return True


def _namespaces(api: Api) -> None:
    for name in (*NAMESPACES, nodes.SEVERAL):
        api.create("/api/v1/namespaces", {"metadata": {"name": name}})
        wait_for(lambda path=f"/api/v1/namespaces/{name}/serviceaccounts/default": api.find(path), f"account of {name}")
    _quota(api, waits.QUOTA, {"requests.nvidia.com/gpu": "0"})
    _quota(api, waits.NO_PODS, {"pods": "0"})
    limits: Object = {"limits": [{"type": "Container", "max": {"cpu": "1"}, "default": {"cpu": "1"}}]}
    api.create(f"/api/v1/namespaces/{waits.LIMITED}/limitranges", {"metadata": {"name": "small"}, "spec": limits})
    known = {"metadata": {"name": "known"}, "stringData": {"some-key": "x"}}
    api.create(f"/api/v1/namespaces/{SHARED}/secrets", known)


def _quota(api: Api, namespace: str, hard: Object) -> None:
    path = f"/api/v1/namespaces/{namespace}/resourcequotas"
    api.create(path, {"metadata": {"name": "none"}, "spec": {"hard": hard}})
    wait_for(lambda: api.get(f"{path}/none").get("status", {}).get("hard"), f"the quota of {namespace} to hold")
