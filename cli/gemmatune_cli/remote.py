"""The cluster behind gft's commands: who answers, one resource by its name, and what a refusal means to a person."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
import urllib3
import yaml
from kubernetes import client, config, watch

from gemmatune_api import names
from gemmatune_api.status import FineTuneStatus
from gemmatune_cli.console import CommandError, harmless
from gemmatune_cli.results import Context as Context
from gemmatune_operator.observe import status_of

WATCH_SECONDS = 300
"""After that time the API server is asked anew: a watch may die without a word."""
OUTAGE_SECONDS = 300.0
"""How long an API server that answered before may be away while a run is followed."""
_PAUSE_SECONDS = 2.0
_WHERE = (names.GROUP, names.VERSION)

Name = Annotated[str, typer.Argument(help="Name of the GemmaFineTune.")]
Namespace = Annotated[
    str, typer.Option("--namespace", "-n", help="Its namespace. Default: that of the kubeconfig's context.")
]


@dataclass(frozen=True, slots=True)
class Connection:
    """A cluster, and the namespace that the kubeconfig names."""

    client: Any
    namespace: str
    api: Any = field(init=False)
    """Custom objects."""
    core: Any = field(init=False)
    """Pods, nodes, Secrets, quotas."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "api", client.CustomObjectsApi(self.client))
        object.__setattr__(self, "core", client.CoreV1Api(self.client))


def connect(context: str) -> Connection:
    """The cluster of the kubeconfig, or the one whose pod this is.

    Raises:
        CommandError: there is neither.
    """
    try:
        contexts, current = config.list_kube_config_contexts()
        if context:
            current = next((item for item in contexts if item["name"] == context), current)
        api = config.new_client_from_config(context=context or None)
        return Connection(api, current["context"].get("namespace") or "default")
    except config.ConfigException as error:
        try:
            config.load_incluster_config()
        except config.ConfigException:
            raise CommandError(
                f"no cluster: {error}", "Set KUBECONFIG, or follow a run of this machine with `gft run`."
            ) from error
        return Connection(client.ApiClient(), "default")
    except yaml.YAMLError as error:
        raise CommandError(f"the kubeconfig is no YAML: {' '.join(str(error).split())}", "Correct it.") from error


@contextmanager
def answers(about: object, verb: str = "read") -> Iterator[None]:
    """Puts an API server's refusal or silence into words; `about` is what was asked for, `verb` what was to be done."""
    try:
        yield
    except client.ApiException as error:
        raise api_error(error, about, verb) from error
    except urllib3.exceptions.HTTPError as error:
        raise CommandError(
            f"the API server does not answer: {error}", "Check the kubeconfig and the network."
        ) from error


def api_error(error: Any, about: object, verb: str = "read") -> CommandError:
    """What an answer of the API server means to a person."""
    if error.status == 404:
        return CommandError(f"{about} does not exist", "`kubectl get gft -A` lists the resources and namespaces.")
    if error.status in (401, 403):
        return CommandError(
            f"{about} may not be {verb}: {error.reason}", "Ask for the right to get, watch and patch it."
        )
    return CommandError(f"{about}: the API server answered {error.status} {reason(error)}")


def reason(error: Any) -> str:
    """The API server's own message, else the HTTP reason."""
    try:
        return str(yaml.safe_load(error.body)["message"])
    except (yaml.YAMLError, TypeError, KeyError):
        return str(error.reason)


@dataclass(frozen=True, slots=True)
class Remote:
    """A resource of a cluster, by its name."""

    cluster: Connection
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{names.KIND} {self.namespace}/{self.name}"

    def get(self) -> dict[str, Any]:
        """The resource. Raises CommandError where it does not exist, or may not be read."""
        with answers(self):
            found: dict[str, Any] = harmless(self.cluster.api.get_namespaced_custom_object(*self._where, self.name))
        return found

    def patch(self, body: dict[str, Any]) -> dict[str, Any]:
        """Merges into the resource; the resource then. Raises CommandError where that is refused."""
        with answers(self, "changed"):
            found: dict[str, Any] = self.cluster.api.patch_namespaced_custom_object(*self._where, self.name, body)
        return found

    def statuses(self, until: float = float("inf")) -> Iterator[FineTuneStatus]:
        """Its status now and after every change, until it is deleted.

        An API server that has answered once may be away for OUTAGE_SECONDS.

        Args:
            until: by time.monotonic.

        Raises:
            CommandError: it does not exist, may not be read, or nobody answers.
            TimeoutError: `until` is over.
        """
        answered = None
        while True:
            try:
                for status in self._changes(until):
                    answered = time.monotonic()
                    yield status
                return
            except (client.ApiException, urllib3.exceptions.HTTPError) as error:
                permanent = isinstance(error, client.ApiException) and error.status < 500 and error.status != 429
                if permanent or answered is None or time.monotonic() - answered > OUTAGE_SECONDS:
                    with answers(self):
                        raise
            if time.monotonic() >= until:
                raise TimeoutError
            time.sleep(_PAUSE_SECONDS)

    def _changes(self, until: float) -> Iterator[FineTuneStatus]:
        while True:
            found = self.cluster.api.get_namespaced_custom_object(*self._where, self.name)
            yield status_of(harmless(found.get("status")))
            rest = until - time.monotonic()
            if rest <= 0:
                raise TimeoutError
            stream = watch.Watch().stream(
                self.cluster.api.list_namespaced_custom_object,
                *self._where,
                field_selector=f"metadata.name={self.name}",
                resource_version=found["metadata"]["resourceVersion"],
                timeout_seconds=max(1, int(min(WATCH_SECONDS, rest))),
            )
            try:
                for event in stream:
                    if event["type"] == "DELETED":
                        return
                    yield status_of(harmless(event["object"].get("status")))
            except client.ApiException as error:
                if error.status != 410:  # 410: the version is too old by now, look anew
                    raise
            except urllib3.exceptions.ProtocolError:
                continue  # the connection broke; looking anew tells whether the API server is there

    @property
    def _where(self) -> tuple[str, str, str, str]:
        return (*_WHERE, self.namespace, names.PLURAL)


def remote(name: str, namespace: str, context: str) -> Remote:
    """The resource of a name. Raises CommandError where there is no cluster."""
    cluster = connect(context)
    return Remote(cluster, namespace or cluster.namespace, name)
