"""Access objects: made once by a process, and again where somebody has deleted them."""

from __future__ import annotations

import pytest

from gemmatune_api import names
from gemmatune_operator.conditions import rfc3339
from tests.support.play import NAMESPACE, SPEC, Moody, Play

pytestmark = pytest.mark.usefixtures("both_ways")
ACCOUNT = ("ServiceAccount", NAMESPACE, names.TRAINER_SERVICE_ACCOUNT)


def creations(play: Play) -> list[str]:
    assert isinstance(play.cluster, Moody)
    return [name for name in play.cluster.calls if name == "create"]


def refused(play: Play) -> None:
    """The Job controller's Event about a pod that it may not make."""
    job = play.job("quotes-p1")
    about = {"kind": "Job", "namespace": NAMESPACE, "name": "quotes-p1", "uid": job["metadata"]["uid"]}
    message = 'error looking up service account team/gemmatune-trainer: serviceaccount "gemmatune-trainer" not found'
    event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e1", "namespace": NAMESPACE}}
    told = {"involvedObject": about, "reason": "FailedCreate", "message": message, "lastTimestamp": rfc3339(play.now)}
    play.store.create({**event, **told})


def test_made_once() -> None:
    """A second run of the namespace creates its Job and nothing else."""
    play = Play()
    play.cluster = Moody(play.cluster, lambda name: None)  # type: ignore[assignment]
    play.look()
    assert len(creations(play)) == 4
    second = Play({**SPEC, "output": {"uri": "gs://bucket/second"}}, name="second", store=play.store)
    second.tools = play.tools
    second.cluster = Moody(play.tools.cluster, lambda name: None)  # type: ignore[assignment]
    second.look()
    assert len(creations(second)) == 1
    assert second.jobs() == ["quotes-p1", "second-p1"]


def test_made_again() -> None:
    play = Play()
    play.makes_pods = False
    play.look()
    play.store.remove(*ACCOUNT)
    play.wait(5)
    assert play.store.get(*ACCOUNT) is None, "nobody has missed it yet"
    refused(play)
    play.look()
    assert play.store.get(*ACCOUNT) is not None
