"""The golden manifests: resources in manifests/NAME.yaml, what the operator creates in NAME.expected.yaml."""

from __future__ import annotations

from pathlib import Path

from gemmatune_api.status import FineTuneStatus
from gemmatune_cli.documents import fine_tunes
from gemmatune_cli.planning import planned
from gemmatune_cli.render import objects, text
from gemmatune_operator.settings import Settings

FOLDER = Path(__file__).parent / "manifests"
EXPECTED = ".expected.yaml"
SETTINGS = Settings(image="registry.example.com/gemmatune/trainer-torch:0.1.0")
MODELS = {"cpu": "gemma-3-270m"}
"""Models of resources whose URI is a folder, which need not exist here."""


def cases() -> list[str]:
    """The names of all cases."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml") if not file.name.endswith(EXPECTED))


def expected_file(case: str) -> Path:
    """The file of a case's manifests."""
    return FOLDER / f"{case}{EXPECTED}"


def manifests(case: str) -> str:
    """What the operator creates for a case's resource, with the newest attempt that its status records."""
    (resource,) = fine_tunes([str(FOLDER / f"{case}.yaml")])
    recorded = FineTuneStatus.model_validate(resource.status or {}).attempts
    number = recorded[-1].number if recorded else 1
    rendered = objects(planned(resource, model=MODELS.get(case)), number, SETTINGS)
    return "".join(f"---\n{text(item)}" for item in rendered)
