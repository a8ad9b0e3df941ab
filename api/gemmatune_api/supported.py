"""What this version refuses because its behaviour does not exist yet: one table, each entry with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pydantic.alias_generators import to_camel

from gemmatune_api import accelerators, catalog
from gemmatune_api.base import ApiModel
from gemmatune_api.defaults import backend_of
from gemmatune_api.errors import Problem, either, shown
from gemmatune_api.names import Reason
from gemmatune_api.spec import FineTuneSpec
from gemmatune_api.trainable import family_refused


@dataclass(frozen=True, slots=True)
class Refusal:
    """A field that this version refuses, or some of its values.

    `path` is the field below spec in Python's names. Refused are the `values`; where none is given, every value. `when`
    bounds that to some specs, which `where` names for the reference; `choices` names what a spec could have instead,
    more exactly than `remedy` can.
    """

    path: str
    why: str
    remedy: str = "Remove the field."
    values: tuple[str | int | bool, ...] = ()
    where: str = ""
    when: Callable[[FineTuneSpec], bool] | None = None
    choices: Callable[[FineTuneSpec], str] | None = None

    def refuses(self, spec: FineTuneSpec, value: object) -> bool:
        """Whether a value that is set is among the refused ones."""
        if self.when is not None and not self.when(spec):
            return False
        return value in self.values if self.values else True

    @property
    def refused(self) -> tuple[str, ...]:
        """The refused values as text; empty where every value is."""
        return tuple(map(_text, self.values))


def _text(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _xla(spec: FineTuneSpec) -> bool:
    return backend_of(spec) == "xla"


def _images(spec: FineTuneSpec) -> bool:
    return spec.dataset.image_text is not None


def _several_hosts(spec: FineTuneSpec) -> bool:
    wanted = spec.accelerator.tpu
    found = accelerators.tpu(wanted.type) if wanted else None
    if wanted is None or found is None or not _xla(spec):
        return False
    try:
        return found.hosts(wanted.topology, wanted.chips_per_node) > 1
    except ValueError:  # no such slice: another rule says so
        return False


def _of_one_host(spec: FineTuneSpec) -> str:
    """The slices of the TPU type that one host has as a remedy, and backend keras where it may train the model."""
    found = accelerators.tpu(spec.accelerator.tpu.type) if spec.accelerator.tpu else None
    names = []
    for topology, chips in found.of_one_host if found else ():
        several = len(found.chips_per_node(topology)) > 1 if found else False
        names.append(f"{topology} with chipsPerNode {chips}" if several else topology)
    model = catalog.by_uri(spec.model.uri)
    keras = model is None or family_refused("keras", model) is None
    return f"Use a slice of one host: topology {either(names)}{'; or use backend keras' if keras else ''}."


REFUSED: tuple[Refusal, ...] = (
    Refusal(
        "output.merge",
        "merging the adapter of a PaliGemma is not built yet",
        "Remove it: PEFT's merge_and_unload merges what the run leaves.",
        values=(True,),
        where="with dataset.imageText",
        when=_images,
    ),
    Refusal(
        "accelerator.tpu",
        "backend xla on slices of several hosts is not verified: no mesh over several hosts has run",
        "Use a slice of one host, or backend keras.",
        where="of several hosts, with backend xla",
        when=_several_hosts,
        choices=_of_one_host,
    ),
    Refusal(
        "accelerator.tpu.type",
        "each of its chips is two devices, which plan and mesh do not count yet",
        "Use another TPU type.",
        values=("tpu7x",),
    ),
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
        if value is not None and refusal.refuses(spec, value):
            path = ".".join(to_camel(part) for part in refusal.path.split("."))
            found = value.model_dump(by_alias=True, exclude_none=True) if isinstance(value, ApiModel) else value
            remedy = refusal.choices(spec) if refusal.choices else refusal.remedy
            problems.append(Problem(f"spec.{path}", refusal.why, remedy, shown(found), Reason.NOT_SUPPORTED_YET))
    return problems
