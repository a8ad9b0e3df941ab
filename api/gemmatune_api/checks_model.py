"""The rules for what a backend trains of a model, as far as the URI names one; prepare asks them again of the files."""

from __future__ import annotations

from collections.abc import Iterator

from gemmatune_api import catalog, trainable
from gemmatune_api.defaults import backend_of
from gemmatune_api.errors import Problem, shown
from gemmatune_api.spec import FineTuneSpec


def family(spec: FineTuneSpec) -> Iterator[Problem]:
    """A model whose layers the backend has."""
    model = catalog.by_uri(spec.model.uri)
    refused = trainable.family_refused(backend_of(spec), model) if model is not None else None
    if refused is not None:
        yield Problem("spec.model.uri", *refused, shown(spec.model.uri))


def modules(spec: FineTuneSpec) -> Iterator[Problem]:
    """Target modules that the model has; a preset always names some."""
    for name, block in (("lora", spec.lora), ("qlora", spec.qlora)):
        targets = block.target_modules if block is not None else None
        if not isinstance(targets, list):
            continue
        refused = trainable.modules_refused(backend_of(spec), targets, catalog.by_uri(spec.model.uri))
        if refused is not None:
            wrong, message, remedy = refused
            yield Problem(f"spec.{name}.targetModules", message, remedy, shown(wrong))
