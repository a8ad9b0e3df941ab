"""`gft logs`: what the pods of a run have written, attempt after attempt."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Annotated, Any

import typer
import urllib3
from kubernetes import client

from gemmatune_api import names
from gemmatune_api.names import Role
from gemmatune_cli.console import CommandError
from gemmatune_cli.outage import PAUSE_SECONDS as RETRY_SECONDS
from gemmatune_cli.outage import Outage
from gemmatune_cli.refusals import UNAUTHORIZED, answers, api_error, reason, silence
from gemmatune_cli.remote import (
    CONNECT_SECONDS,
    FOLLOWED_SECONDS,
    REQUEST_SECONDS,
    Context,
    Name,
    Namespace,
    Remote,
    look,
    remote,
)
from gemmatune_cli.run import INTERRUPTED
from gemmatune_operator.observe import status_of

PAUSE_SECONDS = 1.0
_OVERLOADED = (429, 503)
"""Answers of an API server that starts, ends or has too much to do."""
_INDEX = "batch.kubernetes.io/job-completion-index"


def command(
    name: Name,
    namespace: Namespace = "",
    context: Context = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with the pods that come, until the run has ended.")
    ] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", help="Only the last lines of the first pod. Default: all.", min=0)
    ] = None,
    attempt: Annotated[
        int | None, typer.Option("--attempt", help="Of this attempt. Default: of the newest pod.", min=1)
    ] = None,
    role: Annotated[Role | None, typer.Option("--role", help="Of a preparation, a training or a merge.")] = None,
    host: Annotated[int, typer.Option("--host", help="Which pod of an attempt with several.", min=0)] = 0,
) -> None:
    """Print what the newest pod of a run has written: its preparation, an attempt, or its merge."""
    found = remote(name, namespace, context)
    uid = found.get()["metadata"]["uid"]
    labels = {names.LABEL_RUN_UID: uid}
    if attempt:
        labels |= {names.LABEL_ATTEMPT: str(attempt), names.LABEL_ROLE: (role or Role.TRAIN).value}
    elif role:
        labels[names.LABEL_ROLE] = role.value
    pods = Pods(found, ",".join(f"{label}={value}" for label, value in labels.items()), host)
    try:
        for line in _followed(pods, tail) if follow else _once(pods, tail):
            typer.echo(line)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


class Pods:
    """The pods of a run.

    Args:
        run: the run.
        selector: their labels.
        host: their place in an attempt with several.
    """

    def __init__(self, run: Remote, selector: str, host: int) -> None:
        self.run = run
        self._selector = selector
        self._host = host

    def newest(self) -> Any | None:
        """The newest pod; None where there is none."""
        with answers(f"pods of {self.run}"):
            found = self.run.cluster.core.list_namespaced_pod(self.run.namespace, label_selector=self._selector).items
        mine = [pod for pod in found if int((pod.metadata.annotations or {}).get(_INDEX, 0)) == self._host]
        return max(mine, key=lambda pod: (pod.metadata.creation_timestamp, pod.metadata.name), default=None)

    def log(self, pod: Any, *, follow: bool, tail: int | None = None, seconds: int | None = None) -> Iterator[str]:
        """The last `tail` lines of a pod, or those of the last `seconds`; with `follow` until it has ended.

        Raises:
            ApiException: it has none yet, or may not be read.
            HTTPError: the connection broke.
        """
        more = {name: value for name, value in (("tail_lines", tail), ("since_seconds", seconds)) if value is not None}
        answer = self.run.cluster.core.read_namespaced_pod_log(
            pod.metadata.name,
            self.run.namespace,
            container=names.CONTAINER,
            follow=follow,
            _preload_content=False,
            _request_timeout=(CONNECT_SECONDS, FOLLOWED_SECONDS if follow else REQUEST_SECONDS),
            **more,
        )
        rest = b""
        for piece in answer.stream(amt=None):
            *lines, rest = (rest + piece).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
        if rest:
            yield rest.decode(errors="replace")

    def ended(self) -> bool:
        """Whether the run has ended, or is gone."""
        try:
            return look(self.run.get()).ended
        except CommandError as error:
            if isinstance(error.__cause__, client.ApiException) and error.__cause__.status == 404:
                return True
            raise


def _once(pods: Pods, tail: int | None) -> Iterator[str]:
    pod = pods.newest()
    if pod is None:
        status = status_of(pods.run.get().get("status"))
        raise CommandError(f"{pods.run} has no such pod. {status.message}".rstrip(), status.remedy)
    try:
        yield from pods.log(pod, follow=False, tail=tail)
    except client.ApiException as error:
        if error.status == UNAUTHORIZED:
            raise api_error(error, f"log of pod {pod.metadata.name}") from error
        raise CommandError(f"pod {pod.metadata.name} has no log to read: {reason(error)}", _waits(pod)) from error
    except urllib3.exceptions.HTTPError as error:
        raise silence(error) from error


def _followed(pods: Pods, tail: int | None) -> Iterator[str]:
    """The log of one pod after the other, until the run has ended and the last one was read to its end.

    The API server may be away meanwhile, as for `gft watch`.
    """
    outage = Outage(answered=True)  # else there would be no pods to ask for
    read: set[str] = set()
    while True:
        over = outage.outlasted(pods.ended)
        pod = outage.outlasted(pods.newest)
        if pod is not None and pod.metadata.uid not in read and pod.status.phase != "Pending":
            yield f"==> {pod.metadata.name}"
            yield from _to_its_end(pods, pod, None if read else tail, outage)
            read.add(pod.metadata.uid)
        elif over:
            return
        else:
            time.sleep(PAUSE_SECONDS)


def _to_its_end(pods: Pods, pod: Any, tail: int | None, outage: Outage) -> Iterator[str]:
    """The log of one pod; where the connection breaks it goes on, with the last second before once more."""
    seconds: int | None = None
    last: float | None = None
    away = Outage(answered=True)  # of the log alone: the API server may answer, and yet not for this pod
    while True:
        try:
            for line in pods.log(pod, follow=True, tail=tail, seconds=seconds):
                away.over()
                last = time.monotonic()
                yield line
            return
        except client.ApiException as error:
            # Another answer is one on the pod: its node is away, or it is deleted.
            if error.status not in _OVERLOADED or not away.bears(error):
                yield f"==> no more of it can be read: {reason(error)}"
                return
        except urllib3.exceptions.HTTPError:
            yield "==> the connection broke"
        outage.outlasted(pods.ended)
        time.sleep(RETRY_SECONDS)
        if last is not None:  # else all of it is still to come
            tail, seconds = None, int(time.monotonic() - last) + 2


def _waits(pod: Any) -> str:
    states = [item.state.waiting for item in pod.status.container_statuses or [] if item.state and item.state.waiting]
    return f"It waits: {states[0].reason}. {states[0].message or ''}".rstrip() if states else ""
