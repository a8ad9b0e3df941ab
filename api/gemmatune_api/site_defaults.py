"""Defaults that a site gives: the chart's `defaults` for all, the ConfigMap gemmatune-defaults for one namespace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from gemmatune_api import uris, yamlio
from gemmatune_api.base import ObjectName, StatusModel
from gemmatune_api.defaults import SECRET_KEYS
from gemmatune_api.errors import InvalidResourceError, Problem, problems_of, shown
from gemmatune_api.names import DEFAULTS_CONFIG_MAP, Reason
from gemmatune_api.patterns import OUTPUT_URI_PATTERN
from gemmatune_api.placement import PodSpec, SecretRef
from gemmatune_api.spec import FineTuneSpec, GemmaFineTune

_SECRET_BYTES = 1024
"""Longest text of a secretRef; a longer one is not read as YAML at all."""
_SECRET, _PREFIX, _CACHE = "secretRef", "outputPrefix", "modelCache"


class SiteDefaults(StatusModel):
    """What a resource that does not say otherwise gets."""

    output_prefix: Annotated[str, Field(pattern=OUTPUT_URI_PATTERN, max_length=896)] | None = None
    """A run without output.uri writes to PREFIX/NAMESPACE/NAME."""
    secret_ref: SecretRef | None = None
    """Secret of the run's namespace with the hub's token: model.secretRef; dataset.secretRef of a model from no hub."""
    service_account_name: ObjectName | None = None
    """pod.serviceAccountName."""
    priority_class_name: ObjectName | None = None
    """pod.priorityClassName."""
    model_cache: Annotated[str, Field(pattern=OUTPUT_URI_PATTERN, max_length=896)] | None = None
    """Prefix of copies of hubs' models, PREFIX/hf/ORG/NAME/COMMIT: preparations make them, trainers read them."""

    def over(self, below: SiteDefaults) -> SiteDefaults:
        """These, field by field over others; a field that is given as empty takes the other away."""
        return below.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})

    @property
    def given(self) -> bool:
        """Whether there is any default at all."""
        return any(value is not None for _, value in self)


class _AsWritten(SiteDefaults):
    """The same as people write it: an unknown name is refused, with the one that was meant."""

    model_config = ConfigDict(extra="forbid")


def of_file(text: str) -> SiteDefaults:
    """The installation's defaults, from YAML.

    Raises:
        InvalidResourceError: no YAML, an unknown name, or a value that cannot be.
    """
    documents = yamlio.load_all(text) or [{}]
    table = documents[0] if len(documents) == 1 else documents
    if not isinstance(table, dict):
        remedy = f"Write lines such as `{_PREFIX}: gs://my-bucket/runs`."
        raise InvalidResourceError([Problem("the defaults", "must be a block of fields", remedy, shown(table))])
    return _read(table)


def of_config_map(data: Mapping[str, Any]) -> SiteDefaults:
    """A namespace's defaults, from the data of its ConfigMap: the same names, each with a text.

    Raises:
        InvalidResourceError: its problems name the ConfigMap, the key, the value and the remedy.
    """
    try:
        return _read({**data, _SECRET: _secret_of(data[_SECRET])} if _SECRET in data else data)
    except InvalidResourceError as error:
        where = f"ConfigMap {DEFAULTS_CONFIG_MAP}"
        problems = [replace(p, path=f"{where}, {p.path}", reason=Reason.INVALID_DEFAULTS) for p in error.problems]
        raise InvalidResourceError(problems) from error


def applied(resource: GemmaFineTune, given: SiteDefaults) -> GemmaFineTune:
    """The resource with what it leaves open and the site gives; what it says itself always wins."""
    spec, meta = resource.spec, resource.metadata
    updates: dict[str, Any] = {}
    if given.output_prefix is not None and not spec.output.uri:
        uri = f"{given.output_prefix.rstrip('/')}/{meta.namespace}/{meta.name}"
        updates["output"] = spec.output.model_copy(update={"uri": uri})
    if given.secret_ref is not None:
        updates |= _with_secret(spec, given.secret_ref)
    pod = spec.pod or PodSpec()
    names = {"service_account_name": given.service_account_name, "priority_class_name": given.priority_class_name}
    absent = {field: name for field, name in names.items() if name is not None and getattr(pod, field) is None}
    if absent:
        updates["pod"] = pod.model_copy(update=absent)
    return resource.model_copy(update={"spec": spec.model_copy(update=updates)}) if updates else resource


def without_output(resource: GemmaFineTune) -> list[Problem]:
    """The problem of a resource that says not where its results go, and no default either."""
    if resource.spec.output.uri:
        return []
    remedy = (
        f"Set output.uri; or give a prefix for all runs: {_PREFIX} in the ConfigMap {DEFAULTS_CONFIG_MAP} of the "
        f"namespace, or defaults.{_PREFIX} in the chart's values, and try again."
    )
    return [Problem("spec.output.uri", "is required, since no default gives a prefix", remedy)]


def _with_secret(spec: FineTuneSpec, reference: SecretRef) -> dict[str, Any]:
    """The hub's Secret for the model; for the data, which else gets the model's, where the model is from no hub."""
    for name, block in (("model", spec.model), ("dataset", spec.dataset)):
        keys = SECRET_KEYS.get(block.uri.split("://", 1)[0], ())
        if not keys:
            continue
        if block.secret_ref is not None:
            return {}
        # A hub with a name and a key of its own has both in the Secret, by their usual names.
        fitting = reference if len(keys) == 1 else SecretRef(name=reference.name)
        return {name: block.model_copy(update={"secret_ref": fitting})}
    return {}


def _secret_of(text: Any) -> Any:
    """A secretRef as a ConfigMap has it, in YAML; something else for a text that is none."""
    if not isinstance(text, str) or len(text) > _SECRET_BYTES:
        return text
    try:
        documents = yamlio.load_all(text)
    except InvalidResourceError:
        return text
    return documents[0] if len(documents) == 1 else (text and documents)


def _read(table: Mapping[str, Any]) -> SiteDefaults:
    known = {field.alias: name for name, field in SiteDefaults.model_fields.items()}
    empty = [name for name, value in table.items() if name in known and value in ("", None, {}, [])]
    written = {name: value for name, value in table.items() if name not in empty}
    if _SECRET in written and not isinstance(written[_SECRET], dict):
        problem = Problem(_SECRET, "must name a Secret", "Write {name: hf-token}.", shown(written[_SECRET]))
        raise InvalidResourceError([problem])
    try:
        found = _AsWritten.model_validate(written, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        raise InvalidResourceError(problems_of(error, _AsWritten)) from error
    prefixes = ((_PREFIX, found.output_prefix), (_CACHE, found.model_cache))
    if problems := [problem for name, uri in prefixes for problem in uris.plain(name, uri or "")]:
        raise InvalidResourceError(problems)
    # Fields that were written as empty count as given: they take away what stands below.
    fields = {name: getattr(found, name) for name in found.model_fields_set} | {known[name]: None for name in empty}
    return SiteDefaults(**fields)
