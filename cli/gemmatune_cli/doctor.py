"""`gft doctor`: finds what keeps runs of a namespace from working, with the rights of whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
import urllib3
from rich.text import Text

from gemmatune_api import names
from gemmatune_cli import checkpod, checkup
from gemmatune_cli.checkup import Finding, Verdict
from gemmatune_cli.console import FAILED, CommandError, output
from gemmatune_cli.documents import fine_tunes
from gemmatune_cli.planning import planned, require_output
from gemmatune_cli.remote import Connection, Context, connect
from gemmatune_cli.render import objects
from gemmatune_operator.settings import Settings

if TYPE_CHECKING:
    from gemmatune_api.spec import GemmaFineTune

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
        str, typer.Option("--image", help="The trainer's image, where the operator's Deployment may not be read.")
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
    try:
        for finding in _findings(cluster, chosen, resource, pod=pod, image=image, model=model, patience=patience):
            wrong = wrong or finding.verdict is Verdict.PROBLEM
            word = Text(f"{finding.verdict.value:<8}", _STYLES[finding.verdict])
            console.print(Text.assemble(word, f" {finding.subject:<15} {finding.message}"))
            for line in finding.remedy.splitlines():
                console.print(Text(f"{'':<24} {line}", "dim"))
    except urllib3.exceptions.HTTPError as error:
        raise CommandError(
            f"the API server does not answer: {error}", "Check the kubeconfig and the network."
        ) from error
    if wrong:
        raise typer.Exit(FAILED)


def _one(file: str) -> GemmaFineTune:
    found = fine_tunes([file])
    if len(found) > 1:
        raise CommandError(f"{file} holds several resources", "Put the one into a file of its own.")
    return found[0]


def _given(resource: GemmaFineTune) -> set[str]:
    return resource.metadata.model_fields_set


def _findings(
    cluster: Connection,
    namespace: str,
    resource: GemmaFineTune | None,
    *,
    pod: bool,
    image: str,
    model: str | None,
    patience: int,
) -> Iterator[Finding]:
    yield checkup.resource_kind(cluster)
    yield checkup.rights(cluster, namespace)
    operator = checkup.operator(cluster)
    yield operator.finding
    if resource is None:
        yield checkup.service_account(cluster, namespace, names.TRAINER_SERVICE_ACCOUNT)
        yield checkup.nodes(cluster, None)
        yield from checkup.quotas(cluster, namespace, None)
        return
    settings = Settings(image=image or operator.image or Settings().image)
    metadata = resource.metadata.model_copy(update={"namespace": namespace})
    found = planned(resource.model_copy(update={"metadata": metadata}), model=model)
    require_output(found.resource)
    if found.plan.verdict == "does not fit":
        yield Finding(Verdict.PROBLEM, "plan", "it does not fit the accelerator", "; ".join(found.plan.remedies))
    jobs = {item["metadata"]["name"]: item for item in objects(found, 1, settings) if item["kind"] == "Job"}
    preparation, attempt = (_template(jobs, metadata.name, role) for role in (names.Role.PREPARE, names.Role.TRAIN))
    account = checkup.service_account(cluster, namespace, attempt["spec"]["serviceAccountName"])
    yield account
    for template in (preparation, attempt):
        yield from checkup.secrets(cluster, namespace, template["spec"])
    yield checkup.nodes(cluster, attempt["spec"])
    yield from checkup.quotas(cluster, namespace, attempt["spec"])
    if pod:
        named = resource.spec.pod.image if resource.spec.pod else None
        known = bool(image or operator.image or named)
        yield from _access(cluster, namespace, preparation, account, patience, known=known)


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


def _template(jobs: dict[str, Any], run: str, role: names.Role) -> dict[str, Any]:
    found: dict[str, Any] = jobs[names.job_name(run, role, 1)]["spec"]["template"]
    return found
