"""Backend keras is installed here, and no other is: what the trainer and gft find."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from gemmatune_cli.local.environments import python_of
from gemmatune_trainer import backends
from gemmatune_trainer.errors import InvalidConfig


def test_this_environment_has_this_backend_alone() -> None:
    backends.check("keras")
    assert python_of("keras") == Path(sys.executable)
    with pytest.raises(InvalidConfig, match=r"backend torch, whose .* \(those of keras are"):
        backends.check("torch")


def test_there_is_no_tensorflow() -> None:
    """KerasHub asks for it, 3 GB that nothing here uses."""
    assert [name for name in ("tensorflow", "tensorflow_text") if importlib.util.find_spec(name)] == []
