"""Backend xla is installed here, and no other is: what the trainer and gft find."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gemmatune_cli.local.environments import python_of
from gemmatune_trainer import backends
from gemmatune_trainer.errors import InvalidConfig


def test_this_environment_has_this_backend_alone() -> None:
    backends.check("xla")
    assert python_of("xla") == Path(sys.executable)
    with pytest.raises(InvalidConfig, match=r"backend torch, whose .* \(those of xla are"):
        backends.check("torch")
