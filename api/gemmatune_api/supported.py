"""What this version refuses because its behaviour does not exist yet: one table, each entry with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic.alias_generators import to_camel

from gemmatune_api.base import ApiModel
from gemmatune_api.errors import Problem, shown
from gemmatune_api.names import Reason
from gemmatune_api.spec import FineTuneSpec, ImagePrompt


@dataclass(frozen=True, slots=True)
class Refusal:
    """A field (or some of its values) that this version refuses.

    `path` is the field below spec in Python's names; `when` says which set values are refused (all by default).
    """

    path: str
    why: str
    remedy: str = "Remove the field."
    when: Callable[[object], bool] = lambda value: True


def _scheme(*schemes: str) -> Callable[[object], bool]:
    return lambda value: str(value).split("://", 1)[0] in schemes


def _above_one(value: object) -> bool:
    return isinstance(value, int) and value > 1


def _true(value: object) -> bool:
    return value is True


_USE_TORCH = "Use backend torch with accelerator.gpu or accelerator.cpu."
_USE_HUB_OR_BUCKET = "Use hf://, gs:// or file://."
_ONE_GPU = "Use one GPU; a larger one where memory is short."

REFUSED: tuple[Refusal, ...] = (
    Refusal("model.uri", "this source is not built yet", _USE_HUB_OR_BUCKET, _scheme("kaggle", "ms", "pvc")),
    Refusal("dataset.uri", "this source is not built yet", _USE_HUB_OR_BUCKET, _scheme("ms", "pvc")),
    Refusal("dataset.image_text", "training on images is not built yet", "Use text, instruct or chat."),
    Refusal("dataset.eval_fraction", "evaluation during training is not built yet"),
    Refusal("dataset.eval_uri", "evaluation during training is not built yet"),
    Refusal("training.eval_every_steps", "evaluation during training is not built yet"),
    Refusal("samples.from_eval", "evaluation during training is not built yet"),
    Refusal("checkpoint.best", "evaluation during training is not built yet", when=_true),
    Refusal("backend", "this backend is not built yet", _USE_TORCH, lambda value: value != "torch"),
    Refusal("full", "full tuning is not built yet", "Use lora or qlora."),
    Refusal("qlora.bits", "8-bit quantisation is not built yet", "Use 4.", lambda value: value == 8),
    Refusal("qlora.dora", "DoRA is not built yet", when=_true),
    Refusal("lora.dora", "DoRA is not built yet", when=_true),
    Refusal("output.merge", "merging is not built yet", when=_true),
    Refusal("accelerator.tpu", "TPUs are not built yet", _USE_TORCH),
    Refusal("accelerator.gpu.count", "training on several GPUs is not built yet", _ONE_GPU, _above_one),
    Refusal("accelerator.gpu.nodes", "training on several nodes is not built yet", _ONE_GPU, _above_one),
    Refusal("accelerator.cpu.devices", "virtual devices belong to the xla and keras backends, which are not built yet"),
    Refusal("mesh", "meshes belong to the xla and keras backends, which are not built yet"),
    Refusal(
        "provisioning.mode",
        "this provisioning mode is not built yet",
        "Use onDemand or spot.",
        lambda value: value in ("flexStart", "reservation"),
    ),
    Refusal("provisioning.reservation", "reservations are not built yet"),
    Refusal("scheduling.queue_name", "queueing by Kueue is not built yet"),
    Refusal("scheduling.compute_class", "compute classes are not built yet"),
    Refusal("limits.max_cost", "cost limits are not built yet"),
    Refusal("tracking.tensorboard", "experiment trackers are not built yet", when=_true),
    Refusal("tracking.wandb", "experiment trackers are not built yet"),
    Refusal("tracking.mlflow", "experiment trackers are not built yet"),
    Refusal("ttl_after_finished", "deletion after the end is not built yet"),
)


def value_at(spec: ApiModel, path: str) -> object | None:
    """The value of a field below spec, by a dotted path in Python's names; None where it is not set."""
    value: object | None = spec
    for part in path.split("."):
        if value is None:
            return None
        value = getattr(value, part)
    return value


def unsupported(spec: FineTuneSpec) -> list[Problem]:
    """The set fields of a spec whose behaviour does not exist yet."""
    problems = []
    for refusal in REFUSED:
        value = value_at(spec, refusal.path)
        if value is not None and refusal.when(value):
            path = ".".join(to_camel(part) for part in refusal.path.split("."))
            found = value.model_dump(by_alias=True, exclude_none=True) if isinstance(value, ApiModel) else value
            problems.append(
                Problem(f"spec.{path}", refusal.why, refusal.remedy, shown(found), Reason.NOT_SUPPORTED_YET)
            )
    for index, prompt in enumerate((spec.samples.prompts if spec.samples else None) or []):
        if isinstance(prompt, ImagePrompt):
            problems.append(
                Problem(
                    f"spec.samples.prompts[{index}]",
                    "prompts with images are not built yet",
                    "Write the prompt as a text.",
                    shown(prompt.model_dump(exclude_none=True)),
                    Reason.NOT_SUPPORTED_YET,
                )
            )
    return problems
