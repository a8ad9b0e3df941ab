"""Tokens of hubs and trackers as environment variables that the kubelet fills from the user's Secrets."""

from __future__ import annotations

from gemmatune_api.defaults import SECRET_KEYS
from gemmatune_api.names import ENV_DATASET_TOKEN, Role
from gemmatune_api.placement import SecretRef, TrackingSpec
from gemmatune_api.runtracking import MLFLOW_KEY, WANDB_KEY
from gemmatune_api.spec import FineTuneSpec
from gemmatune_operator.manifests.pod import secret
from gemmatune_operator.ports import Object


def environment(spec: FineTuneSpec, role: Role) -> list[Object]:
    """The variables of a role: an attempt reads the model and writes to trackers, a preparation reads the data too."""
    variables: dict[str, Object] = {}
    sources = [spec.model.uri, spec.dataset.uri] if role is Role.PREPARE else [spec.model.uri]
    for uri in sources:
        for variable in _variables(uri):
            if spec.model.secret_ref is not None:
                variables[variable] = _from_secret(variable, spec.model.secret_ref, variable)
    reference = spec.dataset.secret_ref
    if role is Role.PREPARE and reference is not None:
        for key in _variables(spec.dataset.uri):
            variables[ENV_DATASET_TOKEN] = _from_secret(ENV_DATASET_TOKEN, reference, key)
    if role is Role.TRAIN and spec.tracking is not None:
        variables |= _trackers(spec.tracking)
    return list(variables.values())


def _trackers(tracking: TrackingSpec) -> dict[str, Object]:
    keys = {
        WANDB_KEY: tracking.wandb.secret_ref if tracking.wandb else None,
        MLFLOW_KEY: tracking.mlflow.secret_ref if tracking.mlflow else None,
    }
    return {key: _from_secret(key, reference, key) for key, reference in keys.items() if reference is not None}


def _variables(uri: str) -> tuple[str, ...]:
    return SECRET_KEYS.get(uri.split("://", 1)[0], ())


def _from_secret(variable: str, reference: SecretRef, default_key: str) -> Object:
    return secret(variable, reference.name, reference.key or default_key)
