"""The rules for images: specs that keep and break each."""

from __future__ import annotations

from typing import Any

from tests.support.resources import MISSING

Changes = dict[str, Any]

IMAGES: Changes = {
    "spec.model": {"uri": "hf://google/paligemma-3b-pt-224"},
    "spec.backend": "keras",
    "spec.accelerator": {"cpu": {}},
    "spec.dataset.text": MISSING,
    "spec.dataset.imageText": {"image": "file", "prefix": "caption", "suffix": "{text}"},
}

GOOD: dict[str, Changes] = {
    "images on keras": IMAGES,
    "images with a model of no known name": {**IMAGES, "spec.model": {"uri": "file:///models/mine"}},
    "prompt as a block": {"spec.samples": {"prompts": ["a", {"text": "b"}]}},
    "prompt with an image": {**IMAGES, "spec.samples": {"prompts": [{"text": "b", "image": "gs://my-bucket/i.png"}]}},
}

BAD: dict[str, tuple[Changes, str, str, str]] = {
    # rule: (changes, path, message, remedy)
    "prompts: an image without images": (
        {"spec.samples": {"prompts": ["a", {"text": "b", "image": "i"}]}},
        "spec.samples.prompts[1].image",
        "has no meaning without dataset.imageText",
        "Remove it",
    ),
    "prompts: images without an image": (
        {**IMAGES, "spec.samples": {"prompts": [{"text": "b", "image": "gs://my-bucket/i.png"}, "caption en"]}},
        "spec.samples.prompts[1]",
        "needs an image",
        "gs://BUCKET/PATH",
    ),
    "prompts: an image of a website": (
        {**IMAGES, "spec.samples": {"prompts": [{"text": "b", "image": "https://h/i.png"}]}},
        "spec.samples.prompts[0].image",
        "no URI that images are read from",
        "gs://BUCKET/PATH",
    ),
    "prompts: an image of a foreign bucket": (
        {**IMAGES, "spec.samples": {"prompts": [{"text": "b", "image": "gs://other/i.png"}]}},
        "spec.samples.prompts[0].image",
        "is in a bucket that the run names nowhere else",
        "bucket of the data",
    ),
    "images: text for a PaliGemma": (
        {"spec.model": {"uri": "hf://google/paligemma2-3b-mix-224"}},
        "spec.dataset",
        "paligemma2-3b is trained on images",
        "Use dataset.imageText with backend keras",
    ),
    "images: another model": (
        {**IMAGES, "spec.model": {"uri": "hf://google/gemma-2-2b"}},
        "spec.model.uri",
        "needs a PaliGemma",
        "hf://google/paligemma-3b-pt-224",
    ),
    "images: packed": (
        {**IMAGES, "spec.dataset.packing": True},
        "spec.dataset.packing",
        "has a sequence to itself",
        "Remove it",
    ),
}
