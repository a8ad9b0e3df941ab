"""Training as plain PyTorch, transformers and PEFT do it: `python -m tests.support.plaintraining < requests.json`.

Backend xla has these libraries in its own environment; the tests of backend keras start this in torch's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, get_scheduler, set_seed
from transformers.optimization import Adafactor

from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends import adapter, forward, whole
from gemmatune_trainer.data.order import step_rows
from gemmatune_trainer.data.pack import collate
from gemmatune_trainer.models import fetch
from tests.trainer.conftest import ListedRows


class PlainStep(NamedTuple):
    """Loss of an optimizer step, and the norm of its gradients before they are clipped."""

    loss: float
    gradient_norm: float


def norm(values: list[torch.Tensor]) -> torch.Tensor:
    """Root of the summed squares, summed in fp64: on a CPU torch's own is off by percents for 262,144 x 640 numbers."""
    return torch.stack([value.double().square().sum() for value in values]).sum().sqrt()


class ExactAdafactor(Adafactor):
    """transformers' Adafactor with an exact mean square, to which it scales the update of a weight."""

    @staticmethod
    def _rms(tensor: torch.Tensor) -> torch.Tensor:
        return (norm([tensor]) / tensor.numel() ** 0.5).float()


def _model(config: RunConfig, begun: Path | None) -> Any:
    """The model with what is trained of it: an adapter like the backends' fresh one, or that of folder `begun`."""
    files = fetch(config.model, weights=True)
    model = AutoModelForCausalLM.from_pretrained(files.folder, dtype=torch.float32, attn_implementation="eager")
    model.requires_grad_(False)
    set_seed(config.training.seed)
    if config.method.kind == "full":
        whole.prepare(model)
        return model
    if begun is not None:
        return PeftModel.from_pretrained(model, begun, is_trainable=True)
    return get_peft_model(model, adapter.lora_config(config, files.model.rules))


def reference(config: RunConfig, rows: ListedRows, begun: Path | None = None) -> list[PlainStep]:
    """Steps of the same run in plain PyTorch: every document alone, its loss that of the torch backend."""
    training = config.training
    model = _model(config, begun)
    trained = [value for value in model.parameters() if value.requires_grad]
    decaying = set(Trainer.get_decay_parameter_names(cast(Any, None), model))
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [value for name, value in named if (name in decaying) == decays], "weight_decay": decay}
        for decays, decay in ((True, training.weight_decay), (False, 0.0))
    ]
    if training.optimizer == "adafactor":
        made: Any = ExactAdafactor(groups, lr=training.learning_rate, scale_parameter=False, relative_step=False)
    else:
        made = torch.optim.AdamW(groups, lr=training.learning_rate)
    schedule = get_scheduler(training.schedule, made, training.warmup(training.max_steps), training.max_steps)
    steps = []
    for step in range(training.max_steps or 0):
        chosen = step_rows(training.seed, step, len(rows.items), training.global_batch_size)
        alone = [collate([rows.row(index)], [[0]], 0) for index in chosen]
        labelled = sum(batch.labelled_tokens for batch in alone)
        total = torch.zeros(())
        for batch in alone:
            arrays = (torch.from_numpy(array) for array in (batch.input_ids, batch.position_ids, batch.labels))
            loss = forward.labelled_loss(model, *arrays) / labelled
            loss.backward()
            total += loss.detach()
        gradients = norm([value.grad for value in trained if value.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(trained, training.max_grad_norm, gradients)
        made.step()
        schedule.step()
        made.zero_grad()
        steps.append(PlainStep(float(total), float(gradients)))
    return steps


def updates(
    weight: list[float], gradients: list[list[float]], learning_rate: float, weight_decay: float
) -> list[list[float]]:
    """A weight after each step of torch.optim.AdamW by these gradients, in fp64."""
    value = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float64))
    made = torch.optim.AdamW([value], lr=learning_rate, weight_decay=weight_decay)
    found = []
    for gradient in gradients:
        value.grad = torch.tensor(gradient, dtype=torch.float64)
        made.step()
        found.append(value.tolist())
    return found


def main() -> None:
    """Answers the requests of stdin on the last line of stdout."""
    asked = json.load(sys.stdin)
    runs = []
    for run in asked["runs"]:
        begun = Path(run["begun"]) if run["begun"] else None
        runs.append(reference(RunConfig.model_validate(run["config"]), ListedRows(run["lengths"]), begun))
    print(json.dumps({"runs": runs, "updates": updates(**asked["updates"])}))


if __name__ == "__main__":
    main()
