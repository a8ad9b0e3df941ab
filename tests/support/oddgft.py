"""gft in the test's own process, and what an API server of `oddapi` tells it on a good day."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner, Result

from gemmatune_api import names
from gemmatune_cli.main import app
from tests.support.oddapi import Answer
from tests.support.resources import resource

FAILED = {"type": "Finished", "status": "True", "reason": "DataInvalid", "message": "", "lastTransitionTime": ""}
LISTS = ("deployments", "configmaps", "serviceaccounts", "nodes", "resourcequotas")


def gft(*arguments: str) -> Result:
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def run(phase: str, *, generation: int = 1, **status: Any) -> dict[str, Any]:
    """A resource as the API server gives it."""
    document = resource()
    meta = {"name": "quotes", "namespace": "team", "uid": "u", "resourceVersion": "7", "generation": generation}
    conditions = [FAILED] if phase in ("Failed", "Succeeded") else []
    return {**document, "metadata": meta, "status": {"phase": phase, "conditions": conditions, **status}}


def healthy(method: str, path: str) -> Answer:
    """What doctor is told by a cluster that is empty but well."""
    kind = {"name": names.PLURAL, "singularName": "", "namespaced": True, "kind": names.KIND, "verbs": []}
    if method == "POST":
        return 201, {"spec": {}, "status": {"allowed": True}}
    if "secrets" in path:
        return 200, {"metadata": {"name": "x"}, "data": {"HF_TOKEN": "eA=="}}
    if any(name in path for name in LISTS):
        return 200, {"items": [], "metadata": {"name": "x"}}
    return 200, {"groupVersion": names.API_VERSION, "resources": [kind]}
