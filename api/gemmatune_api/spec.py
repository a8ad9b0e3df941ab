"""The spec of a GemmaFineTune as the user writes it: the source of truth for CRD, documentation and validation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from gemmatune_api.base import ApiModel, Duration, without_nulls
from gemmatune_api.names import NAME_MAX_LENGTH, NAME_PATTERN
from gemmatune_api.patterns import DATASET_URI_PATTERN, MODEL_URI_PATTERN, OUTPUT_URI_PATTERN
from gemmatune_api.placement import (
    AcceleratorSpec,
    LimitsSpec,
    MeshSpec,
    PodSpec,
    ProvisioningSpec,
    SchedulingSpec,
    SecretRef,
    TrackingSpec,
)

Backend = Literal["torch", "xla", "keras"]
MethodKind = Literal["qlora", "lora", "full"]
TargetModules = Literal["all-linear", "attention"] | Annotated[list[str], Field(min_length=1, max_length=64)]
ColumnName = Annotated[str, Field(min_length=1, max_length=256)]
PromptText = Annotated[str, Field(min_length=1, max_length=4096)]
Template = Annotated[str, Field(min_length=1, max_length=16384)]


class ModelSpec(ApiModel):
    """The model to tune."""

    uri: Annotated[str, Field(pattern=MODEL_URI_PATTERN, max_length=1024)]
    """Where the weights are: hf://ORG/NAME, gs://BUCKET/PATH, file:///PATH, kaggle://, ms://, pvc://CLAIM/PATH."""
    revision: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Branch, tag or commit of a hub repository. Default: its main branch, resolved once."""
    secret_ref: SecretRef | None = None
    """Secret with the hub's token. Default key: HF_TOKEN, for ms:// MODELSCOPE_API_TOKEN."""


class TextFormat(ApiModel):
    """Every row is one text, and all of it is trained."""

    template: Template
    """Text with {column} in place of values; {{ is a brace."""


class InstructFormat(ApiModel):
    """Every row is an instruction and its answer; only the answer is trained."""

    instruction: ColumnName | None = None
    """Column of the instruction. Default instruction."""
    input: ColumnName | None = None
    """Column of further input, empty allowed. Default: input where the data has it."""
    output: ColumnName | None = None
    """Column of the answer. Default output."""
    system_text: Template | None = None
    """System text of every row."""


class ChatFormat(ApiModel):
    """Every row is a conversation; assistant turns are trained."""

    messages: ColumnName | None = None
    """Column of the list of {role, content} or {from, value}. Default messages (or conversations)."""
    system_text: Template | None = None
    """System text for conversations that have none, as first message or in a column named system."""
    train: Literal["all", "last"] | None = None
    """Assistant turns that are trained. Default all."""


class ImageTextFormat(ApiModel):
    """Every row is an image with a prefix and a suffix; the suffix is trained (keras backend only)."""

    image: ColumnName
    """Column of the image: a path relative to the file, a gs:// URI in its bucket, or bytes. JPEG, PNG or WebP."""
    prefix: Template
    """Template of the text before."""
    suffix: Template
    """Template of the text to learn."""


class DatasetSpec(ApiModel):
    """The data, in exactly one of the formats text, instruct, chat and imageText."""

    uri: Annotated[str, Field(pattern=DATASET_URI_PATTERN, max_length=1024)]
    """Where the rows are: jsonl, json, csv or parquet (globs allowed), or a repository of hf:// or ms://."""
    config: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Configuration of a datasets repository."""
    split: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Split. Default train."""
    revision: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Branch, tag or commit of a datasets repository."""
    secret_ref: SecretRef | None = None
    """Secret with the hub's token. Default: the model's."""
    limit: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Rows to use, from the first. Default: all."""
    text: TextFormat | None = None
    """One text a row."""
    instruct: InstructFormat | None = None
    """Instruction and answer."""
    chat: ChatFormat | None = None
    """Conversations."""
    image_text: ImageTextFormat | None = None
    """Image, prefix and suffix."""
    max_length: Annotated[int, Field(ge=16, le=131072)] | None = None
    """Longest row in tokens, without those of its image. Default 1024."""
    too_long: Literal["truncate", "drop", "fail"] | None = None
    """What happens to longer rows. Default truncate; what is cut is reported."""
    packing: bool | None = None
    """Rows of one step share sequences without seeing each other; those with images never do. Default true."""
    eval_fraction: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    """Share of the rows kept for evaluation, by their content: equal rows stay together. Default: none."""
    eval_uri: Annotated[str, Field(pattern=DATASET_URI_PATTERN, max_length=1024)] | None = None
    """Rows for evaluation; of a repository its split validation, test or train. Default: none."""


class LoraSpec(ApiModel):
    """LoRA: low-rank adapters on a base in 16 bit (PEFT's terms)."""

    rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Rank r. Default 8."""
    alpha: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Scaling numerator. Default 2 x rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout before the adapter. Default 0."""
    target_modules: TargetModules | None = None
    """all-linear, attention, or module names. Default all-linear, of the text tower only."""
    dora: bool | None = None
    """Weight-decomposed LoRA. Default false."""


class QloraSpec(LoraSpec):
    """QLoRA: low-rank adapters on a quantised base (bitsandbytes)."""

    bits: Literal[4, 8] | None = None
    """Bits of the base's linear layers. Default 4."""
    quant_type: Literal["nf4", "fp4"] | None = None
    """4-bit data type. Default nf4."""
    double_quant: bool | None = None
    """Quantises the quantisation constants too. Default true."""


class FullSpec(ApiModel):
    """Full tuning: every weight is trained."""


class TrainingSpec(ApiModel):
    """The optimisation."""

    max_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Optimizer steps; at most one of maxSteps and epochs."""
    epochs: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Passes over the rows. Default 1."""
    global_batch_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Dataset rows per optimizer step, on all devices together. Default 16."""
    micro_batch_size: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Dataset rows per device and forward pass. Default by the planner."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Peak learning rate. Default 2e-4 (full: 1e-5)."""
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] | None = None
    """Learning-rate schedule by transformers' names. Default cosine."""
    warmup_steps: Annotated[int, Field(ge=0, le=100_000_000)] | None = None
    """Steps of linear warm-up. Default 3% of the steps."""
    optimizer: (
        Literal[
            "adamw_torch",
            "adamw_torch_fused",
            "adamw_bnb_8bit",
            "paged_adamw_32bit",
            "paged_adamw_8bit",
            "adafactor",
        ]
        | None
    ) = None
    """Optimizer by transformers' names. Default paged_adamw_8bit for qlora on gpu, else adamw_torch."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight decay. Default 0."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Gradient norm at which gradients are clipped. Default 1.0."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass. Default by the planner."""
    precision: Literal["bf16", "fp32"] | None = None
    """Compute precision; adapter weights are fp32 in both. Default bf16."""
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] | None = None
    """Seed of row order, adapter initialisation and dropout. Default 42."""
    log_every_steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Steps between log lines and loss points. Default 1."""
    eval_every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Steps between evaluations. Default: with each checkpoint."""


class CheckpointSpec(ApiModel):
    """When checkpoints are written and how many are kept."""

    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Steps between checkpoints; at most one of everySteps and every."""
    every: Duration | None = None
    """Time between checkpoints. Default 10m."""
    keep: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Newest checkpoints to keep. Default 2."""
    best: bool | None = None
    """The adapter of the lowest evaluation loss is the result. Default false."""


class OutputSpec(ApiModel):
    """Where results go."""

    uri: Annotated[str, Field(pattern=OUTPUT_URI_PATTERN, max_length=1024)] = ""
    """Prefix of all that the run writes: gs://BUCKET/PATH or file:///PATH. Default: outputPrefix/NAMESPACE/NAME."""
    merge: bool | None = None
    """Also write merged 16-bit safetensors, by a CPU Job afterwards. Adds nothing to full. Default false."""
    overwrite: bool | None = None
    """Replace what another run left under the prefix. Default false."""

    @model_validator(mode="before")
    @classmethod
    def _absent(cls, value: Any) -> Any:
        """null is an absent URI, as the API server reads it."""
        if isinstance(value, dict) and value.get("uri", "") is None:
            return {name: item for name, item in value.items() if name != "uri"}
        return value


class ImagePrompt(ApiModel):
    """A prompt, with imageText about an image."""

    text: Annotated[str, Field(min_length=1, max_length=4096)]
    """The prompt."""
    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """gs:// or file:// URI of the image; required with imageText."""


class SamplesSpec(ApiModel):
    """Completions generated before and after training."""

    prompts: Annotated[list[PromptText | ImagePrompt], Field(max_length=8)] | None = None
    """Prompts, through the chat template for instruct and chat."""
    from_eval: Annotated[int, Field(ge=1, le=8)] | None = None
    """Prompts taken from the evaluation rows. Default 0."""
    max_new_tokens: Annotated[int, Field(ge=1, le=2048)] | None = None
    """Tokens to generate for each. Default 64."""

    @property
    def blocks(self) -> list[ImagePrompt]:
        """The prompts, those that are plain texts as blocks too."""
        return [item if isinstance(item, ImagePrompt) else ImagePrompt(text=item) for item in self.prompts or []]


class FineTuneSpec(ApiModel):
    """A fine-tuning run of a Gemma model."""

    model: ModelSpec
    """The model to tune."""
    backend: Backend | None = None
    """Training framework. Default torch on gpu and cpu, xla on tpu."""
    dataset: DatasetSpec
    """The data."""
    qlora: QloraSpec | None = None
    """At most one of qlora, lora and full. Default: qlora on gpu with torch, else lora."""
    lora: LoraSpec | None = None
    """LoRA."""
    full: FullSpec | None = None
    """Full tuning."""
    training: TrainingSpec | None = None
    """The optimisation."""
    checkpoint: CheckpointSpec | None = None
    """Checkpoints."""
    output: OutputSpec = OutputSpec()
    """Where results go."""
    samples: SamplesSpec | None = None
    """Completions generated before and after training."""
    accelerator: AcceleratorSpec
    """What trains."""
    mesh: MeshSpec | None = None
    """Arrangement of the chips (xla and keras)."""
    provisioning: ProvisioningSpec | None = None
    """How the nodes are obtained."""
    scheduling: SchedulingSpec | None = None
    """Who admits the run."""
    pod: PodSpec | None = None
    """What the operator adds to the pods of the run."""
    limits: LimitsSpec | None = None
    """What the run may use up before it is given up."""
    tracking: TrackingSpec | None = None
    """Experiment trackers."""
    suspend: bool | None = None
    """True: save a checkpoint and stop until it is false again. Default false."""
    ttl_after_finished: Duration | None = None
    """Time after which a finished resource is deleted; the bucket stays. Default: never."""

    @field_validator("output", mode="before")
    @classmethod
    def _absent(cls, value: Any) -> Any:
        """null is an absent block, as the API server reads it."""
        return OutputSpec() if value is None else value

    @property
    def method(self) -> MethodKind:
        """The method that trains: the block that is set, else qlora on gpu with torch, else lora."""
        if self.full is not None:
            return "full"
        if self.lora is not None:
            return "lora"
        if self.qlora is not None:
            return "qlora"
        return "qlora" if self.accelerator.kind == "gpu" and self.backend in (None, "torch") else "lora"

    @property
    def adapter(self) -> LoraSpec:
        """The block of the method's adapter settings (an empty one where none is written)."""
        if self.method == "qlora":
            return self.qlora or QloraSpec()
        return self.lora or LoraSpec()


class Metadata(ApiModel):
    """The part of a resource's metadata that its validation and planning read."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=NAME_MAX_LENGTH)]
    """Name of the run; Jobs and pods are named after it."""
    namespace: str = "default"
    """Namespace."""
    uid: str = ""
    """UID that the API server gave."""
    generation: int = 0
    """Generation of the spec."""
    resource_version: str = ""
    """Version of the object."""
    creation_timestamp: str = ""
    """Time of creation (RFC 3339)."""
    deletion_timestamp: str | None = None
    """Time of deletion, where it is being deleted."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return without_nulls(value)


class GemmaFineTune(ApiModel):
    """A whole resource, its status left as the API server has it."""

    api_version: Literal["gemmatune.dev/v1alpha1"] = "gemmatune.dev/v1alpha1"
    """API group and version."""
    kind: Literal["GemmaFineTune"] = "GemmaFineTune"
    """Kind."""
    metadata: Metadata
    """Name, namespace and what the API server adds."""
    spec: FineTuneSpec
    """What is asked."""
    status: dict[str, Any] | None = None
    """What happened (status.py has its models)."""
