"""Which cluster gft speaks to: never another than was named, also in a pod that has one of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.config import incluster_config, kube_config

from gemmatune_cli.console import CommandError
from gemmatune_cli.remote import Connection, connect
from tests.support.oddgft import gft, run


@pytest.fixture
def in_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The surroundings of a pod with a token; the folder that is mounted there."""
    folder = tmp_path / "serviceaccount"
    folder.mkdir()
    for name, content in (("token", "planted"), ("ca.crt", "planted"), ("namespace", "runners\n")):
        (folder / name).write_text(content)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(folder / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(folder / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    return folder


def kubeconfig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, current: str | None = "staging", namespace: str | None = "team"
) -> Path:
    """A kubeconfig with the contexts staging and prod, which is the one that counts."""
    own = {"namespace": namespace} if namespace else {}
    content: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "contexts": [{"name": name, "context": {"cluster": name, "user": "u", **own}} for name in ("staging", "prod")],
        "clusters": [{"name": name, "cluster": {"server": f"https://{name}:6443"}} for name in ("staging", "prod")],
        "users": [{"name": "u", "user": {"token": "planted"}}],
    }
    if current is not None:
        content["current-context"] = current
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    return path


def where(found: Connection) -> tuple[str, str]:
    return found.client.configuration.host, found.namespace


@pytest.mark.usefixtures("in_pod")
def test_a_context_that_does_not_exist_leads_to_no_other_cluster(serve: Any) -> None:
    with serve(lambda method, path: (200, run("Training"))) as api:
        done = gft("suspend", "quotes", "--context", "prdo")
        assert api.asked == []
    assert done.exit_code == 1
    assert "has no context prdo" in done.stderr.splitlines()[0]
    assert done.stderr.splitlines()[1] == "Name one with --context: odd."


@pytest.mark.usefixtures("in_pod")
def test_a_context_without_a_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "none"
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(missing))
    with pytest.raises(CommandError) as caught:
        connect("prdo")
    assert caught.value.message == f"no cluster: no context prdo, since there is no kubeconfig {missing}"


@pytest.mark.usefixtures("in_pod")
@pytest.mark.parametrize(
    ("current", "problem"), [("prdo", "has no context prdo"), (None, "names no current context")], ids=str
)
def test_a_current_context_that_leads_nowhere(
    current: str | None, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig(tmp_path, monkeypatch, current=current)
    with pytest.raises(CommandError) as caught:
        connect("")
    assert problem in caught.value.message
    assert caught.value.remedy == "Name one with --context: staging, prod."
    assert where(connect("prod")) == ("https://prod:6443", "team"), "the one that is named counts"


@pytest.mark.usefixtures("in_pod")
@pytest.mark.parametrize("files", ["", "/dev/null", "/nonexistent/config:/nonexistent/other"])
def test_a_pod_speaks_to_its_own_cluster_and_namespace(
    files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", files)
    assert where(connect("")) == ("https://10.0.0.1:443", "runners")


def test_the_namespace_where_none_is_named(in_pod: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubeconfig(tmp_path, monkeypatch, namespace=None)
    assert where(connect("")) == ("https://staging:6443", "runners"), "as kubectl has it"
    (in_pod / "token").unlink()
    assert connect("").namespace == "default", "this is no pod"
    kubeconfig(tmp_path, monkeypatch)
    assert connect("prod").namespace == "team"
