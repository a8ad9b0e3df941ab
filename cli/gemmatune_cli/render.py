"""`gft render`: the exact objects that the operator would create for a resource, by the operator's own functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gemmatune_api.status import Attempt, Plan
    from gemmatune_cli.planning import Planned
    from gemmatune_operator.ports import Object
    from gemmatune_operator.settings import Settings

PLACEHOLDER_UID = "00000000-0000-0000-0000-000000000000"
"""UID of a resource that no API server has given one; the real one replaces it in labels, owner and RunConfig."""


def command(
    files: Annotated[list[str], typer.Argument(help="YAML or JSON files, folders of them, or - for standard input.")],
    attempt: Annotated[int, typer.Option(min=1, help="Number of the attempt whose Job is printed.")] = 1,
    image: Annotated[
        str, typer.Option(help="Image of the resource's backend, where the operator was installed with another.")
    ] = "",
    model: Annotated[str | None, typer.Option(help="Model of the catalog, where the URI does not tell.")] = None,
) -> None:
    """Print the Jobs and access objects that the operator would create, as YAML.

    A file of `kubectl get gft NAME -o yaml` gives the objects of that very run: its UID, plan and attempts are used.
    Without them the UID is all zeros, and the plan is the one before the data is known.
    """
    from gemmatune_cli.documents import fine_tunes
    from gemmatune_operator.settings import Settings

    for resource in fine_tunes(files):
        from gemmatune_cli.planning import planned, require_output, with_image

        found = planned(resource, model=model)
        require_output(found.resource)
        settings = with_image(Settings(), found.resource.spec, image)
        for rendered in objects(found, attempt, settings):
            typer.echo("---")
            typer.echo(text(rendered), nl=False)


def text(rendered: Object) -> str:
    """An object as YAML, its fields in the order in which they were built."""
    import yaml

    return yaml.safe_dump(rendered, sort_keys=False, allow_unicode=True, width=1_000_000)


def objects(found: Planned, number: int, settings: Settings) -> Iterator[Object]:
    """Access objects, the preparation's Job, the objects of attempt `number` and the merge's Job, as created."""
    from gemmatune_api import runconfig
    from gemmatune_api.status import Overrides
    from gemmatune_operator.manifests import access, attempt, merge, prepare
    from gemmatune_operator.observe import status_of

    resource = found.resource
    if not resource.metadata.uid:
        metadata = resource.metadata.model_copy(update={"uid": PLACEHOLDER_UID})
        resource = resource.model_copy(update={"metadata": metadata})
    spec, metadata = resource.spec, resource.metadata
    status = status_of(resource.status)
    plan: Plan = status.plan or found.plan
    identity = runconfig.RunIdentity(name=metadata.name, namespace=metadata.namespace, uid=metadata.uid)
    yield from access.objects(metadata.namespace, spec.pod.service_account_name if spec.pod else None)
    preparation = status.prepare.number if status.prepare else 1
    cache = status.defaults.model_cache if status.defaults else None
    config = runconfig.build(spec, identity, preparation, plan, model_cache=cache)
    yield prepare.job(resource, config, preparation, settings)
    record = _record(found, status.attempts, number)
    config = runconfig.build(spec, identity, number, plan, record.overrides, cache)
    yield from attempt.objects(resource, config, plan, record, settings)
    if plan.merge is not None:
        number, overrides = (status.merge.number, status.merge.overrides) if status.merge else (1, None)
        config = runconfig.build(spec, identity, number, plan, model_cache=cache)
        yield merge.job(resource, config, plan.merge, overrides or Overrides(), number, settings)


def _record(found: Planned, recorded: list[Attempt], number: int) -> Attempt:
    """The attempt as the status has it, else as it would be without failures before it."""
    from gemmatune_api.names import Role, job_name
    from gemmatune_api.status import Attempt

    for attempt in recorded:
        if attempt.number == number:
            return attempt
    provisioning = found.resource.spec.provisioning
    mode = (provisioning.mode if provisioning else None) or "onDemand"
    return Attempt(number=number, job=job_name(found.resource.metadata.name, Role.TRAIN, number), provisioning=mode)
