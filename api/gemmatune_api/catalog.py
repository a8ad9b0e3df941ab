"""The Gemma family: every published size, and the rules of each generation for prompts, attention and adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

from gemmatune_api.shapes import ATTENTION_TARGETS, LARGEST, LINEAR_TARGETS, DecoderShape, is_size, siglip_parameters
from gemmatune_api.vision import KEYS, VisionShape, vision_of

Preset = Literal["all-linear", "attention"]
_TARGET_PRESETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"all-linear": LINEAR_TARGETS, "attention": ATTENTION_TARGETS}
)


@dataclass(frozen=True, kw_only=True)
class GenerationRules:
    """How a generation is prompted, run and adapted.

    A turn is `turn_start` + role + newline + text + `turn_end` + newline. `system` fold: the system text stands
    before the first user text, with an empty line between; native: it is a turn of its own with `system_role`.
    """

    generation: str
    multimodal: bool = False
    """Whether these are the rules of checkpoints with a vision tower."""
    bos: str = "<bos>"
    eos: str = "<eos>"
    pad: str = "<pad>"
    chat: bool = True
    """Whether the generation has turns."""
    images: bool = False
    """Whether it is trained on an image with each text, a prefix and a suffix (PaliGemma)."""
    turn_start: str
    turn_end: str
    user_role: str = "user"
    model_role: str = "model"
    system: Literal["fold", "native"]
    system_role: str = "system"
    system_separator: str = "\n\n"
    terminator_ids: tuple[int, ...]
    """generation_config.eos_token_id of the published instruct checkpoints."""
    attention: Literal["eager", "sdpa"]
    """attn_implementation that computes this generation correctly everywhere."""
    notes: tuple[str, ...] = ()

    @property
    def terminators(self) -> tuple[str, ...]:
        """Texts of the tokens at which generation ends: `<eos>` and the end of a turn."""
        return (self.eos, self.turn_end)

    @property
    def auto_class(self) -> str:
        """transformers' auto class that loads the published checkpoint's own class."""
        return "AutoModelForImageTextToText" if self.multimodal else "AutoModelForCausalLM"

    @property
    def key_prefix(self) -> str:
        """What the adapter's tensor names begin with, up to the layer's number."""
        return f"base_model.model.{self.layers_path}."

    @property
    def layers_path(self) -> str:
        """Path of the text decoder's layers inside the model."""
        return "model.language_model.layers" if self.multimodal else "model.layers"

    @property
    def target_modules(self) -> Mapping[str, Sequence[str] | str]:
        """PEFT's target_modules for each preset (`all-linear`, `attention`), of the text decoder only."""
        return {preset: self.peft_targets(preset) for preset in _TARGET_PRESETS}

    def peft_targets(self, target_modules: str | Sequence[str]) -> list[str] | str:
        """PEFT's target_modules for a preset or for module names.

        With a vision tower it is a regular expression, because a list of names would adapt the tower too.
        """
        names = target_names(target_modules)
        if not self.multimodal:
            return list(names)
        return rf".*language_model\..*\.({'|'.join(names)})"


@dataclass(frozen=True, kw_only=True)
class GemmaModel(DecoderShape):
    """One model: its shape, its weights and where it is published. `name` is empty for a shape of no known name."""

    name: str
    family: str
    """model_type of its config.json."""
    generation: str
    """1, 2, 3, 3n, 4, paligemma or paligemma2."""
    model_class: str
    """transformers' class of the published checkpoint."""
    multimodal: bool = False
    hub_ids: tuple[str, ...] = ()
    context_length: int = 8192
    towers: int = 0
    """Weights outside the text decoder (vision, audio, projections); they are neither quantised nor trained."""
    vision: VisionShape | None = None
    """The vision tower of a PaliGemma."""
    stored_bytes: int = 2
    """Bytes of a weight in the published files; where base and instruct checkpoints differ, the larger."""
    notes: tuple[str, ...] = ()
    """What a user should know about this model."""

    @property
    def label(self) -> str:
        """The name, or the family and size for a shape of no known name (`gemma3_text 12M`)."""
        return self.name or f"{self.family} {_rounded(self.parameters)}"

    @property
    def parameters(self) -> int:
        """Weights that are loaded: text decoder and towers."""
        return self.text_parameters + self.towers

    @property
    def checkpoint_parameters(self) -> int:
        """Weights that the checkpoint's files hold."""
        return self.parameters + self.unused_kv

    @property
    def quantisable(self) -> int:
        """Weights that 4- or 8-bit loading shrinks: the decoder's linear modules."""
        return self.linear

    @property
    def rules(self) -> GenerationRules:
        """The rules of its generation, for its kind of checkpoint."""
        return rules(self.generation, multimodal=self.multimodal)

    @property
    def all_notes(self) -> tuple[str, ...]:
        """Notes of the model and of its generation."""
        tower = ("The adapter changes the text decoder only; the vision tower stays as it is.",)
        return (*self.notes, *self.rules.notes, *(tower if self.multimodal else ()))

    def trainable(self, rank: int, target_modules: str | Sequence[str], *, dora: bool = False) -> int:
        """Weights of a LoRA adapter (PEFT's count)."""
        return self.lora_parameters(rank, target_names(target_modules), dora=dora)


@dataclass(frozen=True)
class _Family:
    """What a model_type of transformers is."""

    generation: str
    model_class: str
    multimodal: bool = False
    text_family: str | None = None


@dataclass(frozen=True)
class _Catalog:
    rules: Mapping[str, GenerationRules]
    families: Mapping[str, _Family]
    models: tuple[GemmaModel, ...]
    by_name: Mapping[str, GemmaModel] = field(default_factory=dict)


def target_names(target_modules: str | Sequence[str]) -> tuple[str, ...]:
    """Module names of a preset (`all-linear`, `attention`), or the names themselves."""
    if isinstance(target_modules, str):
        return _TARGET_PRESETS.get(target_modules, (target_modules,))
    return tuple(target_modules)


def by_name(name: str) -> GemmaModel | None:
    """The model of a catalog name (`gemma-2-2b`) or of a hub id's last part (`gemma-2-2b-it`); case is ignored."""
    return _catalog().by_name.get(name.lower())


def by_uri(uri: str) -> GemmaModel | None:
    """The model behind a URI, by hub id or by a last path segment that is a known name; else None.

    `hf://google/gemma-2-2b`, `hf://unsloth/gemma-3-270m-it`, `gs://bucket/models/gemma-3-270m`.
    """
    scheme, _, path = uri.partition("://")
    path = path.rstrip("/")
    if scheme == "hf" and (found := _catalog().by_name.get(path.lower())):
        return found
    return by_name(path.rsplit("/", 1)[-1])


@cache
def rules(generation: str, *, multimodal: bool = False) -> GenerationRules:
    """The rules of a generation (`1`, `2`, `3`, `3n`, `4`, `paligemma`, `paligemma2`).

    Raises:
        KeyError: no such generation.
    """
    return replace(_catalog().rules[generation], multimodal=multimodal)


def models() -> tuple[GemmaModel, ...]:
    """All models of the catalog, from the oldest generation to the newest."""
    return _catalog().models


def by_config(config: Mapping[str, Any]) -> GemmaModel | None:
    """The model of a Hugging Face config.json, or of PreparedModel.shape (what `planner_shape` kept of it).

    A shape of the Gemma family that matches no known size yields a model without a name, its weights computed from
    the shape; anything else yields None.
    """
    family = str(config.get("model_type", ""))
    known = _catalog().families.get(family)
    if known is None:
        return None
    text = _text_config(config)
    try:
        shape, context = _shape(text, known.generation), int(text.get("max_position_embeddings") or 8192)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        return None
    if not (shape.is_possible and 0 < context < LARGEST):
        return None
    generation = known.generation
    if generation == "paligemma" and text.get("model_type") == "gemma2":
        generation = "paligemma2"
    tower = vision_of(config) if known.generation == "paligemma" else None
    named = _named(shape, family, generation)
    if named is not None:
        return replace(named, towers=_towers(config, shape) or named.towers, vision=tower) if tower else named
    return GemmaModel(
        name="",
        family=family,
        generation=generation,
        model_class=known.model_class,
        multimodal=known.multimodal,
        context_length=context,
        towers=_towers(config, shape) if known.multimodal else 0,
        vision=tower,
        **{item.name: getattr(shape, item.name) for item in fields(DecoderShape)},
    )


_TEXT_KEYS = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "sliding_window",
    "sliding_window_pattern",
    "global_head_dim",
    "num_global_key_value_heads",
    "attention_k_eq_v",
    "num_kv_shared_layers",
    "use_double_wide_mlp",
    "hidden_size_per_layer_input",
    "vocab_size_per_layer_input",
    "num_experts",
    "moe_intermediate_size",
    "top_k_experts",
    "altup_num_inputs",
    "laurel_rank",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
_VISION_KEYS = ("hidden_size", "num_hidden_layers", "intermediate_size", "patch_size", "image_size")


def planner_shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `by_config` reads of a config.json, small enough for a termination message (PreparedModel.shape)."""
    text = _text_config(config)
    filled = _with_global_heads(text)
    kept = {key: filled[key] for key in _TEXT_KEYS if filled.get(key) is not None}
    if isinstance(kept.get("intermediate_size"), list):
        kept["intermediate_size"] = kept["intermediate_size"][0]
    every = _global_every(text)
    if every is not None:
        kept["sliding_window_pattern"] = every
    result: dict[str, Any] = kept
    if text is not config:
        result = {"model_type": config.get("model_type"), "text_config": kept}
    vision = config.get("vision_config")
    if isinstance(vision, Mapping):
        keys = sorted({*_VISION_KEYS, *KEYS.values()})
        result["vision_config"] = {key: vision[key] for key in keys if vision.get(key) is not None}
    return result


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def _with_global_heads(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same where transformers has written what differs in single layers, those with global attention, by layer."""
    layers = text.get("per_layer_config")
    differs = next(iter(layers.values()), None) if isinstance(layers, Mapping) else None
    if not isinstance(differs, Mapping):
        return text
    names = {"global_head_dim": "head_dim", "num_global_key_value_heads": "num_key_value_heads"}
    return {**{name: differs.get(key) for name, key in names.items()}, **text}


def _global_every(text: Mapping[str, Any]) -> int | None:
    """Every how many layers one attends to everything, from layer_types or sliding_window_pattern."""
    types = text.get("layer_types")
    if isinstance(types, list) and "full_attention" in types:
        first = types.index("full_attention") + 1
        return first if "sliding_attention" in types else 0
    pattern = text.get("sliding_window_pattern")
    return int(pattern) if isinstance(pattern, int) else None


_GLOBAL_EVERY = MappingProxyType({"2": 2, "3": 6, "3n": 5, "4": 6})
"""transformers' pattern of each generation where a config does not write it."""


def _shape(text: Mapping[str, Any], generation: str) -> DecoderShape:
    """The decoder's shape from config.json's text part; KeyError where a number is missing."""
    if generation == "paligemma":
        generation = "2" if text.get("model_type") == "gemma2" else "1"
    text = _with_global_heads(text)
    ffn = text["intermediate_size"]
    every = _global_every(text)
    newer = generation in ("3", "3n", "4")
    return DecoderShape(
        layers=int(text["num_hidden_layers"]),
        hidden=int(text["hidden_size"]),
        heads=int(text["num_attention_heads"]),
        kv_heads=int(text["num_key_value_heads"]),
        head_dim=int(text.get("head_dim") or 256),
        ffn=int(ffn[0] if isinstance(ffn, list) else ffn),
        vocab=int(text["vocab_size"]),
        norms_per_layer=2 if generation == "1" else 4,
        qk_norm=newer,
        sliding_window=text.get("sliding_window") if generation != "1" else None,
        global_every=every if every is not None else _GLOBAL_EVERY.get(generation, 0),
        global_head_dim=text.get("global_head_dim") or (512 if generation == "4" else None),
        global_kv_heads=text.get("num_global_key_value_heads") if text.get("attention_k_eq_v") else None,
        value_is_key=bool(text.get("attention_k_eq_v")),
        shared_kv_layers=int(text.get("num_kv_shared_layers") or 0),
        wide_shared_ffn=bool(text.get("use_double_wide_mlp")),
        layer_scalar=generation == "4",
        ple_width=int(text.get("hidden_size_per_layer_input") or 0) if generation in ("3n", "4") else 0,
        ple_vocab=int(text.get("vocab_size_per_layer_input") or 262144),
        experts=int(text.get("num_experts") or 0),
        expert_ffn=int(text.get("moe_intermediate_size") or 0),
        experts_per_token=int(text.get("top_k_experts") or 0),
        altup_inputs=int(text.get("altup_num_inputs") or 4) if generation == "3n" else 0,
        laurel_rank=int(text.get("laurel_rank") or 64) if generation == "3n" else 0,
        attn_softcapping=text.get("attn_logit_softcapping"),
        final_softcapping=text.get("final_logit_softcapping"),
    )


def _named(shape: DecoderShape, family: str, generation: str) -> GemmaModel | None:
    """The first catalog model of this shape, with the checkpoint's own vocabulary size and kind."""
    for model in models():
        siblings = (model.family, _catalog().families[model.family].text_family)
        same = ("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "experts")
        if model.generation != generation or family not in siblings:
            continue
        if all(getattr(model, name) == getattr(shape, name) for name in same):
            if family == model.family:
                return replace(model, vocab=shape.vocab)
            text_class = _catalog().families[family].model_class
            return replace(model, vocab=shape.vocab, family=family, model_class=text_class, multimodal=False, towers=0)
    return None


def _towers(config: Mapping[str, Any], shape: DecoderShape) -> int:
    """Weights of the SigLIP tower that a config describes; 0 where it describes none of that kind."""
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping) or any(not is_size(vision.get(key)) for key in _VISION_KEYS):
        return 0
    return siglip_parameters(
        hidden=vision["hidden_size"],
        layers=vision["num_hidden_layers"],
        ffn=vision["intermediate_size"],
        patch=vision["patch_size"],
        image=vision["image_size"],
        text_hidden=shape.hidden,
        projector_norm=config.get("model_type") == "gemma3",
    )


def _rounded(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{max(1, round(parameters / 1e6))}M"


@cache
def _catalog() -> _Catalog:
    """catalog.yaml, read once. `checkpoint_parameters` there gives the towers as what the decoder leaves over."""
    data = yaml.safe_load(resources.files("gemmatune_api").joinpath("catalog.yaml").read_text(encoding="utf-8"))
    families = TypeAdapter(dict[str, _Family]).validate_python(data["families"])
    rule_type = TypeAdapter(GenerationRules)
    found = {name: rule_type.validate_python({"generation": name, **entry}) for name, entry in data["rules"].items()}
    model_type = TypeAdapter(GemmaModel)
    entries = []
    for entry in data["models"]:
        stored = entry.pop("checkpoint_parameters", None)
        known = families[entry["family"]]
        family = {"generation": known.generation, "model_class": known.model_class, "multimodal": known.multimodal}
        model = model_type.validate_python({**family, **entry})
        entries.append(replace(model, towers=stored - model.checkpoint_parameters) if stored else model)
    names: dict[str, GemmaModel] = {}
    for model in entries:
        for hub_id in model.hub_ids:
            names[hub_id.lower()] = model
            names[hub_id.lower().rsplit("/", 1)[-1]] = model
        names[model.name] = model
    return _Catalog(rules=found, families=families, models=tuple(entries), by_name=names)
