"""The rules between the fields of a spec: small pure functions, each problem with path, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from gemmatune_api import checks_accelerator, checks_data, checks_images, checks_model, checks_pod
from gemmatune_api.base import ApiModel, seconds
from gemmatune_api.defaults import TRAINING, backend_of, optimizer_of
from gemmatune_api.errors import Problem, either, shown
from gemmatune_api.spec import FineTuneSpec, QloraSpec

Rule = Callable[[FineTuneSpec], Iterator[Problem]]

ACCELERATORS_OF = {"torch": ("gpu", "cpu"), "xla": ("tpu", "cpu"), "keras": ("tpu", "cpu")}
"""What each backend trains on."""
LONGEST_DURATION_DAYS = 3650


def problems(spec: FineTuneSpec) -> list[Problem]:
    """Every contradiction between the fields of a spec, in the order of its blocks."""
    return [problem for rule in RULES for problem in rule(spec)]


def exclusive(block: ApiModel, path: str, *fields: str, needed: bool = False) -> Iterator[Problem]:
    """At most one of the fields of a block, or exactly one where one is `needed`."""
    names = [type(block).model_fields[field].alias or field for field in fields]
    given = [name for name, field in zip(names, fields, strict=True) if getattr(block, field) is not None]
    choices = f"{', '.join(names[:-1])} and {names[-1]}"
    if len(given) > 1:
        yield Problem(
            path,
            f"{'exactly' if needed else 'at most'} one of {choices} is possible",
            f"Keep one of {' and '.join(given)}.",
            ", ".join(given),
        )
    elif needed and not given:
        yield Problem(path, f"exactly one of {choices} is required", f"Add one of {', '.join(names)}.")


def method(spec: FineTuneSpec) -> Iterator[Problem]:
    """qlora, lora or full; quantisation only where bitsandbytes runs."""
    yield from exclusive(spec, "spec", "qlora", "lora", "full")
    if spec.qlora is None:
        return
    if spec.accelerator.tpu is not None:
        yield Problem(
            "spec.qlora",
            "qlora cannot run on a TPU: bitsandbytes has no TPU kernels",
            f"Write {lora_instead(spec.qlora, backend_of(spec))} in its place, or use accelerator.gpu.",
            "accelerator.tpu",
        )
    elif backend_of(spec) != "torch":
        yield Problem(
            "spec.qlora",
            "qlora needs backend torch",
            f"Write {lora_instead(spec.qlora, backend_of(spec))} in its place, or use backend torch.",
            f"backend {backend_of(spec)}",
        )
    if spec.qlora.bits == 8:
        if spec.qlora.dora:  # PEFT 0.21 loses bitsandbytes' 8-bit scales when it computes DoRA's magnitudes
            yield Problem("spec.qlora.dora", "DoRA needs bits 4", "Remove it, or set bits to 4.", shown(True))
        for name, value in (("quantType", spec.qlora.quant_type), ("doubleQuant", spec.qlora.double_quant)):
            if value is not None:
                yield Problem(
                    f"spec.qlora.{name}", "applies to bits 4 only", "Remove it, or set bits to 4.", shown(value)
                )


def lora_instead(qlora: QloraSpec, backend: str) -> str:
    """The block `lora: {...}` with those fields of a qlora block that carry over, as YAML."""
    carried = ["rank", "alpha", "target_modules"] + ([] if backend == "keras" else ["dropout", "dora"])
    fields = qlora.model_dump(by_alias=True, exclude_none=True, include=set(carried))
    inner = ", ".join(f"{name}: {_flow(value)}" for name, value in fields.items())
    return f"lora: {{{inner}}}"


def _flow(value: object) -> str:
    """A value in one line of YAML; a list of names without quotes."""
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, str):
        return value if re.fullmatch(r"[a-z]+[_-][a-z_-]+", value) else shown(value)
    return shown(value)


def backend(spec: FineTuneSpec) -> Iterator[Problem]:
    """A backend that trains on the accelerator; meshes and virtual devices only where they mean something."""
    name, kind = backend_of(spec), spec.accelerator.kind
    if kind not in ACCELERATORS_OF[name]:
        able = [other for other, kinds in ACCELERATORS_OF.items() if kind in kinds]
        yield Problem(
            "spec.backend",
            f"backend {name} trains on {' and '.join(ACCELERATORS_OF[name])}, not on {kind}",
            f"Use backend {' or '.join(able)}, or another accelerator.",
            shown(spec.backend),
        )
    if name != "torch":
        return
    if spec.mesh is not None:
        yield Problem(
            "spec.mesh",
            "meshes belong to the xla and keras backends",
            "Remove it, or use backend xla or keras.",
            shown(spec.mesh.model_dump(by_alias=True, exclude_none=True)),
        )
    if spec.accelerator.cpu is not None and spec.accelerator.cpu.devices is not None:
        yield Problem(
            "spec.accelerator.cpu.devices",
            "virtual devices belong to the xla and keras backends",
            "Remove it, or use backend xla or keras.",
            shown(spec.accelerator.cpu.devices),
        )


def keras(spec: FineTuneSpec) -> Iterator[Problem]:
    """What backend keras has not: DoRA, dropout in an adapter, and other optimizers than AdamW in fp32."""
    if backend_of(spec) != "keras":
        return
    remedy = "Use backend torch"
    if spec.lora is not None and spec.lora.dora:
        yield Problem("spec.lora.dora", "backend keras has no DoRA", f"Remove it. {remedy} for DoRA.", shown(True))
    if spec.lora is not None and spec.lora.dropout:
        yield Problem(
            "spec.lora.dropout",
            "backend keras trains adapters without dropout",
            f"Remove it. {remedy} for dropout.",
            shown(spec.lora.dropout),
        )
    optimizer = spec.training.optimizer if spec.training else None
    if optimizer not in (None, "adamw_torch", "adamw_torch_fused"):
        yield Problem(
            "spec.training.optimizer",
            "backend keras optimises with AdamW in fp32 alone",
            "Use adamw_torch, or leave it out.",
            shown(optimizer),
        )


def accelerator(spec: FineTuneSpec) -> Iterator[Problem]:
    """Exactly one accelerator."""
    yield from exclusive(spec.accelerator, "spec.accelerator", "gpu", "tpu", "cpu", needed=True)


def training(spec: FineTuneSpec) -> Iterator[Problem]:
    """Length, batch, schedule and optimizer agree with each other."""
    training = spec.training
    if training is None:
        return
    yield from exclusive(training, "spec.training", "max_steps", "epochs")
    rows = training.global_batch_size or TRAINING["global_batch_size"]
    micro = training.micro_batch_size
    if micro is not None and rows % micro:
        divisors = [str(number) for number in range(1, rows + 1) if rows % number == 0]
        yield Problem(
            "spec.training.microBatchSize",
            f"must divide globalBatchSize {rows}",
            f"Use {either([*divisors[:3], *divisors[3:][-3:]])}.",
            shown(micro),
        )
    warmup = training.warmup_steps
    if training.schedule == "constant" and warmup:
        yield Problem(
            "spec.training.warmupSteps",
            "schedule constant has no warm-up",
            "Use schedule constant_with_warmup, or warmupSteps 0.",
            shown(warmup),
        )
    if warmup is not None and training.max_steps is not None and warmup > training.max_steps:
        yield Problem(
            "spec.training.warmupSteps",
            f"is more than maxSteps {training.max_steps}: the learning rate would never reach its peak",
            "Lower warmupSteps or raise maxSteps.",
            shown(warmup),
        )
    yield from _optimizer(spec, training.optimizer)


def _optimizer(spec: FineTuneSpec, optimizer: str | None) -> Iterator[Problem]:
    if optimizer is None:
        return
    choice = optimizer_of(spec.method, spec.accelerator.kind)
    path = "spec.training.optimizer"
    if optimizer.startswith("paged_") and spec.accelerator.kind != "gpu":
        remedy = "adamw_bnb_8bit" if optimizer.endswith("8bit") and backend_of(spec) == "torch" else choice
        yield Problem(path, "paged optimizers need a GPU", f"Use {remedy}.", shown(optimizer))
    elif optimizer == "adamw_bnb_8bit" and backend_of(spec) != "torch":
        yield Problem(path, "8-bit optimizers need backend torch", f"Use {choice}.", shown(optimizer))


def evaluation(spec: FineTuneSpec) -> Iterator[Problem]:
    """What needs evaluation rows has them."""
    yield from exclusive(spec.dataset, "spec.dataset", "eval_fraction", "eval_uri")
    every = spec.training and spec.training.eval_every_steps
    if spec.checkpoint and spec.checkpoint.best and not (every or spec.checkpoint.every_steps):
        yield Problem(
            "spec.checkpoint.best",
            "needs evaluations at steps: by the clock, the result would depend on the machine's speed",
            "Set training.evalEverySteps or checkpoint.everySteps.",
            shown(True),
        )
    if spec.dataset.eval_fraction is not None or spec.dataset.eval_uri is not None:
        return
    needs = (
        ("spec.training.evalEverySteps", spec.training and spec.training.eval_every_steps),
        ("spec.checkpoint.best", spec.checkpoint and spec.checkpoint.best),
        ("spec.samples.fromEval", spec.samples and spec.samples.from_eval),
    )
    for path, value in needs:
        if value:
            yield Problem(
                path,
                "needs evaluation rows",
                "Set dataset.evalFraction or dataset.evalUri, or remove the field.",
                shown(value),
            )


def checkpoint(spec: FineTuneSpec) -> Iterator[Problem]:
    """One rhythm of checkpoints."""
    if spec.checkpoint is not None:
        yield from exclusive(spec.checkpoint, "spec.checkpoint", "every_steps", "every")


def provisioning(spec: FineTuneSpec) -> Iterator[Problem]:
    """A reservation exactly with mode reservation, a fallback only for spot."""
    block = spec.provisioning
    if block is None:
        return
    mode = block.mode or "onDemand"
    if mode == "reservation" and block.reservation is None:
        yield Problem("spec.provisioning.reservation", "mode reservation needs its name", "Add the reservation's name.")
    if mode != "reservation" and block.reservation is not None:
        yield Problem(
            "spec.provisioning.reservation",
            f"has no meaning with mode {mode}",
            "Remove it, or set mode to reservation.",
            shown(block.reservation),
        )
    if mode != "spot" and block.fallback is not None:
        yield Problem(
            "spec.provisioning.fallback",
            f"has no meaning with mode {mode}: only spot falls back",
            "Remove it, or set mode to spot.",
            shown(block.fallback.model_dump(by_alias=True, exclude_none=True)),
        )


def tracking(spec: FineTuneSpec) -> Iterator[Problem]:
    """A tracking server's URI, without a password in it: it stands in logs and reports."""
    mlflow = spec.tracking.mlflow if spec.tracking else None
    if mlflow is None:
        return
    path = "spec.tracking.mlflow.uri"
    try:
        parts = urlsplit(mlflow.uri)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https", "file") or not (parts.netloc or parts.scheme == "file"):
        yield Problem(
            path, "is no tracking server", "Write https://HOST, http://HOST or file:///PATH.", shown(mlflow.uri)
        )
    elif parts.username or parts.password:
        yield Problem(path, "holds a user or password, which others can read", "Use tracking.mlflow.secretRef.")


def durations(spec: FineTuneSpec) -> Iterator[Problem]:
    """Durations that a clock can count: more than nothing, and no more than ten years."""
    limits, fallback = spec.limits, spec.provisioning and spec.provisioning.fallback
    given = {
        "spec.checkpoint.every": spec.checkpoint and spec.checkpoint.every,
        "spec.provisioning.fallback.afterPending": fallback and fallback.after_pending,
        "spec.limits.pendingDeadline": limits and limits.pending_deadline,
        "spec.limits.deadline": limits and limits.deadline,
        "spec.limits.stallTimeout": limits and limits.stall_timeout,
        "spec.ttlAfterFinished": spec.ttl_after_finished,
    }
    for path, text in given.items():
        if not text:
            continue
        if seconds(text) > LONGEST_DURATION_DAYS * 86400:
            yield Problem(path, f"must be at most {LONGEST_DURATION_DAYS}d", "Write a shorter duration.", shown(text))
        elif seconds(text) == 0 and path != "spec.ttlAfterFinished":
            yield Problem(path, "must be longer than 0s", "Write a duration such as 10m.", shown(text))


RULES: tuple[Rule, ...] = (
    checks_data.model,
    backend,
    keras,
    checks_model.family,
    checks_model.modules,
    checks_data.dataset,
    checks_data.templates,
    checks_images.images,
    evaluation,
    method,
    training,
    checkpoint,
    checks_data.output,
    checks_images.prompts,
    checks_data.size,
    accelerator,
    checks_accelerator.gpu,
    checks_accelerator.tpu,
    checks_accelerator.mesh,
    checks_accelerator.batch,
    checks_accelerator.division,
    provisioning,
    tracking,
    checks_pod.labels,
    checks_pod.selectors,
    checks_pod.tolerations,
    checks_pod.resources,
    checks_pod.environment,
    durations,
)
