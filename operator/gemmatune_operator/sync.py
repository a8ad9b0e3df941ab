"""What there is, listed live into the cache: at the start, and now and then in case a watch lost a change."""

from __future__ import annotations

from gemmatune_api import names
from gemmatune_operator.cache import SCALED, WARNINGS, Cache, Key, Wake
from gemmatune_operator.cluster import KubernetesCluster

OURS = {names.LABEL_MANAGED_BY: names.MANAGED_BY}


async def sync(cluster: KubernetesCluster, cache: Cache, namespace: str) -> list[Wake]:
    """Brings the cache up to date for a namespace ("" for all); the runs whose Jobs or pods were not as known.

    Raises:
        UnavailableError, RefusedError: the cache is as far as the lists came.
    """
    wakes: list[Wake] = []
    for kind, take in (("Job", cache.job), ("Pod", cache.pod), (names.KIND, cache.resource)):
        before = {key: version for key, version in cache.versions(kind).items() if namespace in ("", key[0])}
        listed: set[Key] = set()
        async for page in cluster.pages(kind, namespace, {} if kind == names.KIND else OURS):
            for obj in page:
                listed.add((obj["metadata"]["namespace"], obj["metadata"]["name"]))
                wakes += take(None, obj)
        wakes += cache.compare(kind, before, listed)
    return wakes


async def tell(cluster: KubernetesCluster, cache: Cache, namespace: str) -> None:
    """Takes in the Events that there are, before the first look: without them a quota that holds a run back would be
    forgotten by a restart, and be news again a moment later.

    Raises:
        UnavailableError, RefusedError: the cache knows the Events as far as the lists came.
    """
    for fields in (WARNINGS, SCALED):
        async for page in cluster.pages("Event", namespace, {}, fields):
            for obj in page:
                cache.event(obj)
