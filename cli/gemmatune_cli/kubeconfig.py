"""Which cluster a command speaks to: a context of the kubeconfig, or, where there is no kubeconfig, that of its pod."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kubernetes.config import incluster_config, kube_config

from gemmatune_cli.console import CommandError

_USUAL = "~/.kube/config"
_DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A context of the kubeconfig."""

    files: str
    """The kubeconfig's files, as KUBECONFIG names them."""
    context: str
    namespace: str


def chosen(context: str) -> Chosen | None:
    """The context of this name, "" for the current one; None where there is no kubeconfig, and none was asked for.

    A name that leads nowhere never leads to the pod's own cluster: what is done there was meant for another.

    Raises:
        CommandError: there is no such context; names those that there are.
        ConfigException, YAMLError: the kubeconfig cannot be read.
    """
    files = kube_config.KUBE_CONFIG_DEFAULT_LOCATION or _USUAL
    if not any(map(_is_there, files.split(os.pathsep))):
        if not context:
            return None
        raise CommandError(f"no cluster: no context {context}, since there is no kubeconfig {files}", "Set KUBECONFIG.")
    merged = kube_config.KubeConfigMerger(files).config
    found = {item["name"]: item.get("context") or {} for item in (node.value for node in merged["contexts"].value)}
    wanted = context or merged.safe_get("current-context")
    if wanted in found:
        return Chosen(files, wanted, found[wanted].get("namespace") or pod_namespace())
    there = f"Name one with --context: {', '.join(found)}." if found else "Set KUBECONFIG to another."
    if wanted:
        raise CommandError(f"no cluster: the kubeconfig {files} has no context {wanted}", there)
    raise CommandError(f"no cluster: the kubeconfig {files} names no current context", there)


def _is_there(file: str) -> bool:
    """Whether a file of KUBECONFIG is meant and exists; /dev/null is how one says that none is."""
    return file not in ("", os.devnull) and Path(file).expanduser().exists()


def pod_namespace() -> str:
    """The namespace where none is named: that of the pod in which gft runs, as for kubectl, else `default`."""
    folder = Path(incluster_config.SERVICE_TOKEN_FILENAME).parent
    if not (os.environ.get(incluster_config.SERVICE_HOST_ENV_NAME) and (folder / "token").is_file()):
        return _DEFAULT_NAMESPACE
    try:
        return (folder / "namespace").read_text(encoding="utf-8").strip() or _DEFAULT_NAMESPACE
    except OSError:
        return _DEFAULT_NAMESPACE
