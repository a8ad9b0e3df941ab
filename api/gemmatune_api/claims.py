"""The volumes that a run reads by pvc://CLAIM/PATH, and which of its pods read which."""

from __future__ import annotations

from gemmatune_api.names import Role
from gemmatune_api.spec import FineTuneSpec

SCHEME = "pvc"


def claim_of(uri: str | None) -> str | None:
    """The claim that a URI names; None where it is no pvc:// URI."""
    scheme, _, rest = (uri or "").partition("://")
    return rest.partition("/")[0] if scheme == SCHEME else None


def claims(spec: FineTuneSpec, role: Role) -> list[str]:
    """The claims that the pods of a role read, each once: all of them the model's, only a preparation the data's."""
    uris = [spec.model.uri]
    if role is Role.PREPARE:
        uris += [spec.dataset.uri, spec.dataset.eval_uri or ""]
    return list(dict.fromkeys(claim for claim in map(claim_of, uris) if claim is not None))
