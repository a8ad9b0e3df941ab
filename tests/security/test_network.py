"""The operator is no proxy: it speaks to the API server, and to the collector of traces that its installation names.

No URI of a spec ever makes it fetch anything.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api import validate
from gemmatune_api.errors import InvalidResourceError
from gemmatune_trainer.errors import InvalidConfig
from gemmatune_trainer.storage import open_storage
from tests.support.resources import resource

OPERATOR = Path(__file__).parents[2] / "operator/gemmatune_operator"
CLIENTS = {"requests", "urllib", "urllib3", "aiohttp", "httpx", "socket", "http", "google", "huggingface_hub"}
CLIENTS |= {"opentelemetry"}
KNOWN = {
    "probes.py": {"http"},
    "cluster.py": {"aiohttp", "urllib"},
    "election.py": {"socket"},
    "traces.py": {"opentelemetry"},
    "options.py": {"urllib"},
}
"""The one server, of probes and metrics; the errors and the proxy of the Kubernetes client; the name of this host; what
sends traces; and what takes its URL apart."""
INSIDE = ("http://169.254.169.254/x", "https://metadata.google.internal/x", "ftp://x/y", "unix:///run/x", "gopher://x")


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", sorted(OPERATOR.rglob("*.py")), ids=lambda path: path.stem)
def test_the_operator_has_no_client_but_that_of_kubernetes(path: Path) -> None:
    assert imported(path) & CLIENTS <= KNOWN.get(path.name, set())


@pytest.mark.parametrize("field", ["spec.model.uri", "spec.dataset.uri", "spec.dataset.evalUri", "spec.output.uri"])
@pytest.mark.parametrize("uri", INSIDE)
def test_no_address_inside_is_a_source(field: str, uri: str) -> None:
    document: dict[str, Any] = resource(changes={field: uri})
    with pytest.raises(InvalidResourceError) as refused:
        validate.parse(document)
    assert field in str(refused.value)


@pytest.mark.parametrize("uri", INSIDE)
def test_the_trainer_opens_none_either(uri: str) -> None:
    with pytest.raises(InvalidConfig):
        open_storage(uri)
