"""What this version refuses because its behaviour does not exist yet: one table, each entry with the reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic.alias_generators import to_camel

from gemmatune_api.base import ApiModel
from gemmatune_api.errors import Problem, shown
from gemmatune_api.names import Reason
from gemmatune_api.spec import FineTuneSpec, ImagePrompt


@dataclass(frozen=True, slots=True)
class Refusal:
    """A field that this version refuses, or some of its values.

    `path` is the field below spec in Python's names. Refused are the `values` or the URIs of the `schemes`; where none
    of them is given, every value.
    """

    path: str
    why: str
    remedy: str = "Remove the field."
    values: tuple[str | int | bool, ...] = ()
    schemes: tuple[str, ...] = ()

    def refuses(self, value: object) -> bool:
        """Whether a value that is set is among the refused ones."""
        if self.values:
            return value in self.values
        if self.schemes:
            return str(value).split("://", 1)[0] in self.schemes
        return True

    @property
    def refused(self) -> tuple[str, ...]:
        """The refused values as text; empty where every value is."""
        schemes = tuple(f"{scheme}://" for scheme in self.schemes)
        return (*map(_text, self.values), *schemes)


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_USE_TORCH = "Use backend torch with accelerator.gpu or accelerator.cpu."
_USE_OTHER_SOURCE = "Use hf://, ms://, gs://, pvc:// or file://."

REFUSED: tuple[Refusal, ...] = (
    Refusal("model.uri", "this source is not built yet", _USE_OTHER_SOURCE, schemes=("kaggle",)),
    Refusal("dataset.image_text", "training on images is not built yet", "Use text, instruct or chat."),
    Refusal("backend", "this backend is not built yet", _USE_TORCH, values=("xla",)),
    Refusal("accelerator.tpu", "TPUs are not built yet", _USE_TORCH),
)


def value_at(spec: ApiModel, path: str) -> object | None:
    """The value of a field below spec, by a dotted path in Python's names; None where it is not set."""
    value: object | None = spec
    for part in path.split("."):
        if value is None:
            return None
        value = getattr(value, part)
    return value


def unsupported(spec: FineTuneSpec, refused: Iterable[Refusal] = REFUSED) -> list[Problem]:
    """The set fields of a spec whose behaviour does not exist yet, by the table `refused`."""
    problems = []
    for refusal in refused:
        value = value_at(spec, refusal.path)
        if value is not None and refusal.refuses(value):
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
