"""`gft watch`: follows a resource of a cluster until it has ended, with the view of `gft run`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer
import urllib3
import yaml
from kubernetes import client, config, watch

from gemmatune_api import names
from gemmatune_api.names import Phase
from gemmatune_api.status import FineTuneStatus
from gemmatune_cli.console import CommandError, output
from gemmatune_cli.run import FAILED, INTERRUPTED, SUCCEEDED, ended
from gemmatune_cli.view import summary, view_for
from gemmatune_operator.observe import status_of

WATCH_SECONDS = 300
"""After that time the API server is asked anew: a watch may die without a word."""


def command(
    name: Annotated[str, typer.Argument(help="Name of the GemmaFineTune.")],
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="Its namespace. Default: that of the kubeconfig's context.")
    ] = "",
    context: Annotated[
        str, typer.Option("--context", help="Context of the kubeconfig. Default: the current one.")
    ] = "",
) -> None:
    """Follow a run of a cluster until its end. Exit code 0: Succeeded, 1: Failed or deleted, 130: stopped watching."""
    cluster = connect(context)
    found = Watched(cluster.api, namespace or cluster.namespace, name)
    console = output()
    status = FineTuneStatus()
    try:
        with view_for(console) as view:
            for status in found.statuses():
                view.update(status)
                if ended(status):
                    break
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except client.ApiException as error:
        raise api_error(error, found) from error
    except urllib3.exceptions.HTTPError as error:
        raise CommandError(
            f"the API server does not answer: {error}", "Check the kubeconfig and the network."
        ) from error
    summary(console, status)
    if not ended(status):
        raise CommandError(f"{found} was deleted")
    raise typer.Exit(SUCCEEDED if status.phase == Phase.SUCCEEDED else FAILED)


@dataclass(frozen=True, slots=True)
class Connection:
    """A cluster, and the namespace that the kubeconfig names."""

    api: Any
    namespace: str


def connect(context: str) -> Connection:
    """The cluster of the kubeconfig, or the one whose pod this is.

    Raises:
        CommandError: there is neither.
    """
    try:
        _, current = config.list_kube_config_contexts()
        if context:
            current = next((item for item in config.list_kube_config_contexts()[0] if item["name"] == context), current)
        api = client.CustomObjectsApi(config.new_client_from_config(context=context or None))
        return Connection(api, current["context"].get("namespace") or "default")
    except config.ConfigException as error:
        try:
            config.load_incluster_config()
        except config.ConfigException:
            raise CommandError(
                f"no cluster: {error}", "Set KUBECONFIG, or follow a run of this machine with `gft run`."
            ) from error
        return Connection(client.CustomObjectsApi(), "default")
    except yaml.YAMLError as error:
        raise CommandError(f"the kubeconfig is no YAML: {' '.join(str(error).split())}", "Correct it.") from error


@dataclass(frozen=True, slots=True)
class Watched:
    """A resource to follow."""

    api: Any
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{names.KIND} {self.namespace}/{self.name}"

    def statuses(self) -> Iterator[FineTuneStatus]:
        """Its status now and after every change, until it is deleted.

        Raises:
            ApiException: it does not exist, or may not be read.
        """
        where = (names.GROUP, names.VERSION, self.namespace, names.PLURAL)
        while True:
            found = self.api.get_namespaced_custom_object(*where, self.name)
            yield status_of(found.get("status"))
            stream = watch.Watch().stream(
                self.api.list_namespaced_custom_object,
                *where,
                field_selector=f"metadata.name={self.name}",
                resource_version=found["metadata"]["resourceVersion"],
                timeout_seconds=WATCH_SECONDS,
            )
            try:
                for event in stream:
                    if event["type"] == "DELETED":
                        return
                    yield status_of(event["object"].get("status"))
            except client.ApiException as error:
                if error.status != 410:  # 410: the version is too old by now, look anew
                    raise
            except urllib3.exceptions.ProtocolError:
                continue  # the connection broke; looking anew tells whether the API server is there


def api_error(error: Any, watched: Watched) -> CommandError:
    """What an answer of the API server means to a person."""
    if error.status == 404:
        return CommandError(f"{watched} does not exist", "`kubectl get gft -A` lists the resources and namespaces.")
    if error.status in (401, 403):
        return CommandError(f"{watched} may not be read: {error.reason}", "Ask for the right to get and watch it.")
    return CommandError(f"{watched}: the API server answered {error.status} {error.reason}")
