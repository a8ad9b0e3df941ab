"""Every example is valid, fits its accelerator, and renders; what the examples say of themselves holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gemmatune_api.resume import resume_hash
from gemmatune_api.runconfig import RunConfig
from gemmatune_cli.documents import fine_tunes
from gemmatune_cli.main import app
from gemmatune_cli.planning import Planned, planned
from gemmatune_cli.render import objects
from gemmatune_operator.settings import Settings

FOLDER = Path(__file__).resolve().parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))
LOCAL_MODELS = dict.fromkeys(["quotes-cpu", "quotes-keras-mesh", "quotes-xla-mesh"], "gemma-3-270m")
"""Models of the examples that name a folder of this machine."""


def example(name: str) -> Planned:
    (resource,) = fine_tunes([str(FOLDER / f"{name}.yaml")])
    return planned(resource, model=LOCAL_MODELS.get(name))


def config(name: str) -> RunConfig:
    return of_trainer(example(name))


def of_trainer(found: Planned) -> RunConfig:
    train = list(objects(found, 1, Settings()))[-1]
    (container,) = train["spec"]["template"]["spec"]["containers"]
    return RunConfig.from_env(container["env"][0]["value"])


def test_there_are_examples() -> None:
    assert {file.stem for file in EXAMPLES} >= {
        "minimal", "quotes-qlora-gpu", "quotes-tracked", "persona-instruct-lora", "quotes-cpu", "quotes-tpu",
    }  # fmt: skip


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_example_opens_with_what_it_shows(file: Path) -> None:
    assert file.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_example_is_valid(file: Path) -> None:
    result = CliRunner().invoke(app, ["validate", str(file)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_example_fits(file: Path) -> None:
    assert example(file.stem).plan.verdict in ("fits", "tight")


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_every_example_renders(file: Path) -> None:
    found = example(file.stem)
    kinds = [item["kind"] for item in objects(found, 1, Settings())]
    service = ["Service"] if found.plan.hosts > 1 else []
    assert kinds == ["ServiceAccount", "Role", "RoleBinding", "Job", *service, "Job"]


def test_quotes_qlora_gpu_is_the_recipe() -> None:
    run = config("quotes-qlora-gpu")
    assert run.model.uri == "hf://google/gemma-2b"
    assert run.dataset.text is not None
    assert run.dataset.text.template == "Quote: {quote}\nAuthor: {author}"
    method, training = run.method, run.training
    assert (method.kind, method.rank, method.quant_type) == ("qlora", 8, "nf4")
    assert set(method.target_modules) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert (training.micro_batch_size, training.global_batch_size) == (1, 4)
    assert (training.max_steps, training.warmup_steps, training.log_every_steps) == (10, 2, 1)
    assert (training.learning_rate, training.optimizer) == (2e-4, "paged_adamw_8bit")
    assert training.precision == "bf16"
    assert run.samples.max_new_tokens == 20


def test_quotes_qlora_gpu_trains_as_many_weights_as_it_says() -> None:
    assert example("quotes-qlora-gpu").plan.trainable_parameters == pytest.approx(9.8e6, rel=0.01)


def test_quotes_tpu_is_the_recipe() -> None:
    run, plan = config("quotes-tpu"), example("quotes-tpu").plan
    assert (run.backend, run.device, run.model.uri) == ("xla", "tpu", "hf://google/gemma-2b")
    assert run.dataset.text is not None
    assert run.dataset.text.template == "{quote}"
    training = run.training
    assert (training.global_batch_size, training.epochs, training.log_every_steps) == (64, 100, 1)
    assert (training.optimizer, training.gradient_checkpointing) == ("adafactor", True)
    assert (plan.hosts, plan.chips, plan.mesh) == (1, 4, {"data": 4, "model": 1})


def test_quotes_tpu_moves_to_a_gpu_by_its_accelerator_alone(tmp_path: Path) -> None:
    document = yaml.safe_load((FOLDER / "quotes-tpu.yaml").read_text(encoding="utf-8"))
    document["spec"]["accelerator"] = {"gpu": {"type": "nvidia-l4"}}
    file = tmp_path / "moved.yaml"
    file.write_text(yaml.safe_dump(document))
    assert CliRunner().invoke(app, ["validate", str(file)]).exit_code == 0
    run, before = of_trainer(planned(*fine_tunes([str(file)]))), config("quotes-tpu")
    assert (run.backend, run.device, run.mesh) == ("torch", "cuda", None)
    assert resume_hash(run, "", "") == resume_hash(before, "", ""), "the checkpoints of one are the other's"


def test_gemma2_9b_keras_tpu_is_the_recipe() -> None:
    run, plan = config("gemma2-9b-keras-tpu"), example("gemma2-9b-keras-tpu").plan
    assert (run.backend, run.device, run.training.precision) == ("keras", "tpu", "fp32")
    assert (run.method.kind, run.method.rank, run.method.target_modules) == ("lora", 4, ["q_proj", "v_proj"])
    assert (plan.hosts, plan.chips, plan.mesh) == (4, 16, {"data": 2, "model": 8})
    assert (plan.trainable_parameters, plan.exported_parameters) == (14_536_704, 28_213_248)
    assert plan.verdict == "fits"


def test_persona_instruct_lora_is_the_recipe() -> None:
    run = config("persona-instruct-lora")
    assert run.dataset.instruct is not None
    assert run.dataset.instruct.system_text
    assert run.dataset.max_length == 384
    method, training = run.method, run.training
    assert (method.kind, method.rank, method.alpha, method.dropout) == ("lora", 8, 32, 0.1)
    assert (training.micro_batch_size, training.global_batch_size, training.epochs) == (4, 16, 3)
    assert (training.learning_rate, training.log_every_steps) == (1e-4, 10)
    assert training.gradient_checkpointing
    assert run.checkpoint.every_steps == 100
    assert run.samples.max_new_tokens == 512


def test_paligemma_keras_is_the_recipe() -> None:
    run, plan = config("paligemma-keras"), example("paligemma-keras").plan
    assert (run.backend, run.method.kind, run.model.uri) == ("keras", "lora", "hf://google/paligemma-3b-pt-224")
    assert run.dataset.image_text is not None
    assert (run.dataset.image_text.image, run.dataset.image_text.prefix) == ("file", "answer en {question}")
    assert not run.dataset.packing
    assert (plan.chips, plan.mesh) == (8, {"data": 2, "model": 4})
    told = f"about {plan.memory.total / 2**30:.0f} GiB"
    assert told in (FOLDER / "paligemma-keras.yaml").read_text(encoding="utf-8")


def test_paligemma_keras_tpu_is_the_recipe_on_a_published_slice() -> None:
    """The same run on chips: what differs is where it goes, and the mesh is the planner's."""
    here, chips = config("paligemma-keras"), config("paligemma-keras-tpu")
    same = ("backend", "model", "dataset", "method", "checkpoint", "samples")
    assert [name for name in same if getattr(here, name) != getattr(chips, name)] == []
    plan = example("paligemma-keras-tpu").plan
    assert (plan.verdict, plan.hosts, plan.chips, plan.mesh) == ("fits", 1, 4, {"data": 4, "model": 1})
    gib = 2**30
    told = f"{plan.memory.total / gib:.1f} of {plan.memory.capacity / gib:.1f} GiB a chip"
    assert told in (FOLDER / "paligemma-keras-tpu.yaml").read_text(encoding="utf-8")
    assert chips.device == "tpu"


def test_the_sample_data_has_what_the_template_names() -> None:
    run = config("quotes-cpu")
    lines = (FOLDER / "data" / Path(run.dataset.uri).name).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) >= (run.training.global_batch_size)
    assert all(row.keys() == {"quote", "author"} and row["quote"] and row["author"] for row in rows)
    assert len({row["quote"] for row in rows}) == len(rows)


def test_the_tracked_quotes_are_the_quotes_with_more_steps() -> None:
    """QLoRA and optimizer as in the plain example; what differs is the length, the evaluation and the trackers."""
    plain, tracked = config("quotes-qlora-gpu"), config("quotes-tracked")
    assert tracked.method == plain.method
    same = plain.training.model_copy(update={"max_steps": 100, "eval_every_steps": 20})
    assert tracked.training == same
    assert tracked.samples.prompts == ["Quote: A woman is like a tea bag;"]
    assert tracked.tracking is not None
    assert tracked.tracking.tensorboard
    assert tracked.tracking.wandb is not None
    train = list(objects(example("quotes-tracked"), 1, Settings()))[-1]
    (container,) = train["spec"]["template"]["spec"]["containers"]
    keys = [item["valueFrom"]["secretKeyRef"] for item in container["env"] if item["name"] == "WANDB_API_KEY"]
    assert keys == [{"name": "wandb", "key": "WANDB_API_KEY"}]
