"""What the kubelet does to a container's command and environment, as functions of the pod and what it refers to."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from gemmatune_operator.ports import Object

Lookup = Callable[[str, str], Object | None]
"""Reads an object of the pod's namespace by plural kind and name, such as ("secrets", "hub"); None where absent."""


class ConfigError(Exception):
    """The container cannot be configured; the kubelet calls this CreateContainerConfigError and tries again."""


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` becomes the variable's value where there is one and stays as it is otherwise; `$$` becomes `$`."""

    def replace(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([-._A-Za-z][-._A-Za-z0-9]*)\)", replace, text)


def environment(pod: Object, container: Object, lookup: Lookup, base: Mapping[str, str]) -> dict[str, str]:
    """`base` with the container's envFrom and env.

    Errors: ConfigError for a missing object or key that is not optional, and for a source that is not known here.
    """
    variables = dict(base)
    for source in container.get("envFrom", []):
        prefix = source.get("prefix", "")
        for field, kind in (("secretRef", "secrets"), ("configMapRef", "configmaps")):
            if field in source:
                found = _read(lookup, kind, source[field])
                variables.update({prefix + key: value for key, value in found.items()})
    for variable in container.get("env", []):
        value = _value(pod, variable, lookup, variables)
        if value is not None:
            variables[variable["name"]] = value
    return variables


def _value(pod: Object, variable: Object, lookup: Lookup, variables: Mapping[str, str]) -> str | None:
    source = variable.get("valueFrom")
    if source is None:
        return expand(variable.get("value", ""), variables)
    if "fieldRef" in source:
        return _field(pod, source["fieldRef"]["fieldPath"])
    for field, kind in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
        if field in source:
            reference = source[field]
            found = _read(lookup, kind, reference)
            if reference["key"] in found:
                return found[reference["key"]]
            if reference.get("optional"):
                return None
            raise ConfigError(f"couldn't find key {reference['key']} in {kind} {reference['name']}")
    raise ConfigError(f"env {variable['name']}: this machine does not know the source {', '.join(source)}")


def _read(lookup: Lookup, kind: str, reference: Object) -> dict[str, str]:
    found = lookup(kind, reference["name"])
    if found is None:
        if reference.get("optional"):
            return {}
        raise ConfigError(f'{kind.removesuffix("s")} "{reference["name"]}" not found')
    data: dict[str, str] = found.get("data") or {}
    if kind == "secrets":
        return {key: base64.b64decode(value).decode() for key, value in data.items()}
    return data


def _field(pod: Object, path: str) -> str:
    match = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
    if match:
        return str(pod["metadata"].get(match[1], {}).get(match[2], ""))
    value: object = pod
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, (dict, list)) or (value is None and not path.startswith("status.")):
        raise ConfigError(f"fieldRef {path}: this machine cannot resolve it")
    return str(value or "")


def relocate(variables: Mapping[str, str], mounts: Mapping[str, Path]) -> dict[str, str]:
    """The variables with values that lie under a mount path pointed into the folder that stands for that volume."""

    def moved(value: str) -> str:
        for path, folder in mounts.items():
            if value == path or value.startswith(path + "/"):
                return str(folder) + value[len(path) :]
        return value

    return {name: moved(value) for name, value in variables.items()}
