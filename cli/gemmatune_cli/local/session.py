"""A run of this machine on disk: its folder, its lock, and how a second `gft run` goes on with it.

The folder holds `store.json` (the resource, its Jobs and Events), `status.json` (the trainer's fields), `jobs/NAME/`
(log and termination message of each process), `operator.log`, `cache/` (scratch space, removed after success) and
`lock`. It lies in the output folder, so that deleting the output starts anew; where the output is a bucket, in the
user's state folder.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gemmatune_api import names
from gemmatune_api.changes import forbidden
from gemmatune_api.names import ANNOTATION_RETRY, ENV_STATUS_FILE, Phase
from gemmatune_api.spec import GemmaFineTune
from gemmatune_cli.console import CommandError
from gemmatune_cli.local.cluster import register_node
from gemmatune_cli.local.folders import state_dir
from gemmatune_cli.local.kubelet import status_file
from gemmatune_cli.local.locks import LockedError, locked
from gemmatune_cli.local.runner import ProcessRunner, find
from gemmatune_cli.local.store import Store, StoreError
from gemmatune_operator.ports import Object

FOLDER = ".gemmatune"
ORPHAN_SECONDS = 60.0
"""Time that an orphan gets between SIGTERM and SIGKILL."""
POLL_SECONDS = 0.05
_KEPT_BY_RESET = ("lock",)


@dataclass(frozen=True, slots=True)
class Session:
    """An opened run."""

    store: Store
    folder: Path
    namespace: str
    name: str
    resumes: bool
    """Whether an earlier `gft run` had begun it."""


def run_folder(output_uri: str) -> Path:
    """The folder of the run that writes to this output."""
    parts = urlsplit(output_uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path)) / FOLDER
    uri = output_uri.rstrip("/")
    digest = hashlib.sha256(uri.encode()).hexdigest()[:12]
    return state_dir() / "runs" / f"{uri.rpartition('/')[2]}-{digest}"


@contextmanager
def open_session(resource: GemmaFineTune, say: Callable[[str], None] = lambda text: None) -> Iterator[Session]:
    """Opens the run of a resource: begins it, or goes on with what an earlier `gft run` left.

    Args:
        say: gets a line before something slow begins.

    Raises:
        CommandError: another gft works on it, the output belongs to another resource or cannot be written, or a field
            was changed that is fixed by now.
    """
    folder = run_folder(resource.spec.output.uri)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / "lock", wait=False))
        except LockedError as error:
            message = f"another gft ({error.holder}) runs {resource.metadata.name} in {folder.parent}"
            raise CommandError(message, "Wait for it, stop it, or use another spec.output.uri.") from None
        except OSError as error:
            message = f"spec.output.uri: {error.filename} cannot be written: {error.strerror}"
            raise CommandError(message, "Use a folder of your own.") from None
        yield _open(resource, folder, say)


def _open(resource: GemmaFineTune, folder: Path, say: Callable[[str], None]) -> Session:
    store = _load(folder)
    new = _document(resource)
    found = store.list(names.KIND)
    old = found[0] if found else None
    if old is not None and _identity(old) != _identity(new):
        if not resource.spec.output.overwrite:
            raise CommandError(
                f"spec.output.uri: {resource.spec.output.uri} holds the run {'/'.join(_identity(old))}",
                "Use another output.uri, or set output.overwrite: true to replace that run.",
            )
        old = None
    if old is None:
        _stop_orphan(folder, say)
        _reset(folder)  # of the run that is replaced, or of what the orphan wrote since its folder was deleted
        store = _load(folder)
        store.create(new)
    else:
        _go_on(store, old, new)
    register_node(store, folder)
    store.save()
    return Session(store, folder, *_identity(new), resumes=old is not None)


def _load(folder: Path) -> Store:
    try:
        return Store(folder / "store.json")
    except StoreError as error:
        raise CommandError(str(error)) from error


def _go_on(store: Store, old: Object, new: Object) -> None:
    """Gives a begun run the spec of the file; a failed one is tried again.

    Raises:
        CommandError: a field differs that is fixed once an attempt exists.
    """
    problems = forbidden(old["spec"], new["spec"], old.get("status") or {})
    if problems:
        raise CommandError(
            "\n".join(f"{problem.path}: {problem.message}" for problem in problems),
            "Put the old value back, or make a new run with another metadata.name and another output.uri.",
        )
    retry = (old.get("status") or {}).get("phase") == Phase.FAILED
    annotations = {ANNOTATION_RETRY: datetime.now(UTC).isoformat()} if retry else {}
    store.write_spec(names.KIND, *_identity(old), new["spec"], annotations)


def _document(resource: GemmaFineTune) -> Object:
    document: Object = resource.model_dump(by_alias=True, exclude_none=True, exclude={"metadata", "status"})
    document["spec"].pop("ttlAfterFinished", None)  # what is kept of a run here goes with its folder
    meta = resource.metadata
    document["metadata"] = {
        "name": meta.name,
        "namespace": meta.namespace,
        "labels": dict(meta.labels),
        "annotations": dict(meta.annotations),
    }
    return document


def _identity(document: Object) -> tuple[str, str]:
    meta = document["metadata"]
    return str(meta["namespace"]), str(meta["name"])


def _stop_orphan(folder: Path, say: Callable[[str], None]) -> None:
    """Ends a trainer that a forgotten run left in this output: there are never two.

    It is of a run whose gft was killed, and whose folder was deleted or replaced since then.
    """
    found = find(ENV_STATUS_FILE, str(status_file(folder)))
    if found is None:
        return
    say(f"A trainer of an earlier run still works in {folder.parent} (process {found.pid}): it is stopped")
    orphan = ProcessRunner().adopt(found, folder / "none")
    orphan.terminate()
    end = time.monotonic() + ORPHAN_SECONDS
    while orphan.poll() is None:
        if time.monotonic() >= end:
            orphan.kill()
        time.sleep(POLL_SECONDS)


def _reset(folder: Path) -> None:
    """Forgets a run; its lock stays, since it is held."""
    for path in folder.iterdir():
        if path.name in _KEPT_BY_RESET:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
