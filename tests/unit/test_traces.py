"""Traces: what a collector gets, what sampling leaves, and what a collector that is away costs."""

from __future__ import annotations

import time

import pytest

from gemmatune_operator import traces
from tests.support.collector import collecting
from tests.support.servers import LOOPBACK, free_ports


def test_a_look_has_its_requests_in_it() -> None:
    with collecting() as collector:
        told = traces.to(collector.url, 1.0)
        told.request("list", "Job", 200, 0.25)
        with told.look("team-a", "quotes"):
            told.request("create", "Job", 201, 0.5)
            told.request("get", "Node", 403, 0.01)
        with pytest.raises(ValueError, match="odd"), told.look("team-a", "other"):
            raise ValueError("odd")
        told.end()
    listed, create, get, look, other = collector.spans
    assert (look.name, look.attributes) == ("look", {"k8s.namespace.name": "team-a", "gemmatune.run": "quotes"})
    assert look.resource["service.name"] == traces.SERVICE
    assert not look.failed
    assert [item.name for item in (listed, create, get)] == ["list Job", "create Job", "get Node"]
    assert create.parent == get.parent == look.id
    assert create.trace == look.trace
    assert not listed.parent
    assert listed.trace != look.trace
    assert create.attributes["http.response.status_code"] == 201
    assert create.seconds == pytest.approx(0.5, abs=1e-3)
    assert (create.failed, get.failed, other.failed) == (False, True, True)


def test_a_share_of_the_looks_is_told_whole() -> None:
    with collecting() as collector:
        told = traces.to(collector.url, 0.5)
        for _ in range(200):
            with told.look("team-a", "quotes"):
                told.request("get", "Job", 200, 0.0)
        told.end()
    looks = {span.id for span in collector.spans if span.name == "look"}
    assert 50 < len(looks) < 150
    assert {span.parent for span in collector.spans if span.name == "get Job"} == looks


def test_a_collector_that_is_away_is_not_waited_for() -> None:
    told = traces.to(f"http://{LOOPBACK}:{free_ports(1)[0]}/v1/traces", 1.0)
    began = time.monotonic()
    for _ in range(100):
        with told.look("team-a", "quotes"):
            told.request("get", "Job", 200, 0.0)
    assert time.monotonic() - began < 1
    told.end()
    assert time.monotonic() - began < traces.SECONDS + 1
