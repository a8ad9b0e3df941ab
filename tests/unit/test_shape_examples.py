"""examples/shapes: one resource for every accelerator of the catalog, each of which fits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gemmatune_api import accelerators, fit, names, validate, yamlio
from gemmatune_api.catalog import by_uri
from gemmatune_api.defaults import resolve
from gemmatune_api.errors import InvalidResourceError
from gemmatune_api.spec import GemmaFineTune
from gemmatune_api.supported import unsupported
from gemmatune_cli.planning import planned

FOLDER = Path(__file__).resolve().parents[2] / "examples/shapes"
FILES = sorted(FOLDER.glob("*.yaml"))
REFUSED = "tpu-v7x-2x2x1"
"""The one whose behaviour does not exist yet."""


def read(file: Path) -> GemmaFineTune:
    """The resource as the API server stores it, with what is not built yet."""
    (document,) = yamlio.load_all(file.read_text(encoding="utf-8"))
    return GemmaFineTune.model_validate(document)


def test_every_accelerator_has_one() -> None:
    used = set()
    for file in FILES:
        asked = read(file).spec.accelerator
        used |= {asked.gpu.type if asked.gpu else "", asked.tpu.type if asked.tpu else ""}
    known = {item.type for item in (*accelerators.gpus(), *accelerators.tpus())}
    assert known - used == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_opens_with_what_it_shows_and_is_named_as_its_file(file: Path) -> None:
    assert file.read_text(encoding="utf-8").startswith("# ")
    assert read(file).metadata.name == file.stem


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_fits(file: Path) -> None:
    resource = read(file)
    if unsupported(resource.spec):
        spec = resolve(resource.spec)
        model = by_uri(spec.model.uri)
        assert model is not None
        assert fit.plan(spec, model).verdict in ("fits", "tight")
    else:
        assert planned(resource).plan.verdict in ("fits", "tight")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_valid_or_of_the_one_type_that_is_not_built_yet(file: Path) -> None:
    (document,) = yamlio.load_all(file.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    if file.stem != REFUSED:
        validate.parse(document)
        return
    with pytest.raises(InvalidResourceError) as error:
        validate.parse(document)
    (problem,) = error.value.problems
    assert (problem.path, problem.reason) == ("spec.accelerator.tpu.type", names.Reason.NOT_SUPPORTED_YET)


def test_recipes_name_what_is_refused() -> None:
    tpu = read(FOLDER / f"{REFUSED}.yaml").spec.accelerator.tpu
    assert tpu is not None
    (sentence,) = [
        line for line in (FOLDER.parents[1] / "docs/recipes.md").read_text().split(". ") if "refused by the" in line
    ]
    assert re.findall("`(.+?)`", sentence) == [tpu.type, names.Reason.NOT_SUPPORTED_YET]
