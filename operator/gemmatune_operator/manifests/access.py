"""What lets a trainer's pod read its resource and write the four status fields that are its own."""

from __future__ import annotations

from gemmatune_api import names
from gemmatune_api.names import TRAINER_SERVICE_ACCOUNT
from gemmatune_operator.ports import Object

RBAC = "rbac.authorization.k8s.io"
KINDS = frozenset({"ServiceAccount", "Role", "RoleBinding"})


def objects(namespace: str, service_account: str | None) -> list[Object]:
    """The access objects of a namespace, in the order in which they are created where absent.

    `service_account` is the resource's pod.serviceAccountName: it gets a RoleBinding of its own, and the account
    itself is its owner's affair. They belong to no run, so that all runs of the namespace share them.
    """
    named = service_account if service_account not in (None, TRAINER_SERVICE_ACCOUNT) else None
    role = {
        "apiVersion": f"{RBAC}/v1",
        "kind": "Role",
        "metadata": _metadata(namespace, TRAINER_SERVICE_ACCOUNT),
        "rules": [
            {"apiGroups": [names.GROUP], "resources": [names.PLURAL], "verbs": ["get"]},
            {"apiGroups": [names.GROUP], "resources": [f"{names.PLURAL}/status"], "verbs": ["patch"]},
        ],
    }
    if named is not None:
        return [role, _binding(namespace, f"{TRAINER_SERVICE_ACCOUNT}-{named}", named)]
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(namespace, TRAINER_SERVICE_ACCOUNT),
    }
    return [account, role, _binding(namespace, TRAINER_SERVICE_ACCOUNT, TRAINER_SERVICE_ACCOUNT)]


def _metadata(namespace: str, name: str) -> Object:
    return {"name": name, "namespace": namespace, "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY}}


def _binding(namespace: str, name: str, account: str) -> Object:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": _metadata(namespace, name),
        "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": TRAINER_SERVICE_ACCOUNT},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }
