"""tools/kube.py: where programs come from, which Go builds them, and that a failed build leaves nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools import kube

GO_MOD = "module example.test/program\n\ngo 1.21\n\nrequire example.test/library v1.2.3\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module folder in place of tests/controlplane, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setattr(kube, "MODULES", tmp_path / "modules")
    folder = tmp_path / "modules" / "program"
    folder.mkdir(parents=True)
    (folder / "go.mod").write_text(GO_MOD)
    return folder


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_another_pin_is_another_folder(module: Path) -> None:
    before = kube.bin_dir()
    (module / "go.mod").write_text(GO_MOD.replace("v1.2.3", "v1.2.4"))

    assert kube.bin_dir() != before
    assert before.is_relative_to(Path(os.environ["XDG_CACHE_HOME"]) / "gemmatune" / "kube")


def test_another_pin_of_what_stands_alone_builds_nothing_else_anew(module: Path) -> None:
    before, kubelet = kube.bin_dir(), kube.bin_dir("kubelet")
    (module.parent / "kubelet").mkdir()
    (module.parent / "kubelet" / "go.mod").write_text(GO_MOD)

    assert kube.bin_dir() == before == kube.bin_dir("program")
    assert kube.bin_dir("kubelet") not in (before, kubelet, kube.bin_dir("buildkit"))
    assert kube.find("kubelet") is None
    executable(kube.bin_dir("kubelet") / "kubelet", "")
    assert kube.find("kubelet") == kube.bin_dir("kubelet") / "kubelet"


def test_assets_come_first_for_what_they_have(module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = executable(kube.bin_dir() / "etcd", "")
    executable(kube.bin_dir() / "kubectl", "")
    asset = executable(tmp_path / "assets" / "kubectl", "")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(asset.parent))

    assert kube.find("kubectl") == asset
    assert kube.find("etcd") == built
    assert kube.find("kube-apiserver") is None


@pytest.mark.parametrize(
    ("version", "taken"), [("go1.20.14", False), ("go1.21", True), ("go1.21.0", True), ("go1.26.6", True)]
)
def test_go_on_path_is_taken_when_it_is_new_enough(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, taken: bool
) -> None:
    go = executable(tmp_path / "path" / "go", f"#!/bin/sh\necho go version {version} linux/amd64\n")
    monkeypatch.setenv("PATH", f"{go.parent}:{os.environ['PATH']}")

    assert kube._go_on_path() == (go if taken else None)


def test_a_build_appears_whole_or_not_at_all(module: Path, tmp_path: Path) -> None:
    program = kube.Program("program", "program", "example.test/library/cmd", ("main.version={version}",))
    folder = kube.bin_dir()
    folder.mkdir(parents=True)
    # In Go's place: writes half a program, and fails when it is told so.
    script = 'while [ "$1" != -o ]; do shift; done; echo half > "$2"; echo "cannot find $3" >&2; exit '
    broken = executable(tmp_path / "broken" / "go", f"#!/bin/sh\n{script} 3\n")
    working = executable(tmp_path / "working" / "go", f"#!/bin/sh\n{script} 0\n")

    with pytest.raises(kube.BuildError, match="ended with 3") as error:
        kube.build(program, broken, folder)
    assert "cannot find example.test/library/cmd" in str(error.value)
    assert list(folder.iterdir()) == []

    kube.build(program, working, folder)
    assert [path.name for path in folder.iterdir()] == ["program"]
    assert os.access(folder / "program", os.X_OK)


def test_versions_come_from_the_pins() -> None:
    flags = {program.name: kube._linker_flags(program) for program in kube.PROGRAMS}

    for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"):
        assert "version.gitVersion=v1.36.3 " in flags[name]
        assert "version.gitMajor=1 " in flags[name]
        assert flags[name].endswith("version.gitMinor=36")
    assert flags["helm"].endswith("internal/version.version=v4.3.1")


def test_an_unknown_group_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        kube.main(["kwok", "hlem"])

    assert "hlem: no such group; there are etcd, kubernetes, kwok, helm, kubelet, buildkit" in capsys.readouterr().err
