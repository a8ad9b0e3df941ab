"""AdamW and Adafactor on divided weights, their schedule, and their state in the files of the torch backend."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_scheduler
from transformers.optimization import Adafactor
from transformers.trainer_pt_utils import get_parameter_names

from gemmatune_api.runconfig import RunTraining
from gemmatune_api.sharding import Spec, whole
from gemmatune_trainer.backends import moments, xla_device, xla_updates
from gemmatune_trainer.backends.xla_device import Chips
from gemmatune_trainer.errors import InvalidConfig
from gemmatune_trainer.ranks import Ranks

ADAMW = ("adamw_torch", "adamw_torch_fused")
_NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Weights that do not decay, by the names that transformers' Trainer goes by."""


class Optimizer:
    """Optimizer steps on gradients that lie on the chips; rates go there as numbers, and nothing is compiled anew.

    The state that `state` gives is that of the torch backend's optimizer of the same family, whole and on the host.
    """

    def __init__(self, model: nn.Module, training: RunTraining, total_steps: int, chips: Chips, specs: dict[str, Spec]):
        """Makes an empty state, divided as the weights are.

        Raises:
            InvalidConfig: an optimizer that this backend does not have.
        """
        self._chips = chips
        self._adamw = training.optimizer in ADAMW
        if not self._adamw and training.optimizer != "adafactor":
            raise InvalidConfig(
                f"training.optimizer: backend xla has no {training.optimizer}", f"Use {', '.join(ADAMW)} or adafactor."
            )
        self._max_norm = training.max_grad_norm
        self._decay = training.weight_decay
        trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
        decaying = set(get_parameter_names(model, [nn.LayerNorm], _NO_DECAY))
        self._groups = [
            [item for item in trained if item[0] in decaying],
            [item for item in trained if item[0] not in decaying],
        ]
        self._specs = specs
        self._inner = self._made()
        self._described = _described(training, self._groups)
        self._schedule = _schedule(training, total_steps)
        for _, value in trained:
            self._inner.state[value] = self._empty(value)
        self._place()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in the order of the state."""
        return [value for group in self._groups for _, value in group]

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [name for group in self._groups for name, _ in group]

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._schedule.get_last_lr()[0])

    def _made(self) -> xla_updates.AdamW | xla_updates.Adafactor:
        groups = [
            {"params": [value for _, value in group], "weight_decay": decay}
            for group, decay in zip(self._groups, (self._decay, 0.0), strict=True)
        ]
        if self._adamw:
            return xla_updates.AdamW(groups)
        return xla_updates.Adafactor(groups)

    def _empty(self, value: Tensor) -> dict[str, Any]:
        if self._adamw:
            zeros = {name: torch.zeros_like(value) for name in ("exp_avg", "exp_avg_sq")}
            return {"step": torch.zeros(()), **zeros}
        rows_columns = value.dim() >= 2
        moments: dict[str, Any] = (
            {
                "exp_avg_sq_row": torch.zeros(value.shape[:-1], device=value.device),
                "exp_avg_sq_col": torch.zeros(value.shape[:-2] + value.shape[-1:], device=value.device),
            }
            if rows_columns
            else {"exp_avg_sq": torch.zeros_like(value)}
        )
        return {"step": 0, **moments, "RMS": 0}

    def _place(self) -> None:
        """Divides weights and state as the weights' specs say; what has another shape stays whole."""
        for name, value in (item for group in self._groups for item in group):
            self._chips.mark(value, self._specs[name])
            for found in self._inner.state[value].values():
                if isinstance(found, Tensor) and found.device.type == xla_device.KIND:
                    same = found.shape == value.shape
                    self._chips.mark(found, self._specs[name] if same else whole(found.shape))

    def step(self, gradients: list[Tensor]) -> Tensor:
        """Clips the gradients and applies them; their norm before clipping, on the chips."""
        norm = torch.stack([gradient.float().square().sum() for gradient in gradients]).sum().sqrt()
        factor = (self._max_norm / (norm + 1e-6)).clamp(max=1.0)
        rates = self._rates()
        for group in self._inner.param_groups:
            group["lr"] = rates
        for value, gradient in zip(self.parameters, gradients, strict=True):
            value.grad = gradient * factor
        self._inner.step()
        self._inner.zero_grad(set_to_none=True)
        self._place()
        self._schedule.optimizer.step()
        self._schedule.step()
        return norm

    def _rates(self) -> Tensor:
        """What the step needs of learning rate and step, on the chips."""
        step = int(self._inner.state[self.parameters[0]]["step"]) + 1
        return torch.tensor(self._inner.rates(self.rate, step)).to(self._chips.device)

    def device_bytes(self) -> dict[str, tuple[int, int]]:
        """Of the state of every weight: bytes on one chip, and bytes of the whole."""
        found = {}
        for name, value in (item for group in self._groups for item in group):
            held = [one for one in self._inner.state[value].values() if isinstance(one, Tensor)]
            there = [one for one in held if one.device.type == xla_device.KIND]
            found[name] = sum(map(self._chips.bytes_of, there)), sum(one.nbytes for one in there)
        return found

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """State of optimizer and schedule, whole and on the host, as torch's and transformers' optimizers have it."""
        states: dict[int, dict[str, Any]] = {}
        for index, value in enumerate(self.parameters):
            found = self._inner.state[value]
            states[index] = {
                key: xla_device.on_host(item) if isinstance(item, Tensor) else item for key, item in found.items()
            }
        described = copy.deepcopy(self._described)
        for group in described:
            group["lr"] = self.rate
        return {"state": states, "param_groups": described}, copy.deepcopy(self._schedule.state_dict())

    def restore(self, state: dict[str, Any], schedule: dict[str, Any]) -> None:
        """Goes on from such a state.

        Raises:
            InvalidConfig: it is not one of these weights and this optimizer.
        """
        if len(state["state"]) != len(self.parameters):
            raise InvalidConfig(
                f"the checkpoint's optimizer has {len(state['state'])} weights, the run trains {len(self.parameters)}"
            )
        for index, value in enumerate(self.parameters):
            wanted = self._inner.state[value]
            given = state["state"][index]
            if not wanted.keys() <= given.keys():
                raise InvalidConfig("the checkpoint's optimizer is of another kind", "Create a new resource.")
            for key, old in wanted.items():
                if key == "RMS":
                    continue
                new = given[key]
                if isinstance(old, Tensor):
                    new = torch.as_tensor(new, dtype=old.dtype).reshape(old.shape).to(old.device)
                wanted[key] = new
        self._place()
        self._schedule.load_state_dict(moments.widened(schedule, len(self._groups)))

    def begin_at(self, step: int) -> None:
        """Leaves the state empty, and lets the schedule go on after a step."""
        moments.forward(self._schedule, step)


def shared(ranks: Ranks, state: dict[str, Any] | None) -> dict[str, Any]:
    """An optimizer's state that rank 0 has read, on every rank: tensor by tensor, each weight's in turn."""
    outline = {
        index: {key: (item.shape, item.dtype) if isinstance(item, Tensor) else item for key, item in held.items()}
        for index, held in (state["state"] if state else {}).items()
    }
    described, outline = ranks.from_main((state["param_groups"] if state else None, outline))
    found: dict[int, dict[str, Any]] = {}
    for index, held in outline.items():
        own = state["state"][index] if state else {}
        found[index] = {
            key: ranks.broadcast(own.get(key), item, "cpu") if isinstance(item, tuple) else item
            for key, item in held.items()
        }
    return {"state": found, "param_groups": described}


def _schedule(training: RunTraining, total_steps: int) -> Any:
    """transformers' schedule, on an optimizer of two numbers on the host: of as many groups as torch's have."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    alone = torch.optim.SGD(groups, lr=training.learning_rate)
    return get_scheduler(training.schedule, alone, training.warmup(total_steps), total_steps)


def _described(training: RunTraining, groups: list[list[tuple[str, nn.Parameter]]]) -> list[dict[str, Any]]:
    """The groups as the torch backend's optimizer writes them."""
    alone = [nn.Parameter(torch.zeros(1)) for group in groups for _ in group]
    sizes = [len(group) for group in groups]
    given = [
        {"params": alone[: sizes[0]], "weight_decay": training.weight_decay, "initial_lr": training.learning_rate},
        {"params": alone[sizes[0] :], "weight_decay": 0.0, "initial_lr": training.learning_rate},
    ]
    if training.optimizer == "adafactor":
        made: Any = Adafactor(given, lr=training.learning_rate, scale_parameter=False, relative_step=False)
    else:
        fused = True if training.optimizer == "adamw_torch_fused" else None
        made = torch.optim.AdamW(
            given, lr=training.learning_rate, betas=xla_updates.BETAS, eps=xla_updates.EPSILON, fused=fused
        )
    groups_: list[dict[str, Any]] = made.state_dict()["param_groups"]
    return groups_
