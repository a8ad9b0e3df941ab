"""Jobs of the embedded cluster as processes: one pod each, their ends, deletion with grace, and a killed gft."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from gemmatune_api import names
from gemmatune_api.spec import GemmaFineTune
from gemmatune_cli.local import jobs
from gemmatune_cli.local.kubelet import Kubelet, LocalError
from gemmatune_cli.local.runner import find
from gemmatune_cli.local.store import Store
from gemmatune_operator.manifests.job import job as job_manifest
from gemmatune_operator.ports import Object
from gemmatune_operator.views import JobView, job_view, pod_view
from tests.support.wait import wait_for

JOB = "quotes-t1"


class Machine:
    """A store with a Job controller and a kubelet, and no operator."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "store.json")
        self.kubelet = Kubelet(self.store, folder)
        self.ahead = timedelta()  # how far its clock runs ahead

    def turn(self) -> None:
        now = datetime.now(UTC) + self.ahead
        for pod in self.store.list("Pod"):
            self.kubelet.sync(pod, now)
        for job in self.store.list("Job"):
            jobs.sync(self.store, job, now)
        self.store.save()

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        def check() -> Any:
            self.turn()
            return condition()

        return wait_for(check, what, interval=0.01)

    @property
    def job(self) -> JobView | None:
        """As the operator sees it."""
        job = self.store.get("Job", "default", JOB)
        return job_view(job, tuple(pod_view(pod) for pod in self.store.list("Pod"))) if job else None

    def view(self) -> JobView:
        assert self.job is not None
        return self.job

    def ended(self) -> JobView:
        self.until(lambda: self.view().finished, "the Job's end")
        return self.view()

    def delete(self) -> None:
        self.store.delete("Job", "default", JOB, self.view().uid)

    def says(self, text: str) -> Callable[[], bool]:
        log = self.kubelet.log(JOB)
        return lambda: log.exists() and text in log.read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.kubelet.end_all(grace=0)


def job(program: str, *, grace: int = 30, seconds: int | None = None, env: list[Object] | None = None) -> Object:
    """A Job with the policies of the real ones around a small program."""
    container = {"name": "trainer", "command": ["python", "-c", program], "env": env or []}
    template = {
        "metadata": {"labels": {names.LABEL_ROLE: "train"}},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": grace},
    }
    run = GemmaFineTune.model_validate(
        {
            "metadata": {"name": "quotes", "uid": "1"},
            "spec": {
                "model": {"uri": "file:///m"},
                "dataset": {"uri": "file:///d", "text": {"template": "{x}"}},
                "output": {"uri": "file:///o"},
                "accelerator": {"cpu": {}},
            },
        }
    )
    return job_manifest(run, names.Role.TRAIN, 1, template, seconds)


STOPS = """
import json, os, signal, sys, time
def stop(*_):
    open(os.environ["GEMMATUNE_TERMINATION_LOG"], "w").write(json.dumps({"reason": "Interrupted", "step": 3}))
    sys.exit(30)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""


def test_a_job_is_one_process_and_completes(machine: Machine) -> None:
    program = "import os; open(os.environ['GEMMATUNE_TERMINATION_LOG'], 'w').write('{\"manifest\": \"m\"}')"
    machine.store.create(job(program))
    machine.turn()
    assert (machine.view().active, machine.view().running) == (1, False)
    assert machine.view().pods[0].phase == "Pending"
    view = machine.ended()
    assert (view.complete, view.failed, view.active, view.terminating) == (True, False, 0, 0)
    assert [(pod.phase, pod.exit_code, pod.termination_message) for pod in view.pods] == [
        ("Succeeded", 0, '{"manifest": "m"}')
    ]
    assert view.pods[0].job == JOB
    assert view.pods[0].node == "localhost"


def test_a_contract_exit_code_fails_the_job_in_the_words_of_kubernetes(machine: Machine) -> None:
    machine.store.create(job("import sys; print('oh no'); sys.exit(20)"))
    view = machine.ended()
    assert (view.failed, view.failure_reason) == (True, "PodFailurePolicy")
    assert f"pod default/{view.pods[0].name} failed with exit code 20 matching FailJob rule" in view.failure_message
    assert (view.pods[0].exit_code, view.pods[0].termination_message) == (20, "oh no\n")
    for _ in range(3):
        machine.turn()
    assert len(machine.store.list("Pod")) == 1, "a Job never makes a second pod"


def test_another_exit_code_uses_up_the_backoff_limit(machine: Machine) -> None:
    machine.store.create(job("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    view = machine.ended()
    assert view.failure_reason == "BackoffLimitExceeded"
    assert view.pods[0].exit_code == 137


def test_a_deleted_job_lets_its_process_save_its_work(machine: Machine) -> None:
    machine.store.create(job(STOPS))
    machine.until(machine.says("ready"), "its start")
    machine.delete()
    machine.turn()
    assert (machine.view().deleting, machine.view().active, machine.view().terminating) == (True, 1, 0)
    machine.until(lambda: machine.job is None, "the removal")
    assert machine.store.list("Pod") == []
    message = machine.kubelet.log(JOB).with_name("termination-log").read_text()
    assert json.loads(message)["reason"] == "Interrupted"


def test_the_grace_period_ends_with_sigkill(machine: Machine) -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); "
    machine.store.create(job(program + "time.sleep(60)", grace=1))
    machine.until(machine.says("ready"), "its start")
    start = time.monotonic()
    machine.delete()
    machine.until(lambda: machine.job is None, "the removal")
    assert time.monotonic() - start >= 1


def test_a_job_that_lasts_too_long_is_stopped(machine: Machine) -> None:
    machine.store.create(job(STOPS, seconds=100))
    machine.until(machine.says("ready"), "its start")
    machine.ahead = timedelta(seconds=101)
    view = machine.ended()
    assert (view.failed, view.failure_reason, view.active, view.terminating) == (True, "DeadlineExceeded", 0, 0)


def test_a_process_sees_its_pods_variables_and_none_of_another_pod(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("GEMMATUNE_RUN", "another's")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("HF_HOME", raising=False)
    env = [
        {"name": "HOME", "value": "/cache"},
        {"name": "HF_HOME", "value": "/cache/huggingface"},
        {"name": "MINE", "value": "/cache/x"},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "HF_TOKEN"}}},
    ]
    machine.store.create(job("import json, os; print(json.dumps(dict(os.environ)))", env=env))
    machine.ended()
    seen = json.loads(machine.kubelet.log(JOB).read_text())
    assert "KUBERNETES_SERVICE_HOST" not in seen
    assert "GEMMATUNE_RUN" not in seen
    assert "HF_HOME" not in seen
    assert seen["HOME"] == "/home/me"
    assert seen["TOKEN"] == "hf_secret"
    assert seen["MINE"] == f"{tmp_path}/cache/x"
    assert Path(seen["GEMMATUNE_CACHE"]).is_dir()
    assert seen["GEMMATUNE_STATUS_FILE"] == str(machine.kubelet.status_file)


def test_a_secret_that_is_not_in_the_users_environment_is_an_error_that_says_so(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    secret = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "HF_TOKEN"}}}
    machine.store.create(job("pass", env=[secret]))
    machine.turn()
    with pytest.raises(LocalError, match=r"HF_TOKEN in secrets hub.*environment variable"):
        machine.turn()


# --- gft killed, its trainer alive ---

KILLED = """
import sys, time
from pathlib import Path
from tests.unit.test_local_node import Machine
machine = Machine(Path(sys.argv[1]))
while True:
    machine.turn()
    time.sleep(0.01)
"""


def kill_a_gft(folder: Path, program: str) -> int:
    """Starts a machine as a process of its own and kills it once the Job runs; the trainer's process id."""
    machine = Machine(folder)
    machine.store.create(job(program))
    machine.store.save()
    gft = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], cwd=Path(__file__).parents[2])
    try:
        wait_for(machine.says("ready"), "its start")
        return trainer(machine)
    finally:
        gft.kill()
        gft.wait()


def trainer(machine: Machine) -> int:
    found = find(names.ENV_TERMINATION_LOG, str(machine.kubelet.log(JOB).with_name("termination-log")))
    assert found is not None
    return found.pid


def test_the_next_gft_adopts_the_running_process_and_starts_no_second_one(tmp_path: Path) -> None:
    pid = kill_a_gft(tmp_path, STOPS)
    machine = Machine(tmp_path)
    machine.until(lambda: machine.view().running, "the adoption")
    assert trainer(machine) == pid
    assert machine.kubelet.log(JOB).read_text().count("ready") == 1
    machine.delete()
    machine.until(lambda: machine.job is None, "the removal")
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_the_next_gft_learns_how_a_process_ended_in_between(tmp_path: Path) -> None:
    pid = kill_a_gft(tmp_path, STOPS)
    os.kill(pid, 15)
    process = psutil.Process(pid)
    wait_for(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "its end")
    view = Machine(tmp_path).ended()
    assert (view.failed, view.pods[0].exit_code) == (True, names.ExitCode.INTERRUPTED)
    assert json.loads(view.pods[0].termination_message)["step"] == 3


def test_a_pod_that_was_recorded_but_not_started_is_started(tmp_path: Path) -> None:
    first = Machine(tmp_path)
    first.store.create(job("print('ready')"))
    first.turn()
    assert first.store.list("Pod")
    assert not first.kubelet.log(JOB).exists()
    assert Machine(tmp_path).ended().complete
