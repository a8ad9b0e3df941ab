"""The process's last words: the termination message that the operator reads."""

from __future__ import annotations

import os
from pathlib import Path

from gemmatune_api.messages import TerminationMessage, to_text
from gemmatune_api.names import DEFAULT_TERMINATION_LOG, ENV_TERMINATION_LOG
from gemmatune_trainer.logs import log


def leave(message: TerminationMessage) -> None:
    """Writes the termination message; a process outside a pod without its path goes without."""
    path = Path(os.environ.get(ENV_TERMINATION_LOG) or DEFAULT_TERMINATION_LOG)
    if ENV_TERMINATION_LOG not in os.environ and not path.exists():
        return
    try:
        path.write_text(to_text(message), encoding="utf-8")
    except OSError as error:
        log.error("the termination message cannot be written", path=str(path), error=str(error))
