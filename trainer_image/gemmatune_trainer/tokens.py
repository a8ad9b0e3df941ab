"""The token that a hub is shown: the dataset's own where it has one, and never one that is meant for another hub."""

from __future__ import annotations

import os

from gemmatune_api.defaults import SECRET_KEYS
from gemmatune_api.names import ENV_DATASET_TOKEN


def scheme_of(uri: str) -> str:
    """What stands before `://`."""
    return uri.partition("://")[0]


def model_token(uri: str) -> str | None:
    """The token of a hub's URI by the hub's usual variable; None where it has none."""
    keys = SECRET_KEYS.get(scheme_of(uri), ())
    return (os.environ.get(keys[0]) or None) if len(keys) == 1 else None


def token_for(uri: str, secret_of: str) -> str | None:
    """The token to read data from `uri` with, where dataset.secretRef belongs to the hub of `secret_of`.

    Without a secretRef, and for data on another hub, it is the hub's usual variable: that of the model.
    """
    if scheme_of(uri) == scheme_of(secret_of) and (own := os.environ.get(ENV_DATASET_TOKEN)):
        return own
    return model_token(uri)
