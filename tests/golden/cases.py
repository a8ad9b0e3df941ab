"""The golden manifests: resources in manifests/NAME.yaml, what the operator creates in NAME.expected.yaml."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gemmatune_api import catalog, defaults, validate
from gemmatune_api.fit import merges
from gemmatune_api.layout import layout
from gemmatune_api.spec import FineTuneSpec
from gemmatune_api.status import FineTuneStatus, Plan, PlanMemory, PlanMerge
from gemmatune_cli.documents import read
from gemmatune_cli.planning import Planned
from gemmatune_cli.render import objects, text
from gemmatune_operator.settings import Settings

FOLDER = Path(__file__).parent / "manifests"
EXPECTED = ".expected.yaml"
REGISTRY = "registry.example.com/gemmatune"
SETTINGS = Settings(
    image=f"{REGISTRY}/trainer-torch:0.1.0",
    tpu_images={name: f"{REGISTRY}/trainer-{name}:0.1.0" for name in ("xla", "keras")},
)
OFF_GKE = "off-gke"
"""In the name of a case: the cluster has no webhook that tells TPU hosts who they are."""
GIB = 2**30


def cases() -> list[str]:
    """The names of all cases."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml") if not file.name.endswith(EXPECTED))


def expected_file(case: str) -> Path:
    """The file of a case's manifests."""
    return FOLDER / f"{case}{EXPECTED}"


def manifests(case: str) -> str:
    """What the operator creates for a case's resource, with the newest attempt that its status records."""
    (document,) = read([str(FOLDER / f"{case}.yaml")])
    resource = validate.parse(document.content, refused=())  # shapes whose training backend does not exist yet, too
    recorded = FineTuneStatus.model_validate(resource.status or {}).attempts
    number = recorded[-1].number if recorded else 1
    spec = defaults.resolve(resource.spec)
    model = catalog.by_uri(spec.model.uri)
    assert model is not None, f"{case}: {spec.model.uri} names no model of the catalog"
    found = Planned(resource.model_copy(update={"spec": spec}), model, plan(spec))
    settings = replace(SETTINGS, tpu_webhook=OFF_GKE not in case)
    return "".join(f"---\n{text(item)}" for item in objects(found, number, settings))


def plan(spec: FineTuneSpec) -> Plan:
    """A plan of round numbers: what the planner estimates is not the manifests' affair, and changes as it is tuned."""
    training, laid = spec.training, layout(spec)
    assert training is not None
    large = spec.model.uri.endswith("27b-it")
    return Plan(
        backend=spec.backend or "torch",
        hosts=laid.hosts,
        chips=laid.chips,
        mesh={"data": laid.mesh[0], "model": laid.mesh[1]} if laid.mesh else None,
        method=spec.method,
        trainable_parameters=10_000_000,
        micro_batch_size=training.micro_batch_size or 2,
        accumulation=8,
        gradient_checkpointing=bool(training.gradient_checkpointing),
        memory=PlanMemory(weights=GIB, optimizer=0, activations=2 * GIB, logits=0, total=3 * GIB, capacity=0),
        weights_by_bits={},
        disk=12 * GIB,
        host_memory=(20 if large else 8) * GIB * (laid.per_host if spec.accelerator.gpu else 1),
        merge=PlanMerge(memory=9 * GIB, disk=14 * GIB) if merges(spec) else None,
        verdict="fits",
    )
