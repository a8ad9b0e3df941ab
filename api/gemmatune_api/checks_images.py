"""The rules for images: which models and prompts go with dataset.imageText, and what has no meaning beside it."""

from __future__ import annotations

from collections.abc import Iterator

from gemmatune_api import catalog
from gemmatune_api.errors import Problem, shown
from gemmatune_api.spec import FineTuneSpec

_SCHEMES = ("gs://", "file:///")


def images(spec: FineTuneSpec) -> Iterator[Problem]:
    """imageText exactly with a PaliGemma, as far as the URI names a model; its rows are never packed."""
    data, model = spec.dataset, catalog.by_uri(spec.model.uri)
    if data.image_text is None:
        if model is not None and model.rules.images:
            yield Problem(
                "spec.dataset",
                f"{model.label} is trained on images, each with a prefix and a suffix",
                "Use dataset.imageText with backend keras, or a Gemma model for text.",
                shown(spec.model.uri),
            )
        return
    if model is not None and not model.rules.images:
        yield Problem(
            "spec.model.uri",
            "dataset.imageText needs a PaliGemma",
            "Name one, such as hf://google/paligemma-3b-pt-224, or use dataset.text, instruct or chat.",
            shown(spec.model.uri),
        )
    if data.packing:
        yield Problem(
            "spec.dataset.packing", "a row with an image has a sequence to itself", "Remove it.", shown(data.packing)
        )


def prompts(spec: FineTuneSpec) -> Iterator[Problem]:
    """A prompt has an image exactly where the data has them, and one that a pod can read."""
    for index, prompt in enumerate(spec.samples.blocks if spec.samples else []):
        path, image = f"spec.samples.prompts[{index}]", prompt.image
        if image is not None and spec.dataset.image_text is None:
            yield Problem(f"{path}.image", "has no meaning without dataset.imageText", "Remove it.", shown(image))
        elif spec.dataset.image_text is None:
            continue
        elif image is None:
            remedy = "Write {text: ..., image: gs://BUCKET/PATH}, or use samples.fromEval."
            yield Problem(path, "needs an image: the data is dataset.imageText", remedy, shown(prompt.text))
        elif not image.startswith(_SCHEMES):
            remedy = "Write gs://BUCKET/PATH or file:///PATH."
            yield Problem(f"{path}.image", "is no URI that images are read from", remedy, shown(image))
        elif image.startswith("gs://") and _bucket(image) not in _buckets(spec):
            remedy = "Copy it into the bucket of the data."
            yield Problem(f"{path}.image", "is in a bucket that the run names nowhere else", remedy, shown(image))


def _bucket(uri: str) -> str:
    return uri.removeprefix("gs://").partition("/")[0]


def _buckets(spec: FineTuneSpec) -> set[str]:
    """The buckets that model, data and output are in; which of them a run may name is an installation's to narrow."""
    uris = (spec.model.uri, spec.dataset.uri, spec.dataset.eval_uri or "", spec.output.uri)
    return {_bucket(uri) for uri in uris if uri.startswith("gs://")}
