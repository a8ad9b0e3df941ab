"""The fixtures of all tests; tests/conftest.py loads this module as a plugin."""

from __future__ import annotations

import functools
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import chart
from tests.support.controlplane import ControlPlane, missing_programs
from tests.support.fakegcs import FakeGcs
from tests.support.wait import wait_for

if TYPE_CHECKING:
    from tests.support.nodeagent import NodeAgent

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=[False, True], ids=["live", "watching"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plays a run twice: with all read live, and with looks that go by a cache."""
    monkeypatch.setattr("tests.support.play.Play.watching", request.param)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A real control plane for the whole test run; without its programs the test is skipped, in CI it fails."""
    _skip_without(missing_programs())
    with ControlPlane() as running:
        yield running


@pytest.fixture(scope="session")
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Helm: `helm("lint", path)`."""
    _skip_without([name for name in missing_programs() if name == "helm"])
    return chart.helm


def _skip_without(missing: Sequence[str]) -> None:
    if missing:
        reason = f"not built: {', '.join(missing)}; run `make kube`"
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def kubectl(control_plane: ControlPlane) -> Callable[..., object]:
    """Runs kubectl as the administrator: `kubectl("get", "pods", "-n", namespace)`."""
    return control_plane.kubectl


@pytest.fixture(scope="session")
def crd(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with the CustomResourceDefinitions, the operator's rights and the admission policy."""
    files = sorted((ROOT / "crds").glob("*.yaml"))
    if not files:
        pytest.fail("crds/ holds no YAML file: run `make generate`")
    for file in files:
        control_plane.kubectl("apply", "--server-side", "-f", str(file))
    # `kubectl wait` fails on a definition that has no conditions yet.
    wait_for(lambda: _established(control_plane), "the CustomResourceDefinitions to be served")
    chart.install_access(control_plane)
    return control_plane


@pytest.fixture(autouse=True)
def _nothing_is_forbidden(request: pytest.FixtureRequest) -> Iterator[None]:
    """Since the last look, also while fixtures were set up, no operator was refused something for want of rights."""
    yield
    if "crd" in request.fixturenames:
        control_plane: ControlPlane = request.getfixturevalue("crd")
        refused = [found for found in control_plane.newly_audited() if found.lacked_rights]
        assert not refused, f"charts/gemmatune/templates/_rules.tpl does not grant: {refused}"


def _established(control_plane: ControlPlane) -> bool:
    found = control_plane.api.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]
    conditions = [item.get("status", {}).get("conditions") or [] for item in found]
    return all({"Established": "True"}.items() <= {c["type"]: c["status"] for c in each}.items() for each in conditions)


@pytest.fixture(scope="session")
def make_namespace(control_plane: ControlPlane) -> Callable[..., str]:
    """Makes namespaces: `make_namespace(pod_security="restricted")` answers with the name of a new one."""

    def make(pod_security: str | None = None) -> str:
        api = control_plane.api
        name = f"test-{secrets.token_hex(4)}"
        labels = {"pod-security.kubernetes.io/enforce": pod_security} if pod_security else {}
        api.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        # Pods are refused until the controller manager has made the service account and the CA bundle.
        for path in ("serviceaccounts/default", "configmaps/kube-root-ca.crt"):
            find = functools.partial(api.find, f"/api/v1/namespaces/{name}/{path}")
            wait_for(find, f"{path} in namespace {name}")
        return name

    return make


@pytest.fixture
def namespace(
    control_plane: ControlPlane, make_namespace: Callable[..., str], request: pytest.FixtureRequest
) -> Iterator[str]:
    """A fresh namespace, deleted afterwards.

    A Pod Security level comes by `@pytest.mark.parametrize("namespace", ["restricted"], indirect=True)`.
    """
    name = make_namespace(getattr(request, "param", None))
    yield name
    control_plane.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
def node(control_plane: ControlPlane, tmp_path: Path) -> Iterator[NodeAgent]:
    """A CPU node that runs pods as processes; tests that need another kind start their own NodeAgent."""
    from tests.support.nodeagent import NodeAgent

    with NodeAgent(control_plane, tmp_path / "node") as agent:
        yield agent


@pytest.fixture(scope="session")
def fake_gcs() -> Iterator[FakeGcs]:
    """Cloud Storage on loopback for the whole test run."""
    with FakeGcs() as server:
        yield server


@pytest.fixture
def bucket(fake_gcs: FakeGcs) -> str:
    """A fresh bucket of `fake_gcs`."""
    return fake_gcs.new_bucket()


@pytest.fixture(scope="session")
def gemma_270m() -> Path:
    """Folder of the real Gemma 3 270M, converted once into the user's cache directory."""
    from gemmatune_cli.local.model import gemma_3_270m

    return gemma_3_270m()


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Serves an API server as `oddapi` has it, to which gft in this process goes: `with serve(answer) as api`."""
    from kubernetes.config import kube_config

    from tests.support.oddapi import Answer, OddApi

    @contextmanager
    def served(answer: Callable[[str, str], Answer]) -> Iterator[OddApi]:
        with OddApi(answer) as api:
            # The client has read KUBECONFIG when it was imported.
            monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(api.kubeconfig(tmp_path)))
            yield api

    return served
