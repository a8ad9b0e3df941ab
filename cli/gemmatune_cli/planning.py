"""What the operator would make of a resource: resolved spec, model and plan, from what this machine can know."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from gemmatune_api import catalog, defaults, fit, site_defaults
from gemmatune_api.catalog import GemmaModel
from gemmatune_api.prices import Prices
from gemmatune_api.spec import FineTuneSpec, GemmaFineTune
from gemmatune_api.status import Plan
from gemmatune_cli.console import CommandError
from gemmatune_operator.observe import status_of
from gemmatune_operator.settings import Settings


@dataclass(frozen=True, slots=True)
class Planned:
    """A resource with every default, its model and its plan."""

    resource: GemmaFineTune
    model: GemmaModel
    plan: Plan


def planned(
    resource: GemmaFineTune,
    *,
    model: str | None = None,
    rows: int | None = None,
    longest: int | None = None,
    host_memory: int = 0,
    prices: Prices | None = None,
) -> Planned:
    """The plan at admission; with `rows` and `longest` (tokens of the longest row) the one after preparation.

    `host_memory` is what a run without accelerator has, in bytes; 0 where unknown.

    Raises:
        CommandError: the model cannot be told from its URI, and `model` names none.
    """
    if recorded := status_of(resource.status).defaults:
        resource = site_defaults.applied(resource, recorded)
    spec = defaults.resolve(resource.spec)
    found = _model(spec, model)
    plan = fit.plan(spec, found, rows=rows, longest=longest, host_memory=host_memory, prices=prices)
    return Planned(resource.model_copy(update={"spec": spec}), found, plan)


def require_output(resource: GemmaFineTune) -> None:
    """What needs to know where results go cannot go on without.

    Raises:
        CommandError: the resource does not say it; only in its cluster a default may.
    """
    if not resource.spec.output.uri:
        remedy = "Set output.uri; a default of the cluster is known to its operator only."
        raise CommandError("spec.output.uri: is not set", remedy)


def with_image(settings: Settings, spec: FineTuneSpec, image: str) -> Settings:
    """The settings with another trainer image for the backend of a resource; "" leaves them as they are."""
    if not image:
        return settings
    backend = defaults.backend_of(spec)
    if backend in settings.tpu_images:
        return replace(settings, tpu_images={**settings.tpu_images, backend: image})
    return replace(settings, image=image)


def _model(spec: FineTuneSpec, name: str | None) -> GemmaModel:
    uri = spec.model.uri
    if name is not None:
        named = catalog.by_name(name)
        if named is None:
            known = ", ".join(model.name for model in catalog.models())
            raise CommandError(f"--model {name}: no model of the catalog", f"Name one of {known}.")
        return named
    found = _local(uri) if uri.startswith("file://") else catalog.by_uri(uri)
    if found is None:
        if uri.startswith("file://") and not Path(uri.removeprefix("file://")).exists():
            raise CommandError(f"spec.model.uri {uri}: the folder does not exist", "Correct it, or add --model NAME.")
        raise CommandError(
            f"spec.model.uri {uri}: which Gemma this is cannot be told from here",
            "Add --model NAME, such as --model gemma-2-2b. In a cluster the preparation reads the model's config.json.",
        )
    return found


def _local(uri: str) -> GemmaModel | None:
    file = Path(uri.removeprefix("file://")) / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return catalog.by_uri(uri)
    except (OSError, ValueError, RecursionError) as error:
        raise CommandError(f"spec.model.uri {uri}: {file} cannot be read: {error}") from error
    found = catalog.by_config(config) if isinstance(config, dict) else None
    if found is None:
        raise CommandError(f"spec.model.uri {uri}: {file} describes no Gemma", "Name the folder of a Gemma model.")
    return found
