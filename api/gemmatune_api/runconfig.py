"""What the operator hands to a trainer: RunConfig, its one environment variable."""

from __future__ import annotations

import json
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from gemmatune_api import handover
from gemmatune_api.base import ApiModel, seconds
from gemmatune_api.defaults import total_steps, warmup_steps
from gemmatune_api.handover import RunConfigError
from gemmatune_api.layout import layout
from gemmatune_api.runtracking import RunTracking, run_tracking
from gemmatune_api.spec import (
    ChatFormat,
    FineTuneSpec,
    ImageTextFormat,
    InstructFormat,
    TargetModules,
    TextFormat,
    TrainingSpec,
)
from gemmatune_api.status import Overrides, Plan

Value = TypeVar("Value")

RUN_CONFIG_VERSION = 1
RUN_CONFIG_BYTES = 64 * 1024
DEVICES: dict[Literal["gpu", "tpu", "cpu"], Literal["cuda", "tpu", "cpu"]] = {"gpu": "cuda", "tpu": "tpu", "cpu": "cpu"}
"""Where tensors live, by accelerator."""


class RunIdentity(ApiModel):
    """Whose run it is."""

    name: str
    """Name of the resource."""
    namespace: str
    """Its namespace."""
    uid: str
    """Its UID."""


class RunModel(ApiModel):
    """The model to load."""

    uri: str
    """hf://ORG/NAME, ms://ORG/NAME, gs://BUCKET/PATH, pvc://CLAIM/PATH or file:///PATH."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    cache: str | None = None
    """Prefix below which the site keeps copies of hubs' models."""


class RunDataset(ApiModel):
    """The data to read, in exactly one of four formats."""

    uri: str
    """Where the rows are."""
    config: str | None = None
    """Configuration of a datasets repository."""
    split: str
    """Split."""
    revision: str | None = None
    """Branch, tag or commit of a datasets repository."""
    limit: int | None = None
    """Rows to use, from the first."""
    text: TextFormat | None = None
    """One text a row."""
    instruct: InstructFormat | None = None
    """Instruction and answer."""
    chat: ChatFormat | None = None
    """Conversations."""
    image_text: ImageTextFormat | None = None
    """Image, prefix and suffix."""
    max_length: int
    """Longest row in tokens."""
    eval_fraction: float | None = None
    """Share of the rows kept for evaluation."""
    eval_uri: str | None = None
    """Where the rows for evaluation are."""
    too_long: Literal["truncate", "drop", "fail"]
    """What happens to longer rows."""
    packing: bool
    """Whether rows of one step share sequences."""


class RunMethod(ApiModel):
    """What is trained."""

    kind: Literal["qlora", "lora", "full"]
    """qlora: an adapter on a quantised base; full: all weights of the text decoder, without an adapter."""
    rank: int | None = None
    """LoRA rank r; this and what follows is absent with full."""
    alpha: int | None = None
    """LoRA scaling numerator."""
    dropout: float | None = None
    """LoRA dropout."""
    target_modules: TargetModules | None = None
    """all-linear, attention, or module names."""
    dora: bool = False
    """Whether the adapter is weight-decomposed (DoRA)."""
    bits: Literal[4, 8] | None = None
    """Bits of the quantised base (qlora)."""
    quant_type: Literal["nf4", "fp4"] | None = None
    """4-bit data type (qlora)."""
    double_quant: bool | None = None
    """Double quantisation (qlora)."""


class RunTraining(ApiModel):
    """How it is optimised."""

    max_steps: int | None = None
    """Optimizer steps; one of maxSteps and epochs is set."""
    epochs: float | None = None
    """Passes over the rows."""
    global_batch_size: int
    """Rows per optimizer step."""
    micro_batch_size: int
    """Rows per forward pass."""
    gradient_checkpointing: bool
    """Whether activations are recomputed."""
    sharded: bool = False
    """Whether the processes of an attempt divide weights and optimizer state (FSDP2) instead of copying them (DDP)."""
    learning_rate: float
    """Peak learning rate."""
    schedule: str
    """Schedule by transformers' names."""
    warmup_steps: int | None = None
    """Warm-up steps; None: 3% of the steps."""
    optimizer: str
    """Optimizer by transformers' names."""
    weight_decay: float
    """Weight decay."""
    max_grad_norm: float
    """Clipping norm."""
    precision: Literal["bf16", "fp32"]
    """Compute precision."""
    seed: int
    """Seed."""
    log_every_steps: int
    """Steps between log lines."""
    eval_every_steps: int | None = None
    """Steps between evaluations; None: with each checkpoint."""

    def steps(self, rows: int) -> int:
        """Optimizer steps of the run over `rows` rows."""
        training = TrainingSpec(max_steps=self.max_steps, epochs=self.epochs, global_batch_size=self.global_batch_size)
        return total_steps(training, rows) or 0

    def warmup(self, steps: int) -> int:
        """Warm-up steps of a run of `steps` steps."""
        return self.warmup_steps if self.warmup_steps is not None else warmup_steps(steps)


class RunCheckpoint(ApiModel):
    """When checkpoints are written."""

    every_steps: int | None = None
    """Steps between checkpoints; one of the two is set."""
    every_seconds: int | None = None
    """Seconds between checkpoints."""
    keep: int
    """Checkpoints to keep."""
    best: bool = False
    """Whether the adapter of the lowest evaluation loss is the result."""


class RunOutput(ApiModel):
    """Where results go."""

    uri: str
    """Prefix, without a trailing slash."""
    overwrite: bool
    """Whether another run's results may be replaced."""


class RunSamples(ApiModel):
    """What is generated before and after."""

    prompts: list[str] = Field(default_factory=list)
    """Prompts."""
    images: list[str] | None = None
    """URI of each prompt's image; None where prompts have none."""
    from_eval: int = 0
    """Prompts taken from the evaluation rows."""
    max_new_tokens: int
    """Tokens to generate."""


class RunMesh(ApiModel):
    """How the devices of all processes together are arranged; with backends xla and keras."""

    data: int
    """Groups of devices among which the rows of a step are divided."""
    model: int
    """Devices of a group, among which weights are divided."""


class RunConfig(ApiModel):
    """All that a trainer is told; secrets come as environment variables, never here."""

    version: int = RUN_CONFIG_VERSION
    """Version of this format; a trainer refuses a newer one."""
    run: RunIdentity
    """Whose run it is."""
    attempt: int
    """Number of the attempt, from 1; of the preparation or merge for their Jobs."""
    backend: Literal["torch", "xla", "keras"]
    """Training framework; a trainer image has one of them and refuses the others."""
    device: Literal["cuda", "tpu", "cpu"]
    """Where tensors live."""
    model: RunModel
    """The model to load."""
    dataset: RunDataset
    """The data to read."""
    method: RunMethod
    """What is trained."""
    training: RunTraining
    """How it is optimised."""
    checkpoint: RunCheckpoint
    """When checkpoints are written."""
    output: RunOutput
    """Where results go."""
    samples: RunSamples
    """What is generated."""
    mesh: RunMesh | None = None
    """Arrangement of the devices; None with torch."""
    tracking: RunTracking | None = None
    """Experiment trackers."""
    stall_seconds: int | None = None
    """Seconds without a sign of life after which the trainer ends itself; before the first step at least 2,700."""

    def to_env(self) -> str:
        """The value of GEMMATUNE_RUN: JSON in which the kubelet finds no `$` to expand.

        Raises:
            RunConfigError: larger than 64 KiB.
        """
        text = self.model_dump_json(by_alias=True, exclude_none=True).replace("$", "\\u0024")
        size = len(text.encode())
        if size > RUN_CONFIG_BYTES:
            raise RunConfigError(f"the run's configuration has {size} bytes, at most {RUN_CONFIG_BYTES} are possible")
        return text

    @classmethod
    def from_env(cls, text: str) -> RunConfig:
        """Reads GEMMATUNE_RUN.

        Raises:
            RunConfigError: no JSON object, a newer version, or fields that this trainer does not know.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:  # also a number of too many digits, and too deep a nesting
            raise RunConfigError(f"GEMMATUNE_RUN is no JSON: {error}") from error
        if not isinstance(data, dict):
            raise RunConfigError("GEMMATUNE_RUN is no JSON object")
        version = data.get("version")
        if not isinstance(version, int) or version > RUN_CONFIG_VERSION:
            raise handover.of_version(version, RUN_CONFIG_VERSION)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise handover.of_fields(error) from error


def build(
    spec: FineTuneSpec,
    identity: RunIdentity,
    attempt: int,
    plan: Plan | None,
    overrides: Overrides | None = None,
    model_cache: str | None = None,
) -> RunConfig:
    """RunConfig of an attempt, from the resolved spec (`defaults.resolve`), the plan and the site's `modelCache`.

    A preparation may come before the plan: it trains nothing, and its rows do not depend on the micro-batch.
    """
    training, checkpoint = _require(spec.training), _require(spec.checkpoint)
    overrides = overrides or Overrides()
    checkpointing = overrides.gradient_checkpointing
    planned = bool(plan and plan.gradient_checkpointing)
    return RunConfig(
        run=identity,
        attempt=attempt,
        backend=_require(spec.backend),
        device=DEVICES[spec.accelerator.kind],
        model=RunModel(uri=spec.model.uri, revision=spec.model.revision, cache=_cache(spec, model_cache)),
        dataset=_dataset(spec),
        method=_method(spec),
        training=RunTraining(
            max_steps=training.max_steps,
            epochs=training.epochs,
            global_batch_size=_require(training.global_batch_size),
            micro_batch_size=overrides.micro_batch_size or (plan.micro_batch_size if plan else 1),
            gradient_checkpointing=planned if checkpointing is None else checkpointing,
            sharded=bool(plan and plan.sharded),
            learning_rate=_require(training.learning_rate),
            schedule=_require(training.schedule),
            warmup_steps=training.warmup_steps,
            optimizer=_require(training.optimizer),
            weight_decay=_require(training.weight_decay),
            max_grad_norm=_require(training.max_grad_norm),
            precision=_require(training.precision),
            seed=_require(training.seed),
            log_every_steps=_require(training.log_every_steps),
            eval_every_steps=training.eval_every_steps,
        ),
        checkpoint=RunCheckpoint(
            every_steps=checkpoint.every_steps,
            every_seconds=seconds(checkpoint.every) if checkpoint.every else None,
            keep=_require(checkpoint.keep),
            best=bool(checkpoint.best),
        ),
        output=RunOutput(uri=spec.output.uri, overwrite=bool(spec.output.overwrite)),
        samples=_samples(spec),
        mesh=_mesh(spec, plan),
        tracking=run_tracking(spec.tracking),
        stall_seconds=seconds(spec.limits.stall_timeout) if spec.limits and spec.limits.stall_timeout else None,
    )


def _require(value: Value | None) -> Value:
    if value is None:
        raise ValueError("the spec is not resolved: call defaults.resolve first")
    return value


def _cache(spec: FineTuneSpec, prefix: str | None) -> str | None:
    """Copies are of hubs' models alone: others are in a bucket or a volume already."""
    return prefix if spec.model.uri.startswith(("hf://", "ms://")) else None


def _dataset(spec: FineTuneSpec) -> RunDataset:
    dataset = spec.dataset
    return RunDataset(
        uri=dataset.uri,
        config=dataset.config,
        split=_require(dataset.split),
        revision=dataset.revision,
        limit=dataset.limit,
        text=dataset.text,
        instruct=dataset.instruct,
        chat=dataset.chat,
        image_text=dataset.image_text,
        eval_fraction=dataset.eval_fraction,
        eval_uri=dataset.eval_uri,
        max_length=_require(dataset.max_length),
        too_long=_require(dataset.too_long),
        packing=_require(dataset.packing),
    )


def _method(spec: FineTuneSpec) -> RunMethod:
    if spec.method == "full":
        return RunMethod(kind="full")
    adapter = spec.adapter
    qlora = spec.qlora if spec.method == "qlora" else None
    return RunMethod(
        kind="qlora" if qlora else "lora",
        rank=_require(adapter.rank),
        alpha=_require(adapter.alpha),
        dropout=_require(adapter.dropout),
        target_modules=_require(adapter.target_modules),
        dora=bool(adapter.dora),
        bits=qlora.bits if qlora else None,
        quant_type=qlora.quant_type if qlora else None,
        double_quant=qlora.double_quant if qlora else None,
    )


def _mesh(spec: FineTuneSpec, plan: Plan | None) -> RunMesh | None:
    """The mesh that was planned; without a plan, or with one for other chips, the usual one."""
    laid = layout(spec)
    found = laid.mesh
    if found and plan is not None and plan.mesh and plan.chips == laid.chips:
        found = plan.mesh["data"], plan.mesh["model"]
    return RunMesh(data=found[0], model=found[1]) if found else None


def _samples(spec: FineTuneSpec) -> RunSamples:
    samples = _require(spec.samples)
    return RunSamples(
        prompts=[item.text for item in samples.blocks],
        images=[item.image for item in samples.blocks if item.image is not None] or None,
        from_eval=samples.from_eval or 0,
        max_new_tokens=_require(samples.max_new_tokens),
    )
