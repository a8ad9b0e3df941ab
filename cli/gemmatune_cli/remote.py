"""The cluster behind gft's commands: who answers, one resource by its name, and what a refusal means to a person."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Annotated, Any, Self

import typer
import urllib3
import yaml
from kubernetes import client, config, watch

from gemmatune_api import names
from gemmatune_api.names import Phase
from gemmatune_api.status import FineTuneStatus
from gemmatune_cli import kubeconfig
from gemmatune_cli.console import CommandError, harmless
from gemmatune_cli.outage import PAUSE_SECONDS, Outage
from gemmatune_cli.refusals import answers
from gemmatune_cli.results import Context as Context
from gemmatune_cli.run import ended
from gemmatune_operator.observe import status_of

WATCH_SECONDS = 300
"""After that time the API server is asked anew: a watch may die without a word."""
CONNECT_SECONDS, REQUEST_SECONDS = 10, 30
"""How long an API server may take to accept a connection, and be silent before and within an answer."""
LATE_SECONDS = 15
"""How long after the time that a watch was given its end may come."""
FOLLOWED_SECONDS = 86400
"""The same for a log that is followed, which may be silent for hours; the kernel's probes find out earlier whether the
other side is gone."""
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
    """The cluster of the kubeconfig's context, or, where there is no kubeconfig, the one whose pod this is.

    Raises:
        CommandError: there is none of that name, or neither.
    """
    try:
        found = kubeconfig.chosen(context)
        if found is None:
            return _of_pod()
        api = config.new_client_from_config(found.files, found.context, client_configuration=_configuration())
    except config.ConfigException as error:
        raise CommandError(
            f"no cluster: {error}", "Set KUBECONFIG, or follow a run of this machine with `gft run`."
        ) from error
    except yaml.YAMLError as error:
        raise CommandError(f"the kubeconfig is no YAML: {' '.join(str(error).split())}", "Correct it.") from error
    return Connection(_bounded(api), found.namespace)


def _of_pod() -> Connection:
    """The cluster in whose pod this runs. Raises ConfigException where it is no pod, or has no token."""
    found = _configuration()
    try:
        config.load_incluster_config(client_configuration=found)
    except config.ConfigException as error:
        raise config.ConfigException(f"there is no kubeconfig, and this is no pod with a token: {error}") from error
    return Connection(_bounded(client.ApiClient(found)), kubeconfig.pod_namespace())


def _configuration() -> Any:
    found = client.Configuration()
    found.keep_alive = True  # the kernel asks whether the other side is there, where a connection is silent
    found.retries = _Once(3)
    return found


class _Once(urllib3.Retry):
    """Repeats a request whose connection broke, as by default, but none that was not answered in its time.

    Four that nobody answers would take four times as long.
    """

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: urllib3.BaseHTTPResponse | None = None,
        error: Exception | None = None,
        _pool: urllib3.connectionpool.ConnectionPool | None = None,
        _stacktrace: TracebackType | None = None,
    ) -> Self:
        if isinstance(error, urllib3.exceptions.TimeoutError):
            raise error
        return super().increment(method, url, response, error, _pool, _stacktrace)


def _bounded(api: Any) -> Any:
    """A client none of whose requests waits for ever: each that names no time of its own gets REQUEST_SECONDS."""
    request = api.rest_client.request

    def bounded(*arguments: Any, _request_timeout: Any = None, **more: Any) -> Any:
        return request(*arguments, _request_timeout=_request_timeout or (CONNECT_SECONDS, REQUEST_SECONDS), **more)

    api.rest_client.request = bounded
    return api


@dataclass(frozen=True, slots=True)
class Look:
    """A resource at one moment."""

    status: FineTuneStatus
    current: bool = True
    """Whether the status answers the spec and the last `gft retry`; else the operator has not looked at them yet."""

    @property
    def ended(self) -> bool:
        """Whether the run has ended for good: a failure that is to be corrected or tried again is no end."""
        return ended(self.status) and (self.current or self.status.phase == Phase.SUCCEEDED)


def look(resource: dict[str, Any]) -> Look:
    """What a resource shows now."""
    meta, status = resource["metadata"], status_of(resource.get("status"))
    asked = (meta.get("annotations") or {}).get(names.ANNOTATION_RETRY)
    retried = not asked or asked == status.observed_retry
    return Look(status, retried and meta.get("generation") == status.observed_generation)


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

    def looks(self, until: float = float("inf")) -> Iterator[Look]:
        """How it is now and after every change, until it is deleted.

        An API server that has answered once may be away for OUTAGE_SECONDS, counted from where it is first missed.

        Args:
            until: by time.monotonic.

        Raises:
            CommandError: it does not exist, may not be read, or nobody answers.
            TimeoutError: `until` is over.
        """
        outage = Outage()
        while True:
            try:
                yield from self._changes(until, outage)
                return
            except (client.ApiException, urllib3.exceptions.HTTPError) as error:
                if not outage.bears(error):
                    with answers(self):
                        raise
            if time.monotonic() >= until:
                raise TimeoutError
            time.sleep(PAUSE_SECONDS)

    def _changes(self, until: float, outage: Outage) -> Iterator[Look]:
        while True:
            wait = max(1.0, min(REQUEST_SECONDS, until - time.monotonic()))
            found = self.cluster.api.get_namespaced_custom_object(
                *self._where, self.name, _request_timeout=(min(CONNECT_SECONDS, wait), wait)
            )
            outage.over()
            yield look(harmless(found))
            rest = until - time.monotonic()
            if rest <= 0:
                raise TimeoutError
            seconds = max(1, int(min(WATCH_SECONDS, rest)))
            stream = watch.Watch().stream(
                self.cluster.api.list_namespaced_custom_object,
                *self._where,
                field_selector=f"metadata.name={self.name}",
                resource_version=found["metadata"]["resourceVersion"],
                timeout_seconds=seconds,
                _request_timeout=(CONNECT_SECONDS, seconds + LATE_SECONDS),
            )
            try:
                for event in stream:
                    if event["type"] == "DELETED":
                        return
                    yield look(harmless(event["object"]))
            except client.ApiException as error:
                if error.status != 410:  # 410: the version is too old by now, look anew
                    raise
            except (urllib3.exceptions.ProtocolError, urllib3.exceptions.ReadTimeoutError):
                continue  # the connection broke or died; looking anew tells whether the API server is there

    @property
    def _where(self) -> tuple[str, str, str, str]:
        return (*_WHERE, self.namespace, names.PLURAL)


def remote(name: str, namespace: str, context: str) -> Remote:
    """The resource of a name. Raises CommandError where there is no cluster."""
    cluster = connect(context)
    return Remote(cluster, namespace or cluster.namespace, name)
