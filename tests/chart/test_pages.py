"""The pages' commands for kubectl, helm and gft on a real control plane, in their order and as a shell reads them.

Nothing runs there but etcd and the API server: what operator and controllers would do meanwhile is written by hand.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gemmatune_api import names
from tests.support import chart
from tests.support.api import ApiError, Object
from tests.support.blocks import ROOT, Command, blocks, commands, mentions
from tests.support.controlplane import ADMIN, ControlPlane, program
from tests.support.resources import resource
from tests.support.wait import wait_for

pytestmark = pytest.mark.cluster
MERGE = "application/merge-patch+json"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{chart.NAMESPACE}/deployments/{chart.OPERATOR}"
_GFT = "each start takes a second (tests/cluster/test_gft_operate.py)"
ELSEWHERE = {
    "gft doctor": "a pod of its checks access (tests/cluster/test_gft_doctor.py)",
    "gft logs": "there are no pods (tests/cluster/test_gft_operate.py)",
    "gft report": "reads a bucket (tests/unit/test_cli_results.py)",
    "gft resume": _GFT,
    "gft run": "trains (tests/unit/test_local_run.py)",
    "gft serve-command": "reads a bucket (tests/unit/test_cli_results.py)",
    "gft suspend": _GFT,
    "gft top": _GFT,
    "helm test": "its pod needs a node (tests/e2e/test_real_node.py)",
}
"""What is tried in another place, and why."""


class Reader:
    """Somebody who follows a page: a folder with the checkout, a shell, and a namespace in the kubeconfig."""

    def __init__(self, cluster: ControlPlane, folder: Path, namespace: str) -> None:
        self.api, self.folder, self.namespace = cluster.api, folder, namespace
        self.exports: list[str] = []
        self.api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        for name in ("charts", "crds", "examples"):
            (folder / name).symlink_to(ROOT / name)
        programs = folder / "bin"
        programs.mkdir()
        for name in ("kubectl", "helm"):
            (programs / name).symlink_to(program(name))
        _script(programs / "gft", f'exec "{sys.executable}" -m gemmatune_cli "$@"')
        _script(programs / "gcloud", "echo 123456789012")
        self._environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(folder),
            "KUBECONFIG": str(cluster.kubeconfig_for(*ADMIN, namespace=namespace)),
            **{f"HELM_{kind}_HOME": str(folder) for kind in ("CACHE", "CONFIG", "DATA")},
        }

    def shell(self, line: str) -> subprocess.CompletedProcess[str]:
        """Runs a line; what was exported before is set."""
        text = "\n".join([*self.exports, line])
        return subprocess.run(
            ["bash", "-c", text],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def follows(self, command: Command) -> None:
        """Runs a command of a page, which has to work."""
        line = re.sub(r"\bNAME\b", "quotes", command.line)
        if command.program == "export":
            self.exports.append(line)
            return
        self._meanwhile(command)
        done = self.shell(line)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        if command.words[:2] == ["kubectl", "get"]:
            assert "quotes" in done.stdout, command

    def _meanwhile(self, command: Command) -> None:
        """What has come about before a reader gives a command."""
        if command.words[:2] == ["helm", "install"]:
            assert self.shell(f"helm uninstall gemmatune -n {chart.NAMESPACE} --ignore-not-found").returncode == 0
        elif command.words[:3] == ["kubectl", "rollout", "status"]:
            count = self.api.get(DEPLOYMENT)["spec"]["replicas"]
            counts = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "availableReplicas"), count)
            generation = self.api.get(DEPLOYMENT)["metadata"]["generation"]
            self._write(DEPLOYMENT, {"observedGeneration": generation, **counts})
        elif found := re.search(r"--for=condition=(\w+)", command.line):
            self._stands("", found[1])
        elif command.words[:2] == ["gft", "watch"]:
            self._stands("Succeeded", "Succeeded", "Finished")

    def _stands(self, phase: str, *conditions: str) -> None:
        """Where the runs of the cluster are."""
        more = {"status": "True", "reason": "Test", "message": "", "lastTransitionTime": "2026-03-01T00:00:00Z"}
        for run in self.api.get(f"/apis/{names.API_VERSION}/{names.PLURAL}")["items"]:
            meta = run["metadata"]
            path = f"/apis/{names.API_VERSION}/namespaces/{meta['namespace']}/{names.PLURAL}/{meta['name']}"
            self._write(path, {"phase": phase, "conditions": [{"type": name, **more} for name in conditions]})

    def _write(self, path: str, status: Object) -> None:
        self.api.call("PATCH", f"{path}/status", {"status": status}, content_type=MERGE)


def _script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def pages() -> dict[str, list[Command]]:
    """What is tried here, by page; the examples, each of which names its Secret anew, are one page."""
    found: dict[str, dict[str, Command]] = {}
    for command in commands():
        if command.program in ("kubectl", "helm", "gft", "export") and " ".join(command.words[:2]) not in ELSEWHERE:
            page = "examples" if command.page.startswith("examples/") else command.page
            found.setdefault(page, {}).setdefault(command.line, command)
    return {page: list(lines.values()) for page, lines in found.items()}


@pytest.fixture(scope="module")
def cluster(helm: Callable[..., object]) -> Iterator[ControlPlane]:
    """A control plane on which the chart has been before: README applies a run above the installation."""
    with ControlPlane(controllers=False) as running:
        flags = ("--namespace", chart.NAMESPACE, "--kubeconfig", str(running.kubeconfig))
        helm("install", "gemmatune", str(chart.CHART), "--create-namespace", *flags)
        wait_for(lambda: _is_served(running), "the definition to be served")
        yield running


def _is_served(cluster: ControlPlane) -> bool:
    try:
        return cluster.api.find(f"/apis/{names.API_VERSION}/{names.PLURAL}") is not None
    except ApiError as error:
        if error.status != 429:  # its storage is still made
            raise
        return False


@pytest.fixture
def reader(cluster: ControlPlane, tmp_path: Path, request: pytest.FixtureRequest) -> Reader:
    words = re.findall("[a-z]+", request.node.name.lower())
    return Reader(cluster, tmp_path, "-".join(words)[:60].strip("-"))


# README last: it applies the definition beside the chart, which a later `helm install` would have to take over.
@pytest.mark.parametrize("page", sorted(pages(), key=lambda page: page == "README.md"))
def test_a_page_can_be_followed(reader: Reader, page: str) -> None:
    if page == "README.md":  # it has the variables of quickstart
        reader.exports += [found.line for found in pages()["docs/quickstart.md"] if found.program == "export"]
    if page != "examples":
        shown = [text for text in blocks(ROOT / page, "yaml") if "{name: quotes}" in text]
        (reader.folder / "quotes.yaml").write_text("---\n".join(shown))
        if not shown:  # the page is about a run that there is
            runs = f"/apis/{names.API_VERSION}/namespaces/{reader.namespace}/{names.PLURAL}"
            reader.api.create(runs, resource())
    for command in pages()[page]:
        reader.follows(command)


def test_nothing_is_left_out_unsaid() -> None:
    asked = {" ".join(command.words[:2]) for command in commands() if command.program in ("kubectl", "helm", "gft")}
    assert asked >= ELSEWHERE.keys()


def test_what_is_wrong_is_seen(reader: Reader) -> None:
    wrong = (
        "kubectl creat secret generic hf-token --from-literal=HF_TOKEN=hf_...",
        "kubectl create secrte generic hf-token --from-literal=HF_TOKEN=hf_...",
        "kubectl create secret generic hf-token --from-litteral=HF_TOKEN=hf_...",
        "kubectl get gftt",
        "kubectl rolout status deployment/gemmatune-operator -n gemmatune-system",
        "kubectl apply -f crdz/",
        "kubectl wait --for=conditoin=Finished gft/quotes --timeout=1s",
        "helm instal gemmatune charts/gemmatune -n gemmatune-system",
        "helm install other charts/gemmatun -n gemmatune-system",
        "helm install other charts/gemmatune -n gemmatune-system --set image.repositry=x",
        "gft plan no-such.yaml",
    )
    assert [line for line in wrong if reader.shell(line).returncode == 0] == []


def test_what_the_text_mentions_exists(reader: Reader) -> None:
    """Verbs and options: what is between backticks is often no whole command."""
    for mentioned in mentions():
        if mentioned.program in ("kubectl", "helm"):
            done = reader.shell(f"{mentioned.line} --help")
            assert done.returncode == 0, f"{mentioned}: {done.stderr}"
            assert re.search(rf"(?m)^ +{' '.join(mentioned.words[:2])}\b", done.stdout), mentioned
