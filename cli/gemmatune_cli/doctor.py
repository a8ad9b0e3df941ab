"""`gft doctor`: finds what keeps runs of a namespace from working, with the rights of whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from gemmatune_api import names, site_defaults
from gemmatune_api.names import Phase
from gemmatune_cli import checkpod, checkup, installation, room
from gemmatune_cli.checkup import Finding, Verdict
from gemmatune_cli.console import FAILED, CommandError, output
from gemmatune_cli.documents import fine_tunes
from gemmatune_cli.installation import Installation
from gemmatune_cli.planning import planned, with_image
from gemmatune_cli.refusals import answers
from gemmatune_cli.remote import Connection, Context, connect
from gemmatune_cli.render import objects
from gemmatune_cli.room import Pods
from gemmatune_operator.observe import status_of
from gemmatune_operator.settings import Settings

if TYPE_CHECKING:
    from gemmatune_api.spec import GemmaFineTune

_ANYWHERE = "gs://not-known/yet"
"""Output of a run of which nobody has said where its results go, so that the rest can be checked."""
_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.PROBLEM: "bold red", Verdict.UNKNOWN: "yellow"}


def command(
    file: Annotated[
        str, typer.Argument(help="YAML or JSON file with the GemmaFineTune to run; without it, what all runs need.")
    ] = "",
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Namespace. Default: the file's, else that of the kubeconfig.")
    ] = "",
    context: Context = "",
    pod: Annotated[
        bool, typer.Option("--pod/--no-pod", help="Whether a short pod checks access to bucket, model and data.")
    ] = True,
    image: Annotated[
        str, typer.Option("--image", help="Image of the resource's backend, where the Deployment may not be read.")
    ] = "",
    model: Annotated[str | None, typer.Option(help="Model of the catalog, where the URI does not tell.")] = None,
    patience: Annotated[
        int, typer.Option("--patience", help="Seconds until the pod must have started: nodes may have to come.", min=1)
    ] = 300,
) -> None:
    """Check what a run needs, as you: the resource, the operator, ServiceAccount, Secrets, nodes, quota.

    With a file a pod of some 20 seconds checks access to bucket, model and data under the run's own identity.
    Exit code 1: something is wrong.
    """
    resource = _one(file) if file else None
    cluster = connect(context)
    # A file without a namespace goes where kubectl would put it.
    written = resource.metadata.namespace if resource is not None and "namespace" in _given(resource) else ""
    chosen = namespace or written or cluster.namespace
    console = output()
    wrong = False
    with answers(f"what a run in namespace {chosen} needs"):
        for finding in _findings(cluster, chosen, resource, _Ways(pod, image, model, patience)):
            wrong = wrong or finding.verdict is Verdict.PROBLEM
            word = Text(f"{finding.verdict.value:<8}", _STYLES[finding.verdict])
            console.print(Text.assemble(word, f" {finding.subject:<15} {finding.message}"))
            for line in finding.remedy.splitlines():
                console.print(Text(f"{'':<24} {line}", "dim"))
    if wrong:
        raise typer.Exit(FAILED)


def _one(file: str) -> GemmaFineTune:
    found = fine_tunes([file])
    if len(found) > 1:
        raise CommandError(f"{file} holds several resources", "Put the one into a file of its own.")
    return found[0]


def _given(resource: GemmaFineTune) -> set[str]:
    return resource.metadata.model_fields_set


@dataclass(frozen=True, slots=True)
class _Ways:
    """How to check, as the options say."""

    pod: bool
    image: str
    model: str | None
    patience: int


def _findings(cluster: Connection, namespace: str, resource: GemmaFineTune | None, ways: _Ways) -> Iterator[Finding]:
    yield checkup.resource_kind(cluster)
    yield checkup.rights(cluster, namespace)
    installed = installation.look(cluster, namespace)
    yield from installed.findings
    if resource is not None:
        meta = resource.metadata.model_copy(update={"namespace": namespace})
        yield from _of_run(cluster, resource.model_copy(update={"metadata": meta}), installed, ways)
        return
    account = installed.defaults.service_account_name or names.TRAINER_SERVICE_ACCOUNT
    yield checkup.service_account(cluster, namespace, account)
    yield room.nodes(cluster, None)
    yield from room.quotas(cluster, namespace, None)


def _of_run(cluster: Connection, resource: GemmaFineTune, installed: Installation, ways: _Ways) -> Iterator[Finding]:
    namespace = resource.metadata.namespace
    settings = with_image(installed.settings or Settings(), resource.spec, ways.image)
    found = planned(
        _with_defaults(resource, installed),
        model=ways.model,
        host_memory=settings.host_memory,
        prices=settings.prices or None,
    )
    decided = bool(found.resource.spec.output.uri)
    if not decided:
        yield _without_output(found.resource, installed)
        found = replace(found, resource=_with_output(found.resource, _ANYWHERE))
    if found.plan.verdict == "does not fit":
        short = "its machine's host memory" if found.plan.host_short else "the accelerator"
        yield Finding(Verdict.PROBLEM, "plan", f"it does not fit {short}", "; ".join(found.plan.remedies))
    newest = max((item.number for item in status_of(resource.status).attempts), default=0)
    jobs = [item for item in objects(found, newest + 1, settings) if item["kind"] == "Job"]
    preparation, attempt = (_job(jobs, role) for role in (names.Role.PREPARE, names.Role.TRAIN))
    pods = Pods.of(attempt)
    account = checkup.service_account(cluster, namespace, pods.spec["serviceAccountName"])
    yield account
    for job in (preparation, attempt):
        yield from checkup.secrets(cluster, namespace, job["spec"]["template"]["spec"])
    yield room.nodes(cluster, pods)
    yield from room.quotas(cluster, namespace, pods)
    if ways.pod and decided:
        named = resource.spec.pod.image if resource.spec.pod else None
        known = bool(ways.image or installed.settings or named)
        yield from _access(cluster, namespace, preparation["spec"]["template"], account, ways.patience, known=known)


def _with_defaults(resource: GemmaFineTune, installed: Installation) -> GemmaFineTune:
    """The resource as the operator would take it up now: one that has begun keeps the defaults that it began with."""
    status = status_of(resource.status)
    if status.attempts or status.phase not in ("", Phase.PENDING, Phase.FAILED):
        return resource
    taken = installed.defaults.model_dump(by_alias=True, exclude_none=True)
    return resource.model_copy(update={"status": {**(resource.status or {}), "defaults": taken}})


def _without_output(resource: GemmaFineTune, installed: Installation) -> Finding:
    (problem,) = site_defaults.without_output(resource)
    message = f"{problem.path} {problem.message}"
    if installed.whole:
        return Finding(Verdict.PROBLEM, "output", message, problem.remedy)
    message = "where the results would go is not known, and access is not checked: the file does not say it"
    return Finding(Verdict.UNKNOWN, "output", message, "Set output.uri, or ask somebody who may read the defaults.")


def _with_output(resource: GemmaFineTune, uri: str) -> GemmaFineTune:
    output_ = resource.spec.output.model_copy(update={"uri": uri})
    return resource.model_copy(update={"spec": resource.spec.model_copy(update={"output": output_})})


def _access(
    cluster: Connection, namespace: str, template: dict[str, Any], account: Finding, patience: int, *, known: bool
) -> Iterator[Finding]:
    if not known:
        yield Finding(Verdict.UNKNOWN, "pod", "the trainer's image is not known", "Name it with --image.")
    elif account.verdict in (Verdict.OK, Verdict.UNKNOWN):
        yield from checkpod.access(cluster, namespace, template, patience)
    else:
        remedy = f"kubectl create serviceaccount {template['spec']['serviceAccountName']} -n {namespace}"
        yield Finding(Verdict.UNKNOWN, "pod", "access is not checked: the ServiceAccount does not exist", remedy)


def _job(jobs: list[dict[str, Any]], role: names.Role) -> dict[str, Any]:
    (found,) = (job for job in jobs if job["metadata"]["labels"][names.LABEL_ROLE] == role)
    return found
