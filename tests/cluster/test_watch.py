"""`gft watch` on a real API server: it follows a resource to its end and says what kubectl's user has to know."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.api import Object
from tests.support.controlplane import ControlPlane
from tests.support.resources import resource
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster

Watcher = Callable[..., "subprocess.Popen[str]"]


def condition(kind: str, reason: str, message: str) -> dict[str, str]:
    time = "2026-01-02T03:04:05Z"
    return {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": time}


@pytest.fixture
def path(crd: ControlPlane, namespace: str) -> str:
    """The path of a new resource."""
    crd.kubectl("apply", "-n", namespace, "-f", "-", input=resource())
    return f"/apis/gemmatune.dev/v1alpha1/namespaces/{namespace}/gemmafinetunes/quotes"


@pytest.fixture
def watcher(crd: ControlPlane, namespace: str, tmp_path: Path) -> Watcher:
    """Starts `gft watch` with what it prints in tmp_path/out."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        with (tmp_path / "out").open("w") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "gemmatune_cli", "watch", *arguments],
                env={**os.environ, "KUBECONFIG": str(crd.kubeconfig), "PYTHONUNBUFFERED": "1"},
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
            )

    return start


def test_results_by_the_name_of_a_resource(crd: ControlPlane, namespace: str, path: str, tmp_path: Path) -> None:
    """Samples come from the status while there is no manifest, and that is also what the other commands say."""

    def gft(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "gemmatune_cli", *arguments, "-n", namespace],
            env={**os.environ, "KUBECONFIG": str(crd.kubeconfig)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    output = (tmp_path / "nothing").as_uri()
    crd.api.patch(path, {"spec": {"output": {"uri": output}}})
    crd.api.patch(f"{path}/status", {"status": {"phase": "Training", "samples": [{"prompt": "Who?", "before": "I."}]}})
    code, out, _ = gft("samples", "quotes")
    assert (code, out.split()) == (0, ["prompt", "Who?", "before", "I."])
    code, _, error = gft("serve-command", "quotes")
    assert code == 1
    assert f"GemmaFineTune {namespace}/quotes has not finished (it is Training): {output}/manifest.json" in error
    code, _, error = gft("report", "quotas")
    assert code == 1
    assert f"{namespace}/quotas does not exist" in error


def test_it_follows_a_run_to_its_success(
    crd: ControlPlane, namespace: str, path: str, watcher: Watcher, tmp_path: Path
) -> None:
    def write(**status: Any) -> None:
        crd.api.patch(f"{path}/status", {"status": status})

    def shown(text: str) -> Callable[[], bool]:
        return lambda: text in (tmp_path / "out").read_text()

    accepted = condition("Accepted", "Valid", "It fits.")
    write(phase="Training", message="Attempt 1 trains.", conditions=[accepted])
    process = watcher("quotes", "-n", namespace)
    try:
        wait_for(shown("Attempt 1 trains."), "the phase")
        write(progress={"step": 3, "totalSteps": 9, "stepText": "3/9", "loss": 2.5})
        wait_for(shown("step 3/9  loss 2.5000"), "the progress")
        done = [condition("Succeeded", "Completed", "It is written."), condition("Finished", "Completed", "Ended.")]
        artifacts = {"adapter": "gs://bucket/quotes/adapter"}
        write(phase="Succeeded", message="It is written.", conditions=[accepted, *done], artifacts=artifacts)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
    assert shown("adapter  gs://bucket/quotes/adapter")()


def test_a_failed_run_and_a_deleted_one_end_with_1(
    crd: ControlPlane, namespace: str, path: str, watcher: Watcher, tmp_path: Path
) -> None:
    """Failed for good only where the operator has looked at the spec as it is."""
    failed: Object = {"phase": "Failed", "reason": "DataInvalid", "message": "Row 7 is empty.", "observedGeneration": 1}
    failed["remedy"] = "Correct row 7."
    crd.api.patch(f"{path}/status", {"status": {**failed, "conditions": [condition("Finished", "DataInvalid", "x")]}})
    assert watcher("quotes", "-n", namespace).wait(timeout=30) == 1
    assert "Failed, DataInvalid: Row 7 is empty.\nCorrect row 7." in (tmp_path / "out").read_text()

    again = {"phase": "Training", "message": "Again.", "conditions": [condition("Accepted", "Valid", "It fits.")]}
    crd.api.patch(f"{path}/status", {"status": again})
    process = watcher("quotes", "-n", namespace)
    wait_for(lambda: "Again." in (tmp_path / "out").read_text(), "its first look")
    crd.kubectl("delete", "gft", "quotes", "-n", namespace)
    assert process.wait(timeout=30) == 1
    assert "was deleted" in (tmp_path / "out").read_text()


def test_what_does_not_exist_is_an_error_without_a_traceback(
    crd: ControlPlane, namespace: str, watcher: Watcher, tmp_path: Path
) -> None:
    assert watcher("nothing", "-n", namespace).wait(timeout=30) == 1
    text = (tmp_path / "out").read_text()
    assert f"GemmaFineTune {namespace}/nothing does not exist" in text
    assert "Traceback" not in text
    assert watcher("nothing", "--context", "nowhere").wait(timeout=30) == 1
    assert "nowhere" in (tmp_path / "out").read_text()
