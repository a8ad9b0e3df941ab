"""The story of every process but rank 0: it helps to compute, and ends as rank 0 does."""

from __future__ import annotations

from gemmatune_api.messages import TerminationMessage
from gemmatune_api.names import Reason
from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer import access, backends, manifest
from gemmatune_trainer.backends.base import Rows
from gemmatune_trainer.data import prepared
from gemmatune_trainer.data.mapped import PreparedData
from gemmatune_trainer.models import ModelFiles, cache_folder, fetch
from gemmatune_trainer.ranks import Ranks
from gemmatune_trainer.stop import StopFlag


class LeaderCrashed(RuntimeError):
    """Rank 0 has ended by an error that nothing explains."""


def follow(config: RunConfig, stop: StopFlag, ranks: Ranks) -> TerminationMessage:
    """Follows rank 0 to its end.

    Raises:
        TrainerError: what rank 0 ended with.
        LeaderCrashed: it crashed.
    """
    backends.check(config.backend)
    with stop.at_once("reading the output"):
        storage, claimed = access.claimed(config)
    if manifest.find(storage, claimed.resume_hash) is not None:
        return TerminationMessage(reason=Reason.COMPLETED, message="The run is finished already.")
    ranks.join(config.device, config.backend)

    def fetched() -> tuple[ModelFiles, PreparedData]:
        files = fetch(config.model, weights=True, revision=claimed.model_revision)
        return files, prepared.load(storage, config.output.uri, claimed.data_hash, cache_folder("data"))

    from gemmatune_trainer.backends.leading import Follower

    backend = backends.make(config, None, stop, ranks)

    def load() -> tuple[Rows, Rows | None]:
        files, rows = ranks.leaders_first(fetched)
        backend.use(files)
        return rows, rows.evaluation

    scratch = cache_folder("followers") / f"{config.run.uid}-{config.attempt}-{ranks.rank}"
    error, crashed = Follower(backend, ranks, stop, load, scratch).run()
    ranks.leave()
    if error is not None:
        raise error
    if crashed:
        raise LeaderCrashed("rank 0 crashed; the pod's log has its error")
    return TerminationMessage(reason=Reason.COMPLETED, message=f"Rank {ranks.rank} has followed rank 0 to its end.")
