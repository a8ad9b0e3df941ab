"""The training loops behind one protocol: a module each, in an environment of its own, imported when asked for."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from gemmatune_api.environments import LIBRARIES, how_to_install
from gemmatune_api.spec import Backend as Name
from gemmatune_trainer.errors import InvalidConfig

if TYPE_CHECKING:
    from gemmatune_api.runconfig import RunConfig
    from gemmatune_trainer.backends.base import Backend
    from gemmatune_trainer.models import ModelFiles
    from gemmatune_trainer.ranks import Ranks
    from gemmatune_trainer.stop import StopFlag


def check(wanted: Name) -> None:
    """Refuses a backend whose libraries are not here, before anything is fetched or written.

    Raises:
        InvalidConfig: the run asks for such a one.
    """
    here = [name for name in LIBRARIES if _installed(name)]
    if wanted not in here:
        found = f"those of {' and '.join(here)} are" if here else "no other's are either"
        raise InvalidConfig(
            f"the run asks for backend {wanted}, whose libraries are not installed here ({found})",
            f"In a cluster: name an image of backend {wanted} in pod.image, or leave pod.image out. "
            + how_to_install(wanted),
        )


def _installed(backend: Name) -> bool:
    return importlib.util.find_spec(LIBRARIES[backend]) is not None


def make(config: RunConfig, files: ModelFiles | None, stop: StopFlag, ranks: Ranks) -> Backend:
    """The backend of a run. Its module, which bears its name, and all libraries are imported only here.

    A process that follows rank 0 names the model's files later (`use`).
    """
    module = importlib.import_module(f"{__name__}.{config.backend}")
    made: Backend = module.make(config, files, stop, ranks)
    return made
