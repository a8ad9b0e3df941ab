"""Who may write below an output prefix: the record run.json, and the fence between attempts or merges of one run.

Whether the owner that run.json names is gone is decided like this, in this order:

- a live process of another owner holds the lock of a file:// prefix: not gone;
- in a pod the API server is asked for the owner's resource: it is gone when it does not exist, has another uid, or is
  finished; where the API server gives no answer it counts as there;
- on a file:// prefix without an API server it is gone, since nobody holds the lock;
- otherwise nobody can tell: it counts as gone only with `output.overwrite: true`.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass

import requests
from pydantic import Field

from gemmatune_api.names import ConditionType
from gemmatune_api.resume import resume_hash
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.apiserver import ApiServer
from gemmatune_trainer.errors import Interrupted, InvalidConfig, OutputInUse, StorageUnavailable
from gemmatune_trainer.logs import log
from gemmatune_trainer.storage import ObjectMissing, PreconditionFailed, Storage
from gemmatune_trainer.storage_file import FileStorage
from gemmatune_trainer.stored import Shape, Unreadable

RUN_RECORD = "run.json"
ATTEMPTS = "attempts/"
FINAL_MANIFEST = "manifest.json"
WRITTEN_BY_RUNS = (FINAL_MANIFEST, "checkpoints/", "adapter/", "model/", "merged/", "report/", "samples/", ATTEMPTS)
_LOCK = "owner"
_MERGE = "merge-"
_TRIES = 5


class _Record(Shape):
    uid: str
    namespace: str
    name: str
    resume_hash: str = Field(alias="resumeHash")
    data_hash: str = Field(alias="dataHash")
    model_revision: str = Field(alias="modelRevision")


class _Attempt(Shape):
    uid: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The content of run.json: whose prefix it is, and what the run there computes."""

    uid: str
    namespace: str
    name: str
    resume_hash: str
    data_hash: str
    model_revision: str

    @property
    def owner(self) -> str:
        """namespace/name."""
        return f"{self.namespace}/{self.name}"

    def to_bytes(self) -> bytes:
        """The record as JSON."""
        record = {
            "uid": self.uid,
            "namespace": self.namespace,
            "name": self.name,
            "resumeHash": self.resume_hash,
            "dataHash": self.data_hash,
            "modelRevision": self.model_revision,
        }
        return json.dumps(record, indent=2).encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Claim:
        """Reads a record. Raises OutputInUse where something else lies under its name."""
        try:
            record = _Record.of(data)
        except Unreadable as error:
            raise OutputInUse(f"{where} is no record of a run", "Use another output.uri.") from error
        return cls(**record.model_dump())


def claim(
    storage: Storage,
    config: RunConfig,
    model_revision: str,
    data_hash: str,
    owner_gone: Callable[[Storage, Claim], bool | None] | None = None,
) -> Claim:
    """Takes the output prefix for this run, or finds that it is this run's already.

    Called by prepare once the data is read and hashed. Same hash: the run goes on, and takes the prefix over once its
    old owner is gone. Other hash, same uid, no attempt of this uid yet: the record is replaced. Else only
    `output.overwrite` helps, before the first attempt of this uid and once the old owner is gone; what runs left under
    the prefix is then deleted.

    Raises:
        OutputInUse: another run owns the prefix.
    """
    identity = config.run
    mine = Claim(
        uid=identity.uid,
        namespace=identity.namespace,
        name=identity.name,
        resume_hash=resume_hash(config, model_revision, data_hash),
        data_hash=data_hash,
        model_revision=model_revision,
    )
    for _ in range(_TRIES):
        try:
            _take(storage, config, mine, owner_gone or is_gone)
        except PreconditionFailed:
            continue  # somebody else wrote in between: look again
        return mine
    raise StorageUnavailable(f"{storage.locate(RUN_RECORD)} changes all the time: another run competes for it")


def _take(
    storage: Storage, config: RunConfig, mine: Claim, owner_gone: Callable[[Storage, Claim], bool | None]
) -> None:
    where = storage.locate(RUN_RECORD)
    try:
        data, generation = storage.read_generation(RUN_RECORD)
    except ObjectMissing:
        storage.write(RUN_RECORD, mine.to_bytes(), if_generation_match=0)
        return
    found = Claim.from_bytes(data, where)
    started = bool(_attempts(storage, mine.uid))
    if found.uid == mine.uid and found.resume_hash == mine.resume_hash:
        if config.output.overwrite and not started:
            _delete_others(storage, mine)  # goes on where an interrupted overwrite stopped
        if found != mine:
            storage.write(RUN_RECORD, mine.to_bytes(), if_generation_match=generation)
        return
    if found.uid == mine.uid:
        if started:
            raise OutputInUse(
                f"{where} belongs to this resource with other settings (hash {found.resume_hash}, now "
                f"{mine.resume_hash}), and attempts have been made with them",
                "Create a new resource with another output.uri.",
            )
        storage.write(RUN_RECORD, mine.to_bytes(), if_generation_match=generation)
        return
    gone = owner_gone(storage, found)
    if gone is False or (gone is None and not config.output.overwrite):
        raise OutputInUse(
            f"{where} belongs to {found.owner} (uid {found.uid}), which is still there",
            "Delete that resource first, or use another output.uri.",
        )
    if found.resume_hash != mine.resume_hash and not config.output.overwrite:
        raise OutputInUse(
            f"{where} belongs to {found.owner} (uid {found.uid}), whose settings or data differ (hash "
            f"{found.resume_hash}, here {mine.resume_hash})",
            "Use another output.uri, or set output.overwrite: true.",
        )
    storage.write(RUN_RECORD, mine.to_bytes(), if_generation_match=generation)
    log.info("output taken over", output=storage.uri, from_owner=found.owner, from_uid=found.uid)
    if config.output.overwrite:
        _delete_others(storage, mine)
    else:
        storage.delete([name for name, uid in _attempt_records(storage) if uid != mine.uid])


def _delete_others(storage: Storage, mine: Claim) -> None:
    """Deletes what other runs left; the manifest that consumers trust first."""
    kept = f"prepared/{mine.data_hash}/"
    for prefix in (*WRITTEN_BY_RUNS, "prepared/"):
        storage.delete([item.name for item in storage.list(prefix) if not item.name.startswith(kept)])


def read_claim(storage: Storage, config: RunConfig) -> Claim:
    """The record that prepare made for this run, checked against what the trainer is told.

    Raises:
        InvalidConfig: prepare has not run, or the settings differ from those it saw.
        OutputInUse: the prefix belongs to another run by now.
    """
    where = storage.locate(RUN_RECORD)
    try:
        found = Claim.from_bytes(storage.read(RUN_RECORD), where)
    except ObjectMissing as error:
        raise InvalidConfig(
            f"{where} does not exist: the run has not been prepared", "Run the trainer's `prepare` first."
        ) from error
    if found.uid != config.run.uid:
        raise OutputInUse(f"{where} belongs to {found.owner} (uid {found.uid}) by now")
    expected = resume_hash(config, found.model_revision, found.data_hash)
    if expected != found.resume_hash:
        raise InvalidConfig(
            f"the settings differ from those that were prepared: hash {expected}, in {where} {found.resume_hash}",
            "Prepare the run again, or create a new resource.",
        )
    return found


class Fence:
    """The record attempts/0000N of the attempt that runs: who comes later stops who came before.

    Merges have records of their own, attempts/merge-0000N: they come after the last attempt and never fence one.
    """

    def __init__(self, storage: Storage, claimed: Claim, attempt: int, merge: bool = False) -> None:
        self._storage = storage
        self._claim = claimed
        self._attempt = attempt
        self._kind = _MERGE if merge else ""

    @classmethod
    def take(cls, storage: Storage, claimed: Claim, attempt: int, merge: bool = False) -> Fence:
        """Takes the number of this attempt or merge.

        Raises:
            Interrupted: a process with this number runs or ran already, or a higher number exists.
        """
        fence = cls(storage, claimed, attempt, merge)
        name = fence.name
        fence.check()
        record = {
            "uid": claimed.uid,
            "attempt": attempt,
            "nonce": secrets.token_hex(8),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        try:
            storage.write(name, json.dumps(record).encode(), if_generation_match=0)
        except PreconditionFailed as error:
            raise Interrupted(
                f"{storage.locate(name)} exists: another process runs or ran as {fence.title} {attempt}",
                f"Nothing: the next {fence.title} takes a number of its own.",
            ) from error
        return fence

    def beside(self, storage: Storage) -> Fence:
        """The same fence, looked at through another client of the storage."""
        return Fence(storage, self._claim, self._attempt, merge=bool(self._kind))

    @property
    def name(self) -> str:
        """Name of this attempt's record."""
        return f"{ATTEMPTS}{self._kind}{self._attempt:05d}"

    @property
    def title(self) -> str:
        """What its number counts."""
        return "merge" if self._kind else "attempt"

    def check(self) -> None:
        """Looks whether this attempt may still write; called before every manifest, and before status writes.

        Raises:
            Interrupted: a higher attempt exists, or the prefix has another owner.
        """
        uid = self._claim.uid
        try:
            owner = Claim.from_bytes(self._storage.read(RUN_RECORD), self._storage.locate(RUN_RECORD))
        except ObjectMissing as error:
            raise Interrupted(f"{self._storage.locate(RUN_RECORD)} is gone: nothing more is written") from error
        if owner.uid != uid:
            raise Interrupted(f"{self._storage.uri} belongs to {owner.owner} by now: nothing more is written")
        newest = max(_attempts(self._storage, uid, self._kind, above=self._attempt), default=0)
        if newest:
            what = self.title
            raise Interrupted(f"{what} {newest} has taken over from {what} {self._attempt}: nothing more is written")


def _attempt_records(storage: Storage) -> list[tuple[str, str]]:
    """Name and uid of every attempt's record."""
    return [(item.name, _uid_of(storage, item.name)) for item in storage.list(ATTEMPTS)]


def _uid_of(storage: Storage, record: str) -> str:
    """The uid in an attempt's record; "" where it cannot be read."""
    try:
        return _Attempt.of(storage.read(record)).uid
    except (ObjectMissing, Unreadable):
        return ""


def _attempts(storage: Storage, uid: str, kind: str = "", above: int = 0) -> list[int]:
    """Numbers of the attempts (of the merges, for their kind) that a resource has begun; of those above one alone.

    Other records are not read: a look at the fence costs the same after the hundredth attempt.
    """
    prefix = f"{ATTEMPTS}{kind}"
    numbers = ((item.name, item.name.removeprefix(prefix)) for item in storage.list(prefix))
    newer = ((name, int(number)) for name, number in numbers if number.isdecimal() and int(number) > above)
    return [number for name, number in newer if _uid_of(storage, name) == uid]


def hold(storage: Storage) -> None:
    """Holds the lock of a file:// prefix until this process ends, so that another owner sees it is in use.

    Attempts of one run do not lock each other out: the fence decides between them.
    """
    if isinstance(storage, FileStorage):
        storage.share_lock(_LOCK)


def is_gone(storage: Storage, owner: Claim) -> bool | None:
    """Whether the owner of a prefix is gone; None where nobody can tell (see the module's text)."""
    if isinstance(storage, FileStorage) and storage.is_locked(_LOCK):
        return False
    server = ApiServer.of_pod()
    if server is None:
        return True if isinstance(storage, FileStorage) else None
    try:
        resource = server.get(owner.namespace, owner.name)
    except (requests.RequestException, OSError) as error:
        log.warning("the owner of the output cannot be looked up", owner=owner.owner, error=str(error))
        return False
    if resource is None or resource.get("metadata", {}).get("uid") != owner.uid:
        return True
    conditions = resource.get("status", {}).get("conditions", [])
    return any(item.get("type") == ConditionType.FINISHED and item.get("status") == "True" for item in conditions)
