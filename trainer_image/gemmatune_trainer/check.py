"""The check of a pod's access, for `gft doctor`: bucket, model and data, each on its own; nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable

from gemmatune_api.messages import TerminationMessage
from gemmatune_api.runconfig import RunConfig, RunDataset
from gemmatune_trainer.access import grant_command, in_pod, probe
from gemmatune_trainer.data.sources import evaluation_source, open_rows
from gemmatune_trainer.errors import AccessDenied, TrainerError, explain
from gemmatune_trainer.logs import log
from gemmatune_trainer.models import cache_folder, fetch
from gemmatune_trainer.stop import StopFlag
from gemmatune_trainer.storage import open_storage


def check(config: RunConfig, stop: StopFlag) -> TerminationMessage:
    """Writes, reads and deletes an object of the output, reads the model's small files, and the first row of the data
    and of that for evaluation, which may lie elsewhere.

    Returns:
        One line for each in the message.

    Raises:
        TrainerError: one of them fails; the message holds a line for each all the same.
    """
    lines, failures = list[str](), list[TrainerError]()
    held_out = (_held_out,) if config.dataset.eval_uri is not None else ()
    for work in (_output, _model, _data, *held_out):
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
    return _granted(config, config.dataset.uri, lambda: _first_row(config.dataset), "can be read")


def _held_out(config: RunConfig) -> str:
    """As the preparation reads it: of a repository, the split that it would take."""

    def read() -> None:
        source = evaluation_source(config.dataset, cache_folder(""))
        if source is not None:
            _first_row(source, config.dataset.uri)

    return _granted(config, config.dataset.eval_uri or "", read, "can be read for evaluation")


def _first_row(dataset: RunDataset, secret_of: str | None = None) -> None:
    first = dataset.model_copy(update={"limit": 1})  # with a limit, files are read only as far as needed
    next(iter(open_rows(first, cache_folder(""), secret_of)), None)


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
