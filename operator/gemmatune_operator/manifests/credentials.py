"""Tokens of the model hubs as environment variables that the kubelet fills from the user's Secrets."""

from __future__ import annotations

from gemmatune_api.defaults import SECRET_KEYS
from gemmatune_api.names import ENV_DATASET_TOKEN, Role
from gemmatune_api.placement import SecretRef
from gemmatune_api.spec import FineTuneSpec
from gemmatune_operator.manifests.pod import secret
from gemmatune_operator.ports import Object


def environment(spec: FineTuneSpec, role: Role) -> list[Object]:
    """The variables of a role: an attempt reads the model only, a preparation reads the data too."""
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
    return list(variables.values())


def _variables(uri: str) -> tuple[str, ...]:
    return SECRET_KEYS.get(uri.split("://", 1)[0], ())


def _from_secret(variable: str, reference: SecretRef, default_key: str) -> Object:
    return secret(variable, reference.name, reference.key or default_key)
