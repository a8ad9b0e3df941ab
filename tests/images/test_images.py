"""Each image is built from its Containerfile, stays within its size, and runs without root or a writable system.

CI builds the operator's and that of keras, the smallest of a trainer; GEMMATUNE_SOAK=1 builds all, of which torch and
xla take 7 and 8 GB.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.imagebox import ImageBox
from tools import images

ROOT = Path(__file__).resolve().parents[2]
SOAK = os.environ.get("GEMMATUNE_SOAK") == "1"
BUDGET_MB = {"operator": 400, "torch": 8000, "xla": 8500, "keras": 2500}
"""What an image may weigh unpacked: twice the operator would be noticed at the first pull, a second torch at any.

That of xla has the libraries of CUDA too: PyPI has no PyTorch without them.
"""
BACKENDS = {
    "torch": ("torch", {}),
    "xla": ("xla", {"PJRT_DEVICE": "CPU"}),
    "keras": ("keras_backend", {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}),
}
"""Module of each backend, and what has it start without the accelerator."""
TOOLS = ("pip", "pip3", "uv", "cc", "gcc", "g++", "make", "git", "curl")


@pytest.fixture(scope="module", params=["operator", "keras", *(["torch", "xla"] if SOAK else [])])
def box(request: pytest.FixtureRequest) -> Iterator[tuple[str, ImageBox]]:
    """An image that was built just now, and its name; a trainer's is kept where one was before."""
    if reason := images.why_not_buildkit():
        pytest.skip(reason)
    kept = images.archive_of(request.param).exists()
    with images.buildkit() as socket:
        try:
            archive = images.build(socket, request.param).archive
            assert archive is not None
            images.make_room(socket, archive.stat().st_size)
        except images.RoomError as error:
            if SOAK:
                raise
            pytest.skip(str(error))
    print(f"{images.image_name(request.param)}: {archive.stat().st_size / 1e6:.0f} MB")
    assert archive.stat().st_size < BUDGET_MB[request.param] * 1e6
    with ImageBox(archive) as found:
        yield request.param, found
    if not kept and request.param != "operator":  # tests of other processes load the operator's
        archive.unlink()


@pytest.mark.timeout(1800)
def test_an_image(box: tuple[str, ImageBox]) -> None:
    """Its own user, nothing to write to, nothing to build with, compiled, and started without a shell."""
    name, image = box
    config = image.image.config
    package = "gemmatune_operator" if name == "operator" else "gemmatune_trainer"
    assert config["Entrypoint"] == ["python", "-m", package], "a list: a shell would keep SIGTERM for itself"
    assert config["User"] == ("65532:65532" if name == "operator" else "1000:1000")
    found = image.run("sh", "-c", "id -u; " + "".join(f"command -v {tool}; " for tool in TOOLS) + "true")
    assert found.stdout.split() == [config["User"].split(":")[0]], found.stdout + found.stderr
    assert "No module named pip" in image.run("python3", "-m", "pip").stderr
    refused = image.run("python", "-c", "open('/opt/gemmatune/x', 'w')")
    assert "Read-only file system" in refused.stderr
    library = "import ctypes, sys; ctypes.CDLL('libpython%d.%d.so.1.0' % sys.version_info[:2])"
    assert image.run("python", "-c", library).returncode == 0, "torch_xla asks for it"
    cached = f"import {package} as p, pathlib; print(any(pathlib.Path(p.__file__).parent.rglob('*.pyc')))"
    assert image.run("python", "-c", cached).stdout == "True\n", "nothing can be compiled later"


@pytest.mark.timeout(1800)
def test_it_starts_and_gets_sigterm(box: tuple[str, ImageBox]) -> None:
    """As process 1, for which the kernel delivers no signal that it does not handle."""
    name, image = box
    if name == "operator":
        helped = image.run("python", "-m", "gemmatune_operator", "--help")
        assert "--leader-elect" in helped.stdout, helped.stderr
        lost = image.run()
        assert "Set KUBECONFIG, or run in a pod with a service account" in lost.stderr
    else:
        wrong = image.run("python", "-m", "gemmatune_trainer", "prepare", variables={"GEMMATUNE_RUN": "{}"})
        assert wrong.returncode == 10, wrong.stderr
        module, variables = BACKENDS[name]
        code = f"import gemmatune_trainer.backends.{module}; print('imported')"
        imported = image.run("python", "-c", code, variables=variables)
        assert imported.stdout.endswith("imported\n"), imported.stderr
        found = image.run("python", "-c", "from importlib.util import find_spec as f; print(f('tensorflow'))")
        assert found.stdout == "None\n", "KerasHub asks for it: 3 GB that no backend uses"
    wait = "import signal, sys; signal.signal(15, lambda *_: sys.exit(30)); print('up', flush=True); signal.pause()"
    code, _ = image.stop_after("up", "python", "-c", wait)
    assert code == 30


def test_the_containerfiles_agree_with_the_tree() -> None:
    """The same uv as everywhere, an extra that exists, and a base that may be another."""
    version = re.search(r"(?m)^VERSION=(\S+)$", (ROOT / "tools/uv.sh").read_text())
    assert version is not None
    for name, path in images.CONTAINERFILES.items():
        text = (ROOT / path).read_text()
        assert f"ARG UV_VERSION={version[1]}\n" in text, path
        assert f"--frozen --no-default-groups --no-install-project --extra {name} " in text, path
        assert ("--extra tpu " in text) == (name == "xla"), "the driver of TPUs"
        assert ("--extra tpu-jax " in text) == (name == "keras"), "the driver of TPUs"
        assert "ARG BASE_IMAGE=" in text, path
        assert "FROM ${BASE_IMAGE}\n" in text, path
