"""Leader election: two candidates over one Lease with a clock that the test moves."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gemmatune_operator import election
from gemmatune_operator.election import Election, Terms
from gemmatune_operator.ports import AlreadyExistsError, ConflictError, Object, UnavailableError

TERMS = Terms("gemmatune-operator", "system", lease=15.0, renew=10.0, retry=2.0)


class Store:
    """One Lease with resourceVersions; `trouble` runs before every write."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.now = 100.0
        self.trouble: Callable[[], Awaitable[None]] | None = None
        self.writes = 0

    def clock(self) -> float:
        return self.now

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        assert (kind, namespace, name) == ("Lease", "system", "gemmatune-operator")
        return copy.deepcopy(self.lease)

    async def create(self, obj: Object) -> Object:
        await self._before()
        if self.lease is not None:
            raise AlreadyExistsError("taken")
        return self._stored(obj)

    async def replace(self, obj: Object) -> Object:
        await self._before()
        if self.lease is None or obj["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ConflictError("changed")
        return self._stored(obj)

    async def _before(self) -> None:
        if self.trouble is not None:
            await self.trouble()

    def _stored(self, obj: Object) -> Object:
        self.writes += 1
        self.lease = copy.deepcopy(obj)
        self.lease["metadata"]["resourceVersion"] = str(self.writes)
        return self.lease

    def candidate(self, name: str) -> Election:
        return Election(self, TERMS, name, self.clock)

    @property
    def holder(self) -> str:
        assert self.lease is not None
        holder: str = self.lease["spec"]["holderIdentity"]
        return holder


async def down() -> None:
    raise UnavailableError("no answer")


async def test_one_holds_and_the_other_waits_for_the_whole_lease() -> None:
    store = Store()
    a, b = store.candidate("a"), store.candidate("b")
    assert await a._try()
    assert (a.held, store.holder) == (True, "a")
    assert not await b._try()
    assert (b.held, b.in_touch) == (False, True)
    store.now += TERMS.lease - 0.1
    assert not await b._try(), "it has seen this version for less than the lease"
    assert not a.held, "the silent holder has given up long before"
    store.now += 0.2
    assert await b._try()
    assert (b.held, store.holder) == (True, "b")
    assert store.lease is not None
    assert store.lease["spec"]["leaseTransitions"] == 1
    assert not await a._try()
    assert not a.held


async def test_a_renewed_lease_is_not_taken() -> None:
    store = Store()
    a, b = store.candidate("a"), store.candidate("b")
    await a._try()
    for _ in range(20):
        store.now += TERMS.retry
        assert await a._try()
        assert not await b._try()
    assert store.lease is not None
    assert store.lease["spec"]["leaseTransitions"] == 0


async def test_held_counts_from_before_the_request() -> None:
    """An answer that took 6 s leaves 4 of the 10: others count from the moment the server wrote it, or earlier."""
    store = Store()
    a = store.candidate("a")

    async def slow() -> None:
        store.now += 6.0

    store.trouble = slow
    assert await a._try()
    store.now += 3.9
    assert a.held
    store.now += 0.2
    assert not a.held


async def test_without_renewal_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    a = store.candidate("a")
    await a.acquire()
    store.trouble = down
    _fast_sleep(monkeypatch, store)
    assert await asyncio.wait_for(a.keep(), 5) == "the Lease was not renewed within 10 s"
    assert not a.held


async def test_one_missed_renewal_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    a = store.candidate("a")
    await a.acquire()
    _fast_sleep(monkeypatch, store)
    failures = 0

    async def twice() -> None:
        nonlocal failures
        failures += 1
        if failures <= 2:
            raise UnavailableError("no answer")
        if failures > 10:
            store.lease = {**(store.lease or {}), "spec": {"holderIdentity": "b", "leaseDurationSeconds": 15}}
            store.lease["metadata"] = {"name": "x", "namespace": "y", "resourceVersion": "other"}

    store.trouble = twice
    assert await asyncio.wait_for(a.keep(), 5) == "b has taken the Lease"


async def test_two_at_the_same_moment() -> None:
    """Both read a free Lease; one write wins, and the other is no holder."""
    store = Store()
    a, b = store.candidate("a"), store.candidate("b")
    gate = asyncio.Event()

    async def together() -> None:
        await gate.wait()

    store.trouble = together
    tries = [asyncio.create_task(a._try()), asyncio.create_task(b._try())]
    await asyncio.sleep(0)
    gate.set()
    assert sorted(await asyncio.gather(*tries)) == [False, True]
    assert [a.held, b.held].count(True) == 1


async def test_release_lets_the_next_in_at_once() -> None:
    store = Store()
    a, b = store.candidate("a"), store.candidate("b")
    await a._try()
    await a.release()
    assert (a.held, store.holder) == (False, "")
    assert await b._try()
    await a.release()
    assert store.holder == "b", "who does not hold it releases nothing"


async def test_release_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(election, "RELEASE_SECONDS", 0.05)
    store = Store()
    a = store.candidate("a")
    await a._try()

    async def never() -> None:
        await asyncio.Event().wait()

    store.trouble = never
    await asyncio.wait_for(a.release(), 5)
    assert not a.held


async def test_the_holder_that_comes_back_under_its_name_goes_on() -> None:
    """A lost answer: the write went through, its repetition met a conflict, and the next round finds itself."""
    store = Store()
    a = store.candidate("a")

    async def taken_meanwhile() -> None:
        store.trouble = None
        await store.create(
            {"metadata": {"name": "gemmatune-operator", "namespace": "system"}, "spec": a._lease(None)["spec"]}
        )

    store.trouble = taken_meanwhile
    assert not await a._try()
    assert await a._try()
    assert a.held


@pytest.mark.parametrize("times", [(10, 10, 2), (15, 2, 2), (15, 10, 0)])
def test_times_that_cannot_work(times: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="--lease-duration"):
        Terms("x", "y", *times)


def test_own_namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(election, "NAMESPACE_FILE", tmp_path / "namespace")
    monkeypatch.setenv("POD_NAMESPACE", "there")
    assert election.own_namespace() == "there"
    monkeypatch.delenv("POD_NAMESPACE")
    assert election.own_namespace() == "default"
    (tmp_path / "namespace").write_text("mine\n")
    assert election.own_namespace() == "mine"


def _fast_sleep(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """Sleeping moves the test's clock."""
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        store.now += seconds
        await real(0)

    monkeypatch.setattr(election.asyncio, "sleep", sleep)
