"""The same prompts answered before and after training: greedy, so that a difference is the adapter's."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from gemmatune_api.runconfig import RunConfig
from gemmatune_trainer.backends.base import Backend
from gemmatune_trainer.data import images
from gemmatune_trainer.data.mapped import PreparedData, PreparedImages
from gemmatune_trainer.data.pack import IGNORED
from gemmatune_trainer.data.templates import prompt as render_prompt
from gemmatune_trainer.logs import log
from gemmatune_trainer.models import ModelFiles
from gemmatune_trainer.stop import StopFlag
from gemmatune_trainer.storage import ObjectMissing, Storage
from gemmatune_trainer.stored import Shape, Unreadable

BEFORE = "samples/before.json"
_TEXT_SHARE = 3
"""A row of text is asked to be continued from this part of it on."""


class _Before(Shape):
    prompts: list[str]
    tokens: int = Field(alias="maxNewTokens")
    answers: list[str]


class Samples:
    """The prompts of a run and how they are asked: through the chat template for instruct and chat."""

    def __init__(
        self, config: RunConfig, files: ModelFiles, stop: StopFlag, evaluation: PreparedData | None = None
    ) -> None:
        self.prompts = list(config.samples.prompts)
        self._config = config
        self._stop = stop
        rules = files.model.rules
        self._tokenizer = files.tokenizer
        self._inputs = [
            self._tokenizer.encode_prompt(render_prompt(text, config.dataset, rules)) for text in self.prompts
        ]
        self._images: list[Any] = [
            images.picture(uri, files.image_size, f"samples.prompts[{index}].image")
            for index, uri in enumerate(config.samples.images or [])
        ]
        for ids, image in _beginnings(config, evaluation):
            self._inputs.append(ids)
            text = self._tokenizer.decode(ids)
            self.prompts.append(text if image is None else text.removesuffix("\n"))
            self._images += [] if image is None else [image]
        found = (self._tokenizer.find_id(text) for text in rules.terminators)
        self.terminators = [token for token in found if token is not None]

    def answers(self, backend: Backend, when: str) -> list[str]:
        """The model's answer to each prompt."""
        answers = []
        pictures = [[image] for image in self._images] or [[] for _ in self.prompts]
        for text, ids, picture in zip(self.prompts, self._inputs, pictures, strict=True):
            self._stop.check(f"the samples {when} training")
            started = time.monotonic()
            tokens = backend.generate(ids, self._config.samples.max_new_tokens, self.terminators, *picture)
            self._stop.check(f"the samples {when} training")
            answers.append(self._tokenizer.decode(tokens))
            seconds = round(time.monotonic() - started, 2)
            log.info("sample", when=when, prompt=text, answer=answers[-1], seconds=seconds)
        return answers

    def before(self, backend: Backend, storage: Storage) -> list[str]:
        """The base model's answers: made by the first attempt, read from the bucket by the later ones."""
        asked = {"prompts": self.prompts, "maxNewTokens": self._config.samples.max_new_tokens}
        if (left := left_before(storage, asked)) is not None:
            return left
        with self._stop.nothing_new("the samples before training"):
            answers = self.answers(backend, "before")
        text = json.dumps({**asked, "answers": answers}, ensure_ascii=False, indent=2)
        storage.write(BEFORE, text.encode())
        return answers


def left_before(storage: Storage, asked: Mapping[str, Any]) -> list[str] | None:
    """The answers that an earlier attempt left of exactly these questions; None where it left none."""
    try:
        found = _Before.of(storage.read(BEFORE))
    except (ObjectMissing, Unreadable):
        log.debug("no samples of an earlier attempt")
        return None
    same = found.model_dump(by_alias=True, exclude={"answers"}) == asked and len(found.answers) == len(found.prompts)
    return found.answers if same else None


def _beginnings(config: RunConfig, evaluation: PreparedData | None) -> Iterator[tuple[list[int], Any]]:
    """Input ids of the prompts from the first evaluation rows: up to the last answer, or a third of a text; and the
    rows' images (None where they have none)."""
    for index in range(min(config.samples.from_eval, evaluation.rows) if evaluation is not None else 0):
        assert evaluation is not None
        ids, labels = evaluation.row(index)
        if config.dataset.text is not None:
            yield ids[: max(2, len(ids) // _TEXT_SHARE)], None
            continue
        trained = [label != IGNORED for label in labels]
        image = evaluation.image(index) if isinstance(evaluation, PreparedImages) else None
        yield ids[: max(place for place in range(1, len(ids)) if trained[place] and not trained[place - 1])], image
