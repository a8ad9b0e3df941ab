"""Documents to text by the rules of a Gemma generation, and the chat template that goes with an adapter.

A rendered document is a sequence of segments. A control segment is one control token of the model; the text of any
other segment is plain, whatever it looks like: `<end_of_turn>` inside data never ends a turn (tokenize.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from gemmatune_api.catalog import GenerationRules
from gemmatune_api.runconfig import RunDataset
from gemmatune_trainer.data.formats import Conversation, Document, ImageText, Text, Turn, system_text
from gemmatune_trainer.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a rendered document: its text, whether it is trained, whether it is a control token."""

    text: str
    trained: bool = False
    control: bool = False


def check(dataset: RunDataset, rules: GenerationRules) -> None:
    """Whether a generation can be trained in the format of the data.

    Raises:
        InvalidConfig: images are asked of a generation that reads none here, or turns or text of one that takes images.
    """
    if rules.images and dataset.image_text is None:
        raise InvalidConfig(
            "the model is a PaliGemma, which is trained on images with a prefix and a suffix, and dataset has none",
            "Use dataset.imageText with backend keras, or a Gemma model for text.",
        )
    if dataset.image_text is not None and not rules.images:
        raise InvalidConfig(
            f"dataset.imageText needs a PaliGemma, and the model is of generation {rules.generation}",
            "Name a PaliGemma model, such as hf://google/paligemma-3b-pt-224, or use text, instruct or chat.",
        )


def render(document: Document, rules: GenerationRules) -> list[Segment]:
    """The segments of a training row: one BOS, and every trained text with the token that ends it.

    A text ends with EOS. A turn ends with the generation's end of turn; the newline after it is never trained. So
    does a suffix end with EOS; the image's tokens stand before all of it, and the backend puts them there.
    """
    if isinstance(document, Text):
        return [_control(rules.bos), Segment(document.text, trained=True), _control(rules.eos, trained=True)]
    if isinstance(document, ImageText):
        suffix = [Segment(document.suffix, trained=True), _control(rules.eos, trained=True)]
        return [_control(rules.bos), Segment(f"{document.prefix}\n"), *suffix]
    return [_control(rules.bos), *_turns(document, rules)]


def prompt(text: str, dataset: RunDataset, rules: GenerationRules) -> list[Segment]:
    """The segments that a model continues: the text itself, or for instruct and chat a user's turn with `text`."""
    if dataset.text is not None:
        return [_control(rules.bos), Segment(text)]
    if dataset.image_text is not None:
        return [_control(rules.bos), Segment(f"{text}\n")]
    asked = Conversation(system_text(dataset), (Turn("user", text.strip()),))
    opening = [_control(rules.turn_start), Segment(f"{rules.model_role}\n")]
    return [_control(rules.bos), *_turns(asked, rules), *opening]


def _turns(conversation: Conversation, rules: GenerationRules) -> Iterator[Segment]:
    before = ""
    if conversation.system.strip():
        if rules.system == "native":
            yield from _turn(rules, rules.system_role, conversation.system.strip())
        else:
            before = conversation.system + rules.system_separator
    for turn in conversation.turns:
        role = rules.model_role if turn.role == "assistant" else rules.user_role
        yield from _turn(rules, role, before + turn.text, turn.trained)
        before = ""


def _turn(rules: GenerationRules, role: str, text: str, trained: bool = False) -> Iterator[Segment]:
    yield _control(rules.turn_start)
    yield Segment(f"{role}\n")
    yield Segment(text, trained)
    yield _control(rules.turn_end, trained)
    yield Segment("\n")


def _control(text: str, trained: bool = False) -> Segment:
    return Segment(text, trained, control=True)


def chat_template(rules: GenerationRules) -> str:
    """The chat template (Jinja) of the tokenizer that is saved with an adapter: `apply_chat_template` gives what was
    trained, from messages with the roles system (first, optional), user and assistant.

    Raises:
        ValueError: the generation has no turns.
    """
    if not rules.chat:
        raise ValueError(f"generation {rules.generation} has no chat turns")
    words = {
        "START": rules.turn_start,
        "END": rules.turn_end,
        "USER": rules.user_role,
        "MODEL": rules.model_role,
        "SYSTEM": rules.system_role,
        "SEPARATOR": rules.system_separator,
    }
    template = "".join(line.strip() for line in _CHAT_TEMPLATE.replace("@OPENING", _OPENING[rules.system]).splitlines())
    for name, value in words.items():
        template = template.replace(f"@{name}", json.dumps(value, ensure_ascii=False))
    return template


_OPENING = {
    "fold": "{%- set before = system + @SEPARATOR if system | trim else '' -%}",
    "native": """
        {%- set before = '' -%}
        {%- if system | trim -%}{{ @START + @SYSTEM + '\\n' + system | trim + @END + '\\n' }}{%- endif -%}
    """,
}
# Line breaks and indentation are taken out, so that each line's white space is what its strings say.
_CHAT_TEMPLATE = """
{{- bos_token -}}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
@OPENING
{%- for turn in turns -%}
    {%- if turn['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
        {{- raise_exception('user and assistant must take turns, beginning with user') -}}
    {%- endif -%}
    {{ @START + (@USER if turn['role'] == 'user' else @MODEL) + '\\n' }}
    {{ (before if loop.first else '') + turn['content'] | trim + @END + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ @START + @MODEL + '\\n' }}{%- endif -%}
"""
