"""The environments of the backends: which Python gft starts, and what it says where one is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gemmatune_api.environments import FOLDERS, LIBRARIES, how_to_install
from gemmatune_api.spec import Backend, GemmaFineTune
from gemmatune_cli.console import CommandError
from gemmatune_cli.local.environments import backend_of_pod, python_of
from gemmatune_cli.run import check_machine
from tests.support.resources import resource


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds the environment of this Python, as far as it can tell."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    return tmp_path


def install(folder: Path, backend: Backend) -> Path:
    """An environment as uv leaves it, with a backend's library."""
    library = folder / FOLDERS[backend] / "lib" / "python3.11" / "site-packages" / LIBRARIES[backend]
    library.mkdir(parents=True)
    python = folder / FOLDERS[backend] / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    return python


def wanting(**fields: object) -> GemmaFineTune:
    """A resource with these fields of spec."""
    changes = {f"spec.{name}": value for name, value in fields.items()}
    return GemmaFineTune.model_validate(resource(changes=changes))


@pytest.mark.parametrize("backend", ["xla", "keras"])
def test_the_environment_beside_this_one_is_found(beside: Path, backend: Backend) -> None:
    assert python_of("torch") == Path(sys.executable)
    assert python_of(backend) is None
    python = install(beside, backend)
    assert python_of(backend) == python
    python.unlink()  # its interpreter is gone
    assert python_of(backend) is None


def test_a_pod_says_which_backend_it_runs() -> None:
    assert backend_of_pod({"GEMMATUNE_RUN": '{"backend": "keras"}'}) == "keras"
    assert backend_of_pod({}) is None


@pytest.mark.parametrize("backend", ["xla", "keras"])
def test_a_backend_that_is_not_installed_is_named_with_what_installs_it(beside: Path, backend: Backend) -> None:
    on_cpu = wanting(accelerator={"cpu": {"devices": 4}}, backend=backend)
    with pytest.raises(CommandError) as caught:
        check_machine(on_cpu)
    assert str(caught.value) == f"this run trains with backend {backend}, which is not installed"
    assert caught.value.remedy == how_to_install(backend)
    assert f"make setup-{backend}" in how_to_install(backend)
    install(beside, backend)
    check_machine(on_cpu)


def test_a_tpu_that_is_not_here(beside: Path) -> None:
    install(beside, "xla")
    on_tpu = wanting(accelerator={"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x2"}})
    with pytest.raises(CommandError, match=r"spec\.accelerator\.tpu: this machine has no TPU") as caught:
        check_machine(on_tpu)
    assert "accelerator: {cpu: {devices: 4}}" in caught.value.remedy
