"""What a run costs in requests when the watches show everything."""

from __future__ import annotations

from collections import Counter

import pytest

from gemmatune_api import names
from gemmatune_cli.local import jobs
from tests.support.play import NAME, NAMESPACE, PREPARED, Moody, Play, ended

DONE = {"message": "done", "step": 100, "manifest": "gs://bucket/quotes/manifest.json"}


def test_a_successful_run_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two Jobs and four or five statuses, after the three access objects; only the namespace's defaults are read."""
    monkeypatch.setattr(Play, "watching", True)
    play = Play()
    moody = play.cluster = Moody(play.cluster, lambda name: None)  # type: ignore[assignment]
    play.look()
    assert moody.calls[:5] == ["get", *["create"] * 4], "the Job comes before the status"
    play.ends("quotes-p1", 0, PREPARED)
    play.runs("quotes-t1")
    before = list(moody.calls)
    for step in range(20):
        play.trainer(progress={"step": step})
    assert moody.calls == before, "progress costs nothing"
    status = play.ends("quotes-t1", 0, DONE)
    assert status.phase == "Succeeded"
    calls = Counter(moody.calls)
    del calls["emit"]
    assert calls.keys() == {"get", "create", "apply_status"}
    assert calls["get"] == 1, "ConfigMap gemmatune-defaults"
    assert calls["create"] == 3 + 2
    assert calls["apply_status"] <= 5


def test_a_lost_race_is_read_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the cache does not know yet is refused by the API server, and then planned from what is read."""
    monkeypatch.setattr(Play, "watching", True)
    play = Play()
    play.training()
    moody = play.cluster = Moody(play.cluster, lambda name: None)  # type: ignore[assignment]
    play.tell()
    trainer = {
        "kind": names.KIND,
        "metadata": {"namespace": NAMESPACE, "name": NAME},
        "status": {"progress": {"step": 7}},
    }
    play.store.apply_status(trainer, names.FIELD_MANAGER_TRAINER)
    monkeypatch.setattr(play, "tell", lambda: None)  # the watch of resources is late, those of Jobs and pods are not
    pod = play.pod("quotes-t1")["metadata"]["name"]
    play.store.write_status("Pod", NAMESPACE, pod, ended(0, DONE, "", play.now))
    jobs.sync(play.store, play.job("quotes-t1"), play.now)
    cache = play.tools.cache
    assert cache is not None
    cache.pod("MODIFIED", play.pod("quotes-t1"))
    cache.job("MODIFIED", play.job("quotes-t1"))
    play.reconcile_once()
    assert play.status.phase == "Succeeded"
    assert play.status.progress is not None
    assert play.status.progress.step == 7
    assert "get" in moody.calls
