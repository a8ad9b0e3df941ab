"""The check of a pod's access, for `gft doctor`: bucket, model and data, each on its own; nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable

from gemmatune_api.messages import TerminationMessage
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.access import grant_command, in_pod, probe
from gemmatune_trainer.data.sources import open_rows
from gemmatune_trainer.errors import AccessDenied, TrainerError, explain
from gemmatune_trainer.logs import log
from gemmatune_trainer.models import cache_folder, fetch
from gemmatune_trainer.stop import StopFlag
from gemmatune_trainer.storage import open_storage


def check(config: RunConfig, stop: StopFlag) -> TerminationMessage:
    """Writes, reads and deletes an object of the output, reads the model's small files and the first row of the data.

    Returns:
        One line for each in the message.

    Raises:
        TrainerError: one of them fails; the message holds a line for each all the same.
    """
    lines, failures = list[str](), list[TrainerError]()
    for work in (_output, _model, _data):
        stop.check("access was checked")
        try:
            lines.append(work(config))
        except Exception as error:
            known = explain(error)
            if known is None:
                raise
            lines.append(f"{known.reason}: {known.message}")
            failures.append(known)
        log.info("checked", found=lines[-1])
    if failures:
        raise type(failures[0])("\n".join(lines), "\n".join(dict.fromkeys(failure.remedy for failure in failures)))
    return TerminationMessage(message="\n".join(lines))


def _output(config: RunConfig) -> str:
    return _granted(config, config.output.uri, lambda: probe(open_storage(config.output.uri)), "can be written")


def _model(config: RunConfig) -> str:
    return _granted(config, config.model.uri, lambda: fetch(config.model, weights=False), "can be read")


def _data(config: RunConfig) -> str:
    first = config.dataset.model_copy(update={"limit": 1})  # with a limit, files are read only as far as needed
    return _granted(
        config, config.dataset.uri, lambda: next(iter(open_rows(first, cache_folder(""))), None), "can be read"
    )


def _granted(config: RunConfig, uri: str, work: Callable[[], object], works: str) -> str:
    """Does the work; a bucket's refusal gets the command that grants access."""
    try:
        work()
    except Exception as error:
        known = explain(error)
        if not (isinstance(known, AccessDenied) and uri.startswith("gs://") and in_pod()):
            raise
        raise AccessDenied(known.message, grant_command(uri, config.run.namespace)) from error
    return f"{uri} {works}"
