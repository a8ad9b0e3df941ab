"""Each image is built from its Containerfile, stays within its size, and runs without root or a writable system.

CI builds the operator's and that of keras, the smallest of a trainer; GEMMATUNE_SOAK=1 builds all, of which torch and
xla take 7 and 8 GB.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemmatune_api.messages import TerminationMessage, from_text
from gemmatune_api.names import ENV_CACHE, ENV_RUN, ENV_TERMINATION_LOG, ExitCode
from tests.support.builds import built
from tests.support.imagebox import ImageBox
from tests.support.soak import SOAK
from tests.support.tinymodels import write_model
from tests.trainer.conftest import run_config, write_quotes
from tools import images

ROOT = Path(__file__).resolve().parents[2]
BUDGET_MB = {"operator": 400, "torch": 8000, "xla": 8500, "keras": 2500}
"""What an image may weigh unpacked: twice the operator would be noticed at the first pull, a second torch at any.

That of xla has the libraries of CUDA too: PyPI has no PyTorch without them.
"""
ON_CPU = {
    "torch": {},
    "xla": {"PJRT_DEVICE": "CPU"},
    "keras": {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
}
"""What has each backend start without its accelerator, and soon."""
LONG = {
    "max_steps": 100_000,
    "every_steps": 100_000,
    "prompts": [],
    "target_modules": ["q_proj", "v_proj"],
}
"""A run without an end, whose only checkpoint is that of a SIGTERM."""
KUBECONFIG = {
    "current-context": "none",
    "clusters": [{"name": "none", "cluster": {"server": "https://127.0.0.1:1"}}],
    "users": [{"name": "none", "user": {"token": "none"}}],
    "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
}
"""Of a cluster that never answers."""
TOOLS = ("pip", "pip3", "uv", "cc", "gcc", "g++", "make", "git", "curl")


@pytest.fixture(scope="module", params=["operator", "keras", *(["torch", "xla"] if SOAK else [])])
def box(request: pytest.FixtureRequest) -> Iterator[tuple[str, ImageBox]]:
    """An image that was built just now, and its name."""
    with contextlib.ExitStack() as stack:
        with built(request.param) as archive:
            size = archive.stat().st_size / 1e6
            print(f"{images.image_name(request.param)}: {size:.0f} MB")
            assert size < BUDGET_MB[request.param]
            found = stack.enter_context(ImageBox(archive))
        yield request.param, found


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
def test_it_starts_and_says_what_is_missing(box: tuple[str, ImageBox]) -> None:
    """The operator without a cluster, a trainer without a run."""
    name, image = box
    if name == "operator":
        helped = image.run("python", "-m", "gemmatune_operator", "--help")
        assert "--leader-elect" in helped.stdout, helped.stderr
        lost = image.run()
        assert "Set KUBECONFIG, or run in a pod with a service account" in lost.stderr
    else:
        wrong = image.run("python", "-m", "gemmatune_trainer", "prepare", variables={ENV_RUN: "{}"})
        assert wrong.returncode == ExitCode.INVALID_CONFIG, wrong.stderr
        found = image.run("python", "-c", "from importlib.util import find_spec as f; print(f('tensorflow'))")
        assert found.stdout == "None\n", "KerasHub asks for it: 3 GB that no backend uses"


@pytest.mark.timeout(1800)
def test_what_an_image_starts_ends_at_sigterm(box: tuple[str, ImageBox], tmp_path: Path) -> None:
    """As process 1, for which the kernel delivers no signal that it does not handle; a trainer amidst its steps."""
    name, image = box
    tmp_path.chmod(0o777)  # the image's own user writes there
    if name == "operator":
        (tmp_path / "kubeconfig").write_text(json.dumps(KUBECONFIG))
        code, log = image.stop_after("not listed", variables={"KUBECONFIG": "/data/kubeconfig"}, data=tmp_path)
        assert code == 0, log
        assert '"event": "stopped"' in log
        return
    for path in write_model(tmp_path / "model", "3").iterdir():
        path.chmod(0o644)
    write_quotes(tmp_path / "quotes.jsonl")
    config = run_config(Path("/data/model"), Path("/data/quotes.jsonl"), "file:///data/out", **LONG)
    run = config.model_copy(update={"backend": name})
    places = {ENV_CACHE: "/data/cache", ENV_TERMINATION_LOG: "/data/termination"}
    variables = {**ON_CPU[name], ENV_RUN: run.to_env(), **places}
    process = image.image.config["Entrypoint"]
    prepared = image.run(*process, "prepare", variables=variables, data=tmp_path)
    assert prepared.returncode == ExitCode.DONE, prepared.stderr
    code, log = image.stop_after('"event": "step"', *process, "train", variables=variables, data=tmp_path)
    assert code == ExitCode.INTERRUPTED, log
    message = from_text((tmp_path / "termination").read_text(), TerminationMessage)
    assert message is not None
    assert message.step
    assert [path.name for path in (tmp_path / "out/checkpoints").iterdir()] == [f"step-{message.step:08d}"]


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
