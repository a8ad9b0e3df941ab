"""The catalog: weights against the published totals, look-up by name, URI and config.json, rules of generations."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from gemmatune_api import catalog
from gemmatune_api.shapes import DecoderShape

TEXT = {  # name: embedding and total of the text decoder, for a vocabulary of 256000 or 262144
    "gemma-2b": (524288000, 2506172416),
    "gemma-7b": (786432000, 8537680896),
    "codegemma-2b": (524288000, 2506172416),
    "codegemma-7b": (786432000, 8537680896),
    "gemma-2-2b": (589824000, 2614341888),
    "gemma-2-9b": (917504000, 9241705984),
    "gemma-2-27b": (1179648000, 27227128320),
    "gemma-3-270m": (167772160, 268098176),
    "gemma-3-1b": (301989888, 999885952),
    "gemma-3-4b": (671088640, 3880099328),
    "gemma-3-12b": (1006632960, 11765788416),
    "gemma-3-27b": (1409286144, 27009002240),
}
WITH_VISION = {  # the same with the vision tower, in KerasHub's vocabularies of 262144 and 257152
    "gemma-3-4b": (262144, 4299915632),
    "gemma-3-12b": (262144, 12187079280),
    "gemma-3-27b": (262144, 27432062576),
    "paligemma-3b": (257152, 2923335408),
    "paligemma2-3b": (257152, 3032094960),
    "paligemma2-10b": (257152, 9662409456),
    "paligemma2-28b": (257152, 27650192112),
}
GEMMA_4 = {  # stored text weights and those of the whole checkpoint
    "gemma-4-e2b": (4647449891, 5123178016),
    "gemma-4-e4b": (7518069034, 7996156448),
    "gemma-4-12b": (11907350320, 11959730176),
    "gemma-4-26b-a4b": (25233141790, 25805933872),
    "gemma-4-31b": (30697345340, 31273086512),
}


def named(name: str) -> catalog.GemmaModel:
    model = catalog.by_name(name)
    assert model is not None, name
    return model


@pytest.mark.parametrize("name", TEXT)
def test_text_weights_equal_the_published_totals(name: str) -> None:
    model = replace(named(name), vocab=256000 if named(name).generation in ("1", "2") else 262144)
    assert (model.embedding, model.text_parameters) == TEXT[name]


@pytest.mark.parametrize("name", WITH_VISION)
def test_weights_with_the_vision_tower_equal_the_published_totals(name: str) -> None:
    vocab, total = WITH_VISION[name]
    assert replace(named(name), vocab=vocab).parameters == total


@pytest.mark.parametrize("name", GEMMA_4)
def test_gemma_4_stores_more_than_is_loaded_where_layers_share_keys_and_values(name: str) -> None:
    model = named(name)
    assert (model.text_parameters + model.unused_kv, model.checkpoint_parameters) == GEMMA_4[name]
    assert bool(model.unused_kv) == (name in ("gemma-4-e2b", "gemma-4-e4b"))


def test_per_layer_embeddings_are_counted() -> None:
    assert (named("gemma-4-e2b").ple, named("gemma-4-e4b").ple) == (2348810240, 2818572288)


def test_gemma_3n_has_the_same_towers_in_both_sizes() -> None:
    """Its towers are what the computed decoder leaves of the checkpoint: equal only if the decoder is right."""
    small, large = named("gemma-3n-e2b"), named("gemma-3n-e4b")
    assert (small.checkpoint_parameters, large.checkpoint_parameters) == (5439595456, 7850135376)
    assert small.towers == large.towers > 0


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("hf://google/gemma-2-2b", "gemma-2-2b"),
        ("hf://google/gemma-2-2b-it", "gemma-2-2b"),
        ("hf://google/gemma-3-270m", "gemma-3-270m"),
        ("hf://google/functiongemma-270m-it", "functiongemma-270m"),
        ("hf://unsloth/gemma-3-270m-it", "gemma-3-270m"),
        ("hf://google/gemma-4-26B-A4B-it", "gemma-4-26b-a4b"),
        ("hf://google/gemma-3-4b-pt/", "gemma-3-4b"),
        ("gs://models/copies/gemma-3-270m", "gemma-3-270m"),
        ("file:///data/gemma-2-9b/", "gemma-2-9b"),
        ("hf://google/gemma-2-2b-bnb-4bit", None),
        ("hf://someone/my-gemma", None),
        ("gs://models/gemma-3-270m/tuned", None),
        ("file:///data", None),
    ],
)
def test_uri(uri: str, name: str | None) -> None:
    found = catalog.by_uri(uri)
    assert (found.name if found else None) == name


def test_names_are_unique_and_hub_ids_lead_back() -> None:
    models = catalog.models()
    assert len({model.name for model in models}) == len(models)
    hub_ids = [hub_id for model in models for hub_id in model.hub_ids]
    assert len(set(hub_ids)) == len(hub_ids)
    for model in models:
        assert catalog.by_name(model.name) is model
        assert all(catalog.by_uri(f"hf://{hub_id}") is model for hub_id in model.hub_ids)


def config(model_type: str = "gemma3_text", **changes: Any) -> dict[str, Any]:
    tiny = {
        "model_type": model_type,
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
        "vocab_size": 1000,
        "max_position_embeddings": 2048,
    }
    return tiny | changes


REAL_270M = config(
    num_hidden_layers=18,
    hidden_size=640,
    num_key_value_heads=1,
    head_dim=256,
    intermediate_size=2048,
    vocab_size=262144,
    layer_types=["sliding_attention"] * 5 + ["full_attention"],
)


def test_config_of_a_known_size() -> None:
    found = catalog.by_config(REAL_270M)
    assert found is not None
    assert (found.name, found.parameters) == ("gemma-3-270m", 268098176)


def test_config_with_a_longer_vocabulary_keeps_its_name() -> None:
    found = catalog.by_config(REAL_270M | {"vocab_size": 262208})
    assert found is not None
    assert (found.name, found.parameters) == ("gemma-3-270m", 268098176 + 64 * 640)


def test_nested_config_and_its_text_only_form() -> None:
    model = named("gemma-3-4b")
    text = config(
        num_hidden_layers=model.layers,
        hidden_size=model.hidden,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_dim,
        intermediate_size=model.ffn,
        vocab_size=262208,
    )
    whole = catalog.by_config({"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 1152}})
    assert whole == model
    alone = catalog.by_config(text)
    assert alone is not None
    assert (alone.name, alone.model_class, alone.towers) == ("gemma-3-4b", "Gemma3ForCausalLM", 0)
    assert alone.rules.key_prefix == "base_model.model.model.layers."


@pytest.mark.parametrize(
    ("model_type", "generation", "norms"),
    # per layer: norms of the hidden width, then query and key norms of the head's width
    [("gemma", "1", 4 * 2 * 64), ("gemma2", "2", 4 * 4 * 64), ("gemma3_text", "3", 4 * (4 * 64 + 2 * 16))],
)
def test_a_tiny_shape_has_no_name_but_counts(model_type: str, generation: str, norms: int) -> None:
    found = catalog.by_config(config(model_type))
    assert found is not None
    attention = 2 * 64 * 4 * 16 + 2 * 64 * 2 * 16
    assert (found.name, found.generation, found.label) == ("", generation, f"{model_type} 1M")
    assert found.parameters == 1000 * 64 + 64 + 4 * (attention + 3 * 64 * 128) + norms


def test_an_unnamed_multimodal_shape_counts_its_tower() -> None:
    vision = {
        "hidden_size": 1152,
        "num_hidden_layers": 27,
        "intermediate_size": 4304,
        "patch_size": 14,
        "image_size": 896,
    }
    text = config(hidden_size=2560)
    found = catalog.by_config({"model_type": "gemma3", "text_config": text, "vision_config": vision})
    assert found is not None
    assert (found.name, found.towers) == ("", named("gemma-3-4b").towers)


@pytest.mark.parametrize("bad", [{"model_type": "llama"}, {}, {"model_type": "gemma3"}, config(hidden_size="x")])
def test_other_configs_are_no_gemma(bad: dict[str, Any]) -> None:
    assert catalog.by_config(bad) is None


@pytest.mark.parametrize(
    "whole",
    [
        REAL_270M | {"rope_scaling": {"factor": 8.0}, "architectures": ["Gemma3ForCausalLM"]},
        {
            "model_type": "gemma3",
            "text_config": config(),
            "vision_config": {"hidden_size": 8},
            "eos_token_id": [1, 106],
        },
        config("gemma2", layer_types=["sliding_attention", "full_attention"] * 2),
        {"model_type": "gemma3n", "text_config": config("gemma3n_text", intermediate_size=[128] * 4)},
    ],
)
def test_what_is_kept_of_a_config_suffices(whole: dict[str, Any]) -> None:
    kept = catalog.planner_shape(whole)
    assert catalog.by_config(kept) == catalog.by_config(whole) is not None
    assert len(str(kept)) < 1000


def test_layers_that_attend_to_everything() -> None:
    shape: DecoderShape = named("gemma-3-270m")
    assert [layer for layer in range(shape.layers) if shape.is_global(layer)] == [5, 11, 17]


def test_adapter_weights_of_the_recipes() -> None:
    assert named("gemma-2-9b").trainable(4, ["q_proj", "v_proj"]) == 2_236_416
    assert named("gemma-3-270m").trainable(8, "all-linear") == 18 * 8 * (1664 + 2 * 896 + 1664 + 3 * 2688)


@pytest.mark.parametrize(("generation", "attention"), [("1", "sdpa"), ("2", "eager"), ("3", "sdpa"), ("4", "sdpa")])
def test_rules(generation: str, attention: str) -> None:
    rules = catalog.rules(generation)
    assert (rules.bos, rules.eos, rules.pad, rules.attention) == ("<bos>", "<eos>", "<pad>", attention)
    turns = ("<|turn>", "<turn|>") if generation == "4" else ("<start_of_turn>", "<end_of_turn>")
    assert (rules.turn_start, rules.turn_end) == turns
    assert rules.terminators == ("<eos>", turns[1])
    assert rules.system == ("native" if generation == "4" else "fold")


def test_terminators_of_the_published_instruct_checkpoints() -> None:
    ids = {generation: catalog.rules(generation).terminator_ids for generation in ("1", "2", "3", "4")}
    assert ids == {"1": (1, 107), "2": (1, 107), "3": (1, 106), "4": (1, 106, 50)}


def test_targets_of_a_text_model_are_a_list_and_of_a_multimodal_one_its_text_tower() -> None:
    assert named("gemma-3-1b").rules.target_modules["attention"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    pattern = named("gemma-3-4b").rules.target_modules["all-linear"]
    assert isinstance(pattern, str)
    assert re.fullmatch(pattern, "model.language_model.layers.3.mlp.down_proj")
    assert not re.fullmatch(pattern, "model.vision_tower.encoder.layers.3.self_attn.q_proj")
    assert not re.fullmatch(pattern, "model.language_model.layers.3.input_layernorm")


def test_notes_name_the_pitfalls() -> None:
    assert any("experts" in note and "16 bit" in note for note in named("gemma-4-26b-a4b").all_notes)
    assert any("eager" in note for note in named("gemma-2-2b").all_notes)
    assert any("vision tower" in note for note in named("gemma-3-4b").all_notes)
    assert not named("paligemma-3b").rules.chat
