"""The status of a GemmaFineTune: what happened, what comes next, and why."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from gemmatune_api.base import StatusModel
from gemmatune_api.planned import Plan as Plan
from gemmatune_api.planned import PlanMemory as PlanMemory
from gemmatune_api.planned import PlanMerge as PlanMerge
from gemmatune_api.site_defaults import SiteDefaults


class Condition(StatusModel):
    """A Kubernetes condition."""

    type: str
    """Accepted, Prepared, Provisioned, Training, Suspended, Succeeded, Failed or Finished."""
    status: str
    """True, False or Unknown."""
    reason: str = ""
    """One word of names.py."""
    message: str = ""
    """A sentence for people."""
    last_transition_time: str = ""
    """Time of the last change of status (RFC 3339)."""
    observed_generation: int | None = None
    """Generation of the spec that it speaks of."""


class Summary(StatusModel):
    """Text for the columns of kubectl."""

    model: str = ""
    """Model, such as gemma-2-2b."""
    method: str = ""
    """Method, such as qlora r8."""
    accelerator: str = ""
    """Accelerator, such as 1x nvidia-l4."""
    output: str = ""
    """Where results go."""
    retries: str = ""
    """Counted retries of the budget, such as 1/3."""


class DataStatus(StatusModel):
    """What prepare read."""

    hash: str = ""
    """Hash of rows, format and tokenizer."""
    rows: int = 0
    """Rows that are trained."""
    tokens: int = 0
    """Tokens of an epoch."""
    labelled_tokens: int = 0
    """Tokens with a loss."""
    truncated_rows: int = 0
    """Rows cut at maxLength."""
    cut_tokens: int = 0
    """Tokens cut off."""
    dropped_rows: int = 0
    """Rows dropped as too long."""
    duplicates: int = 0
    """Rows that repeat another."""
    longest: int = 0
    """Longest row in tokens, before cutting."""
    eval_rows: int | None = None
    """Rows kept for evaluation, which are not trained."""
    eval_truncated_rows: int | None = None
    """Rows for evaluation cut at maxLength."""
    eval_cut_tokens: int | None = None
    """Tokens cut off rows for evaluation."""
    eval_dropped_rows: int | None = None
    """Rows for evaluation dropped as too long."""


class Counters(StatusModel):
    """Counters that only ever grow; budgets are these minus budgetBase."""

    attempts: int = 0
    """Attempts begun."""
    retries: int = 0
    """Counted retries."""
    preemptions: int = 0
    """Preemptions, lost nodes, refused pods, interruptions."""
    out_of_memory: int = 0
    """Out-of-memory downshifts."""
    stalls: int = 0
    """Stalled attempts."""
    queue_evictions: int | None = None
    """Preemptions among them that were Kueue's; absent: as many as the attempts shown tell."""
    capacity_fallbacks: int | None = None
    """Spot attempts that waited for their node in vain; absent: as many as the attempts shown tell."""


class BudgetBase(StatusModel):
    """Counters at the last retry on demand, or at a later change of the spec that gives a new budget."""

    retries: int = 0
    """Counted retries before it."""
    preemptions: int = 0
    """Preemptions before it."""
    out_of_memory: int = 0
    """Downshifts before it."""
    spot_losses: int | None = None
    """Preemptions but Kueue's before it, or before the last change of accelerator or provisioning."""
    capacity_fallbacks: int | None = None
    """Waits for spot nodes in vain before it, or before the last change of accelerator or provisioning."""
    attempts: int | None = None
    """Attempts before the last change of machine or pod.resources: what they were granted holds no longer."""


class Overrides(StatusModel):
    """What an attempt changes against the plan, as an answer to the ends before it."""

    micro_batch_size: int | None = None
    """Rows per forward pass after a downshift."""
    gradient_checkpointing: bool | None = None
    """Checkpointing after a downshift."""
    memory: int | None = None
    """Host memory limit in bytes after HostOutOfMemory."""
    ephemeral_storage: int | None = None
    """Ephemeral storage limit in bytes after DiskFull."""


class Attempt(StatusModel):
    """One attempt: one Job."""

    number: int
    """From 1."""
    job: str
    """Name of the Job."""
    provisioning: str = "onDemand"
    """Provisioning mode of this attempt."""
    start_time: str | None = None
    """When its Job was seen (RFC 3339)."""
    training_time: str | None = None
    """When its pods were first all running."""
    cost_per_hour: float | None = None
    """Price of its accelerators an hour, by the price table as it was at its start."""
    end_time: str | None = None
    """When it was closed."""
    reason: str = ""
    """Cause of its end."""
    message: str = ""
    """What happened."""
    remedy: str = ""
    """What to do."""
    counted: bool | None = None
    """Whether it used up a retry."""
    from_step: int | None = None
    """Step it resumed from."""
    to_step: int | None = None
    """Step it reached."""
    overrides: Overrides | None = None
    """What it changes against the plan."""


class JobRecord(StatusModel):
    """The prepare or merge Job."""

    number: int
    """From 1."""
    job: str
    """Name of the Job."""
    generation: int | None = None
    """Generation of the spec that it prepares."""
    retries: int = 0
    """Counted failures of it."""
    preemptions: int = 0
    """Uncounted failures of it."""
    start_time: str | None = None
    """When its Job was first seen (RFC 3339); only of a merge."""
    overrides: Overrides | None = None
    """More memory or disk after it ran out; only of a merge."""
    shape: dict[str, Any] | None = None
    """Numbers of the model's config.json that the planner reads; only of a preparation that succeeded."""


class Timers(StatusModel):
    """Clocks that survive a restart of the operator."""

    pending_since: str | None = None
    """When the current attempt began to wait for nodes."""
    active_seconds: float = 0
    """Training time of all closed attempts."""
    spent: float = 0
    """Cost of all closed attempts, by the price table."""


class Cost(StatusModel):
    """Cost by the price table."""

    so_far: float | None = None
    """Of all attempts, at the last change of the status."""
    estimated: float | None = None
    """Of the whole run, as far as its progress tells."""


class Progress(StatusModel):
    """How far training is; the trainer's field."""

    step: int = 0
    """Optimizer steps done."""
    total_steps: int = 0
    """Optimizer steps of the run."""
    step_text: str = ""
    """40/100."""
    epoch: float = 0
    """Passes over the rows."""
    loss: float | None = None
    """Loss of the last logged step."""
    eval_loss: float | None = None
    """Loss of the last evaluation."""
    learning_rate: float | None = None
    """Learning rate of the last step."""
    tokens_per_second: float | None = None
    """Tokens trained a second."""
    eta: str = ""
    """Time to the end, such as 1h12m."""
    heartbeat: str = ""
    """When it was written (RFC 3339)."""
    history_steps: Annotated[list[int], Field(max_length=30)] = Field(default_factory=list)
    """Steps of the loss curve."""
    history_loss: Annotated[list[float], Field(max_length=30)] = Field(default_factory=list)
    """Losses of the loss curve."""


class CheckpointStatus(StatusModel):
    """The newest checkpoint; the trainer's field."""

    step: int
    """Step."""
    uri: str
    """Its prefix."""
    note: str | None = None
    """Which newer ones this attempt found damaged, and what of this one its backend could not take over."""


class Artifacts(StatusModel):
    """What the run left; the trainer's field."""

    adapter: str | None = None
    """Prefix of the PEFT adapter."""
    model: str | None = None
    """Prefix of the whole tuned model (full)."""
    manifest: str | None = None
    """The manifest that was written last."""
    report: str | None = None
    """The report."""
    merged: str | None = None
    """Prefix of the merged weights."""
    sha256: str | None = None
    """SHA-256 of adapter_model.safetensors; of a whole model that of the list of its files' SHA-256."""
    serve_command: str | None = None
    """A command that serves the result."""


class Sample(StatusModel):
    """A prompt answered before and after; the trainer's field."""

    prompt: Annotated[str, Field(max_length=2000)]
    """The prompt."""
    before: Annotated[str, Field(max_length=2000)] | None = None
    """Answer of the base model."""
    after: Annotated[str, Field(max_length=2000)] | None = None
    """Answer of the tuned model."""


class FineTuneStatus(StatusModel):
    """What happened, what comes next, and why."""

    observed_generation: int | None = None
    """Generation of the spec that the status speaks of."""
    phase: str = ""
    """The state in one word."""
    reason: str = ""
    """Why."""
    message: str = ""
    """The same as a sentence."""
    remedy: str = ""
    """What to do."""
    conditions: list[Condition] = Field(default_factory=list)
    """Conditions by type."""
    summary: Summary | None = None
    """Text for the columns."""
    resolved: dict[str, Any] | None = None
    """The spec with every default."""
    defaults: SiteDefaults | None = None
    """Those that installation and namespace gave; from the first attempt on they hold, whatever becomes of them."""
    plan: Plan | None = None
    """What the planner chose."""
    data: DataStatus | None = None
    """What prepare read."""
    counters: Counters | None = None
    """Counters."""
    attempts: Annotated[list[Attempt], Field(max_length=20)] = Field(default_factory=list)
    """The newest 20 attempts."""
    prepare: JobRecord | None = None
    """The prepare Job."""
    merge: JobRecord | None = None
    """The merge Job."""
    job: str | None = None
    """The Job that may write the trainer's fields."""
    next_attempt_time: str | None = None
    """When the next attempt starts."""
    timers: Timers | None = None
    """Clocks."""
    observed_retry: str | None = None
    """The value of the retry annotation that was handled."""
    budget_base: BudgetBase | None = None
    """Counters at the last retry on demand."""
    cost: Cost | None = None
    """Cost."""
    progress: Progress | None = None
    """How far training is."""
    checkpoint: CheckpointStatus | None = None
    """The newest checkpoint."""
    artifacts: Artifacts | None = None
    """What the run left."""
    samples: Annotated[list[Sample], Field(max_length=8)] | None = None
    """Prompts answered before and after."""
