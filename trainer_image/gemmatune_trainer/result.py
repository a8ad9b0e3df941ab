"""What a finished run knows of itself: the material of its model card, report and manifest."""

from __future__ import annotations

from dataclasses import dataclass, field

from gemmatune_api.runconfig import RunConfig
from gemmatune_api.status import DataStatus
from gemmatune_trainer.backends.base import Tally, Verification
from gemmatune_trainer.history import Evaluated, History
from gemmatune_trainer.models import ModelFiles
from gemmatune_trainer.ownership import Claim
from gemmatune_trainer.versions import versions


def kind_of(config: RunConfig) -> str:
    """`adapter`, or `model` with full tuning: what a run leaves, and its folder's name."""
    return "model" if config.method.kind == "full" else "adapter"


@dataclass
class Result:
    """Everything that a finished run knows of itself."""

    config: RunConfig
    claim: Claim
    files: ModelFiles
    data: DataStatus
    history: History
    total_steps: int
    step: int
    """The step whose weights are the result: the last one, or that of the lowest evaluation loss."""
    prompts: list[str]
    before: list[str]
    after: list[str] = field(default_factory=list)
    verification: Verification | None = None
    tally: Tally | None = None
    """What the last attempt has compiled and padded; None with torch."""
    versions: dict[str, str] = field(default_factory=versions)

    @property
    def kind(self) -> str:
        """`adapter` or `model`."""
        return kind_of(self.config)

    @property
    def evaluated(self) -> Evaluated | None:
        """The evaluation of what is the result."""
        return next((item for item in reversed(self.history.evaluations) if item.step == self.step), None)

    @property
    def warnings(self) -> list[str]:
        """What a person should know before using the result: that it is whole does not say that it is any good."""
        if self.evaluated is None:
            return []
        base, found = self.history.evaluations[0].loss, self.evaluated.loss
        if found < base:
            return []
        return [
            f"On the rows kept for evaluation the {self.kind} is no better than the base: its loss is {found:.4g}, "
            f"the base's {base:.4g}."
        ]

    @property
    def base_name(self) -> str:
        """The base's published name."""
        return self.files.published_name[0]
