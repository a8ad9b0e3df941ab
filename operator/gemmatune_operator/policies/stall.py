"""An attempt whose step and heartbeat stand still for too long is ended: limits.stallTimeout."""

from __future__ import annotations

from gemmatune_api.base import duration_text, seconds
from gemmatune_api.defaults import FIRST_STEP_STALL_SECONDS
from gemmatune_api.names import Reason
from gemmatune_api.status import Attempt
from gemmatune_operator.conditions import parse_time
from gemmatune_operator.decision import Decision, Situation
from gemmatune_operator.diagnose import cause
from gemmatune_operator.policies.outcome import GOES_ON, Outcome
from gemmatune_operator.views import JobView

LOOKS_PER_TIMEOUT = 4
"""Progress alone wakes nobody, so the clock is read this often per timeout: also before the first step, which would
otherwise be noticed only when the longer time that it has is nearly over."""


def stall(situation: Situation, decision: Decision, attempt: Attempt, job: JobView) -> Outcome:
    """Ends a running attempt without progress; the first step, which loads and may compile, has 45 minutes."""
    limit = situation.limits.stall_timeout
    still = situation.observed.still_since
    began = parse_time(attempt.training_time)
    if limit is None or still is None or began is None or not job.running:
        return GOES_ON
    progress = decision.status.progress
    stepped = progress is not None and progress.step > (attempt.from_step or 0)
    usual = float(seconds(limit))
    allowed = usual if stepped else max(usual, float(FIRST_STEP_STALL_SECONDS))
    quiet = (situation.now - max(still, began)).total_seconds()
    if quiet < allowed:
        return Outcome(wake=min(allowed - quiet, usual / LOOKS_PER_TIMEOUT))
    reached = f"step {progress.step}" if progress is not None else "the start"
    return Outcome(cause(Reason.STALLED, f"No step and no heartbeat for {duration_text(quiet)}; at {reached}."))
