"""Where a run's values go besides its report: the trackers' part of RunConfig, and the names of their keys."""

from __future__ import annotations

from gemmatune_api.base import ApiModel
from gemmatune_api.placement import TrackingSpec

WANDB_KEY = "WANDB_API_KEY"
"""Variable of the pod, and default key of tracking.wandb.secretRef."""
MLFLOW_KEY = "MLFLOW_TRACKING_TOKEN"
"""Variable of the pod, and default key of tracking.mlflow.secretRef."""


class RunWandb(ApiModel):
    """Weights & Biases; offline where the pod has no key."""

    project: str
    """Project."""
    entity: str | None = None
    """Team or user."""


class RunMlflow(ApiModel):
    """MLflow."""

    uri: str
    """Tracking server."""


class RunTracking(ApiModel):
    """Experiment trackers."""

    tensorboard: bool = False
    """Whether event files are written."""
    wandb: RunWandb | None = None
    """Weights & Biases."""
    mlflow: RunMlflow | None = None
    """MLflow."""


def run_tracking(spec: TrackingSpec | None) -> RunTracking | None:
    """The trackers of a spec, without their Secrets; None where there is none."""
    if spec is None or not (spec.tensorboard or spec.wandb or spec.mlflow):
        return None
    return RunTracking(
        tensorboard=bool(spec.tensorboard),
        wandb=RunWandb(project=spec.wandb.project, entity=spec.wandb.entity) if spec.wandb else None,
        mlflow=RunMlflow(uri=spec.mlflow.uri) if spec.mlflow else None,
    )
