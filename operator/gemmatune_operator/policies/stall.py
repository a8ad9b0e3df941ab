"""An attempt whose step and heartbeat stand still for too long is ended: limits.stallTimeout."""

from __future__ import annotations

from datetime import datetime

from gemmatune_api.base import duration_text, seconds
from gemmatune_api.defaults import FIRST_STEP_STALL_SECONDS
from gemmatune_api.names import Reason
from gemmatune_api.status import Attempt, Progress
from gemmatune_operator.conditions import parse_time
from gemmatune_operator.decision import Decision, Situation
from gemmatune_operator.diagnose import cause
from gemmatune_operator.policies.outcome import GOES_ON, Outcome
from gemmatune_operator.views import JobView

LOOKS_PER_TIMEOUT = 4
"""Progress alone wakes nobody, so the clock is read this often per timeout: also before the first step, which would
otherwise be noticed only when the longer time that it has is nearly over."""


def stall(situation: Situation, decision: Decision, attempt: Attempt, job: JobView) -> Outcome:
    """Ends an attempt without progress, while any of its pods runs; the first step, which loads and may compile, has
    45 minutes."""
    limit = situation.limits.stall_timeout
    still = situation.observed.still_since
    began = parse_time(attempt.training_time)
    if limit is None or still is None or began is None or not job.any_running:
        return GOES_ON
    progress = decision.status.progress
    usual = float(seconds(limit))
    allowed = usual if _stepped(progress, began) else max(usual, float(FIRST_STEP_STALL_SECONDS))
    quiet = (situation.now - max(still, began)).total_seconds()
    if quiet < allowed:
        return Outcome(wake=min(allowed - quiet, usual / LOOKS_PER_TIMEOUT))
    reached = f"step {progress.step}" if progress is not None else "the start"
    return Outcome(cause(Reason.STALLED, f"No step and no heartbeat for {duration_text(quiet)}; at {reached}."))


def _stepped(progress: Progress | None, began: datetime) -> bool:
    """Whether this attempt has done a step.

    The status keeps the progress of the attempt before until this one reports, and the first report may name any step,
    also a higher one: the bucket can have a newer checkpoint than the status. A speed comes with an attempt's own first
    step, and a heartbeat since its start tells whose it is.
    """
    if progress is None or progress.tokens_per_second is None:
        return False
    heartbeat = parse_time(progress.heartbeat)
    return heartbeat is not None and heartbeat >= began
