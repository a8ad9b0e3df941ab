"""The rules between the fields of model, dataset and output."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gemmatune_api import template, uris
from gemmatune_api.base import OBJECT_NAME_PATTERN
from gemmatune_api.claims import SCHEME
from gemmatune_api.defaults import DATASET, backend_of
from gemmatune_api.errors import Problem, shown
from gemmatune_api.placement import SecretRef
from gemmatune_api.runconfig import RUN_CONFIG_BYTES
from gemmatune_api.spec import FineTuneSpec

_HUBS = ("hf", "ms", "kaggle")
"""Schemes of hubs: they have revisions and tokens; the others use the pod's ServiceAccount or nothing."""

KAGGLE_FRAMEWORK = "transformers"
"""Of the frameworks for which Kaggle has a model's files, the one that has safetensors and tokenizer.json."""

TEXT_BYTES = RUN_CONFIG_BYTES - 8 * 1024
"""Bytes of text in a spec; what else RunConfig holds takes less than the rest."""

_SHAPES = {
    "hf": (r"[^/\s]+(/[^/\s]+){0,1}", "hf://ORG/NAME"),
    "ms": (r"[^/\s]+/[^/\s]+", "ms://ORG/NAME"),
    "kaggle": (r"[^/\s]+(/[^/\s]+){3}", "kaggle://OWNER/MODEL/FRAMEWORK/VARIATION"),
    "gs": (r"[^/\s]+/.+", "gs://BUCKET/PATH"),
    "pvc": (r"[^/\s]+/.+", "pvc://CLAIM/PATH"),
    "file": (r"/.+", "file:///PATH"),
}
"""What follows the scheme."""


def _scheme(uri: str) -> str:
    return uri.split("://", 1)[0]


def _uri(path: str, uri: str) -> Iterator[Problem]:
    """A URI has what its scheme needs."""
    scheme, rest = uri.split("://", 1)
    pattern, form = _SHAPES[scheme]
    if re.fullmatch(pattern, rest, re.DOTALL) is None:
        yield Problem(path, f"is no {scheme}:// URI", f"Write {form}.", shown(uri))
    elif any(ord(character) < 32 for character in uri):
        yield Problem(path, "has a line break or another control character", "Remove it.", shown(uri))
    elif scheme == SCHEME:
        yield from _claim(path, uri)


def _claim(path: str, uri: str) -> Iterator[Problem]:
    """A claim's name is that of an object, and the path stays inside its volume."""
    claim, _, inside = uri.removeprefix(f"{SCHEME}://").partition("/")
    if re.fullmatch(OBJECT_NAME_PATTERN, claim) is None:
        yield Problem(
            path,
            "names a claim that cannot exist: small letters, digits, - and . are possible",
            "Write pvc://CLAIM/PATH with the PersistentVolumeClaim's name.",
            shown(claim),
        )
    elif ".." in inside.split("/"):
        yield Problem(path, "has a .. in its path", "Write the path without it.", shown(uri))


def _kaggle(uri: str) -> Iterator[Problem]:
    """A framework whose files the trainer reads."""
    parts = uri.removeprefix("kaggle://").split("/")
    if len(parts) == 4 and parts[2].lower() != KAGGLE_FRAMEWORK:
        yield Problem(
            "spec.model.uri",
            f"the weights are read as safetensors, which Kaggle has under FRAMEWORK {KAGGLE_FRAMEWORK}",
            f"Use kaggle://{parts[0]}/{parts[1]}/{KAGGLE_FRAMEWORK}/VARIATION; backend keras converts them.",
            shown(uri),
        )


def _hub_only(path: str, uri: str, field: str, value: object, why: str) -> Iterator[Problem]:
    if value is not None and _scheme(uri) not in _HUBS:
        yield Problem(f"{path}.{field}", f"has no meaning with {_scheme(uri)}://: {why}", "Remove it.", shown(value))


def _secret(path: str, uri: str, secret: SecretRef | None) -> Iterator[Problem]:
    if secret is None:
        return
    if _scheme(uri) not in _HUBS:
        access = "the pod's ServiceAccount" if _scheme(uri) == "gs" else "no token"
        yield Problem(
            f"{path}.secretRef",
            f"has no meaning with {_scheme(uri)}://, which uses {access}",
            "Remove it.",
            shown(secret.name),
        )
    elif _scheme(uri) == "kaggle" and secret.key is not None:
        yield Problem(
            f"{path}.secretRef.key",
            "kaggle:// reads two keys, KAGGLE_USERNAME and KAGGLE_KEY",
            "Remove it, and give the Secret both keys.",
            shown(secret.key),
        )


def model(spec: FineTuneSpec) -> Iterator[Problem]:
    """The model's URI is whole; token and revision belong to hubs."""
    uri = spec.model.uri
    yield from _uri("spec.model.uri", uri)
    if uri.startswith("hf://") and uri.count("/") < 3:
        yield Problem("spec.model.uri", "names no organisation", "Write hf://ORG/NAME.", shown(uri))
    if uri.startswith("kaggle://"):
        yield from _kaggle(uri)
    yield from _hub_only("spec.model", uri, "revision", spec.model.revision, "only hubs have revisions")
    yield from _secret("spec.model", uri, spec.model.secret_ref)


def dataset(spec: FineTuneSpec) -> Iterator[Problem]:
    """Exactly one format; configuration, split, revision and token only for dataset repositories."""
    data, path = spec.dataset, "spec.dataset"
    yield from _uri(f"{path}.uri", data.uri)
    if data.eval_uri is not None:
        yield from _uri(f"{path}.evalUri", data.eval_uri)
        if not data.eval_uri.startswith(("hf://", "ms://")) and data.eval_uri.rstrip("/") == data.uri.rstrip("/"):
            yield Problem(
                f"{path}.evalUri",
                "names the rows that are trained",
                "Name other rows, or use evalFraction.",
                shown(data.eval_uri),
            )
    formats = {"text": data.text, "instruct": data.instruct, "chat": data.chat, "imageText": data.image_text}
    given = [name for name, block in formats.items() if block is not None]
    if len(given) > 1:
        yield Problem(
            path,
            "exactly one of text, instruct, chat and imageText is possible",
            f"Keep one of {' and '.join(given)}.",
            ", ".join(given),
        )
    elif not given:
        yield Problem(
            path,
            "exactly one of text, instruct, chat and imageText is required",
            "Add one, such as text: {template: ...}.",
        )
    if data.image_text is not None and backend_of(spec) != "keras":
        yield Problem(
            f"{path}.imageText", "needs backend keras", "Set backend to keras.", f"backend {backend_of(spec)}"
        )
    files = "files have none"
    yield from _hub_only(path, data.uri, "config", data.config, files)
    yield from _hub_only(path, data.uri, "split", None if data.split == DATASET["split"] else data.split, files)
    yield from _hub_only(path, data.uri, "revision", data.revision, files)
    yield from _secret(path, data.uri, data.secret_ref)


def templates(spec: FineTuneSpec) -> Iterator[Problem]:
    """Templates can be read, and take something from the row."""
    data = spec.dataset
    given: dict[str, str] = {}
    if data.text is not None:
        given["spec.dataset.text.template"] = data.text.template
    if data.image_text is not None:
        given["spec.dataset.imageText.prefix"] = data.image_text.prefix
        given["spec.dataset.imageText.suffix"] = data.image_text.suffix
    for path, text in given.items():
        try:
            columns = template.columns(text)
        except template.TemplateError as error:
            remedy = "Write {column} for a value, {{ and }} for braces."
            yield Problem(path, str(error), remedy, shown(text))
            continue
        if not columns and not path.endswith(".prefix"):
            yield Problem(
                path,
                "takes nothing from the row: every row would be the same",
                "Name a column as {column}.",
                shown(text),
            )


def output(spec: FineTuneSpec) -> Iterator[Problem]:
    """A plain prefix, without what a shell or a URL would read into it."""
    yield from uris.plain("spec.output.uri", spec.output.uri)


def size(spec: FineTuneSpec) -> Iterator[Problem]:
    """The texts that a trainer is told fit into its one environment variable."""
    blocks = (spec.model, spec.dataset, spec.output, spec.samples, spec.lora, spec.qlora)
    texts = "".join(block.model_dump_json(by_alias=True) for block in blocks if block is not None)
    length = len(texts.replace("$", "\\u0024").encode())
    if length > TEXT_BYTES:
        yield Problem(
            "spec",
            f"model, dataset, output, samples and adapter have more than {TEXT_BYTES} bytes of text together",
            "Shorten templates, prompts or system text.",
            f"{length} bytes",
        )
