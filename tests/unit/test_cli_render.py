"""gft render: the operator's own objects, byte for byte, as YAML that kubectl takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gemmatune_api import catalog, defaults, fit, names, runconfig
from gemmatune_api.site_defaults import SiteDefaults
from gemmatune_api.status import Attempt
from gemmatune_api.validate import parse
from gemmatune_cli.main import app
from gemmatune_cli.render import PLACEHOLDER_UID
from gemmatune_operator.manifests import access, attempt, prepare
from gemmatune_operator.settings import Settings
from tests.support.play import SPEC, Play

DOCUMENT: dict[str, Any] = {
    "apiVersion": names.API_VERSION,
    "kind": names.KIND,
    "metadata": {"name": "quotes", "namespace": "team-a"},
    "spec": {
        "model": {"uri": "hf://google/gemma-2-2b", "secretRef": {"name": "hf-token"}},
        "dataset": {"uri": "gs://data/quotes.jsonl", "text": {"template": "{quote} – ${price}"}},
        "output": {"uri": "gs://bucket/quotes"},
        "accelerator": {"gpu": {"type": "nvidia-l4"}},
        "provisioning": {"mode": "spot"},
    },
}
TPU = {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x2"}}
OUTPUT = DOCUMENT["spec"]["output"]


def render(folder: Path, document: dict[str, Any], *arguments: str) -> list[dict[str, Any]]:
    file = folder / "quotes.yaml"
    file.write_text(yaml.safe_dump(document))
    result = CliRunner().invoke(app, ["render", str(file), *arguments])
    assert result.exit_code == 0, result.output
    return list(yaml.safe_load_all(result.stdout))


def test_the_objects_are_the_operators(tmp_path: Path) -> None:
    resource = parse({**DOCUMENT, "metadata": {**DOCUMENT["metadata"], "uid": PLACEHOLDER_UID}})
    resource = resource.model_copy(update={"spec": defaults.resolve(resource.spec)})
    model = catalog.by_name("gemma-2-2b")
    assert model is not None
    plan = fit.plan(resource.spec, model)
    identity = runconfig.RunIdentity(name="quotes", namespace="team-a", uid=PLACEHOLDER_UID)
    config = runconfig.build(resource.spec, identity, 1, plan)
    record = Attempt(number=1, job="quotes-t1", provisioning="spot")
    settings = Settings(image="trainer:test")
    assert render(tmp_path, DOCUMENT, "--image", "trainer:test") == [
        *access.objects("team-a", None),
        prepare.job(resource, config, 1, settings),
        attempt.job(resource, config, plan, record, settings),
    ]


@pytest.mark.parametrize("backend", ["torch", "xla", "keras"])
def test_the_image_is_that_of_the_resources_backend(backend: str, tmp_path: Path) -> None:
    accelerator = {"gpu": {"type": "nvidia-l4"}} if backend == "torch" else TPU
    spec = {**DOCUMENT["spec"], "backend": backend, "accelerator": accelerator, "output": {**OUTPUT, "merge": True}}
    preparation, attempt_, merging = render(tmp_path, {**DOCUMENT, "spec": spec}, "--image", "trainer:test")[-3:]
    images = [job["spec"]["template"]["spec"]["containers"][0]["image"] for job in (preparation, attempt_, merging)]
    assert images[:2] == ["trainer:test", "trainer:test"]
    assert images[2] == ("trainer:test" if backend == "torch" else Settings().image), "torch merges every run"


def test_a_later_attempt(tmp_path: Path) -> None:
    job = render(tmp_path, DOCUMENT, "--attempt", "3")[-1]
    assert job["metadata"]["name"] == "quotes-t3"
    assert job["metadata"]["labels"][names.LABEL_ATTEMPT] == "3"


def test_a_resource_of_a_cluster_gives_the_objects_of_that_run(tmp_path: Path) -> None:
    first = render(tmp_path, DOCUMENT)
    live = {
        **DOCUMENT,
        "metadata": {**DOCUMENT["metadata"], "uid": "u-1", "resourceVersion": "7", "generation": 1},
        "status": {
            "prepare": {"number": 2, "job": "quotes-p2"},
            "attempts": [
                {"number": 2, "job": "quotes-t2", "provisioning": "onDemand", "overrides": {"microBatchSize": 1}}
            ],
        },
    }
    *_, preparation, train = render(tmp_path, live, "--attempt", "2")
    assert preparation["metadata"]["name"] == "quotes-p2"
    assert train["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    pod = train["spec"]["template"]["spec"]
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]
    assert first[-1]["spec"]["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    config = runconfig.RunConfig.from_env(pod["containers"][0]["env"][0]["value"])
    assert config.training.micro_batch_size == 1


def test_defaults_of_the_cluster(tmp_path: Path) -> None:
    """They are known of a run that the operator has resolved; of a file alone they are not."""
    play = Play({name: block for name, block in SPEC.items() if name != "output"})
    play.settings = Settings(defaults=SiteDefaults(output_prefix="gs://site", model_cache="gs://models"))
    file = tmp_path / "new.yaml"
    file.write_text(yaml.safe_dump({name: play.resource[name] for name in ("apiVersion", "kind", "metadata", "spec")}))
    result = CliRunner().invoke(app, ["render", str(file)])
    assert result.exit_code == 1
    assert "spec.output.uri: is not set" in result.stderr
    play.look()
    assert created(play, "quotes-p1") == render(tmp_path, play.resource)[-2]
    play.prepared()
    assert created(play, "quotes-t1") == render(tmp_path, play.resource)[-1]


def test_an_invalid_resource_is_not_rendered(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump({**DOCUMENT, "spec": {**DOCUMENT["spec"], "backend": "keras"}}))
    result = CliRunner().invoke(app, ["render", str(file)])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "spec.backend" in result.stderr


def test_an_odd_status_counts_as_absent_as_it_does_for_the_operator(tmp_path: Path) -> None:
    live = {**DOCUMENT, "status": {"phase": [1], "attempts": [{"number": "one"}], "prepare": {"number": 2, "job": "j"}}}
    *_, preparation, train = render(tmp_path, live)
    assert (preparation["metadata"]["name"], train["metadata"]["name"]) == ("quotes-p2", "quotes-t1")


def created(play: Play, job: str) -> dict[str, Any]:
    """A Job as the operator created it, without what the API server and the Job controller add."""
    found = play.job(job)
    added = ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields")
    metadata = {name: value for name, value in found["metadata"].items() if name not in added}
    return {**{name: value for name, value in found.items() if name != "status"}, "metadata": metadata}


def test_render_prints_what_the_operator_creates(tmp_path: Path) -> None:
    play = Play({**SPEC, "provisioning": {"mode": "spot"}, "limits": {"deadline": "1h"}})
    play.look()
    assert created(play, "quotes-p1") == render(tmp_path, play.resource)[-2]
    play.prepared()
    assert created(play, "quotes-t1") == render(tmp_path, play.resource)[-1]
    play.ends("quotes-t1", 20, {"reason": "AcceleratorOutOfMemory", "message": "out of memory"})
    play.wait(600)
    assert created(play, "quotes-t2") == render(tmp_path, play.resource, "--attempt", "2")[-1]
