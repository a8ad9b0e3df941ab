"""The rules for what a backend trains of a model: specs that keep and break each."""

from __future__ import annotations

from typing import Any

Changes = dict[str, Any]

CPU: Changes = {"spec.accelerator": {"cpu": {}}}
KERAS: Changes = {**CPU, "spec.backend": "keras"}
XLA: Changes = {**CPU, "spec.backend": "xla"}
OWN: Changes = {"spec.model": {"uri": "gs://bucket/our-own-gemma"}}
TPU: Changes = {"spec.accelerator": {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x2"}}}
GEMMA_3N: Changes = {"spec.model": {"uri": "hf://google/gemma-3n-E2B-it"}}
GEMMA_4: Changes = {"spec.model": {"uri": "hf://google/gemma-4-E2B-it"}}


def lora(*names: str) -> Changes:
    return {"spec.lora": {"targetModules": list(names)}}


GOOD: dict[str, Changes] = {
    "Gemma 3 with images on keras": {**KERAS, "spec.model": {"uri": "hf://google/gemma-3-4b-it"}},
    "Gemma 4 on torch": {**CPU, **GEMMA_4},
    "Gemma 3 with images on xla": {**XLA, "spec.model": {"uri": "hf://google/gemma-3-4b-it"}},
    "a model of no known name on a TPU": {**TPU, **OWN},
    "a model of no known name on keras": {**KERAS, **OWN},
    "modules of keras": {**KERAS, **lora("q_proj", "down_proj")},
    "modules by the ends of their names": {**XLA, **lora("self_attn.q_proj", "model.layers.0.mlp.up_proj")},
    "modules of another generation beside known ones": {**CPU, **lora("q_proj", "linear_left")},
    "modules of a generation": {**CPU, **GEMMA_4, **lora("per_layer_input_gate")},
    "modules of a model of no known name": {**CPU, **OWN, **lora("linear_left")},
    "the embedding": {**CPU, **lora("embed_tokens")},
}

BAD: dict[str, tuple[Changes, str, str, str]] = {
    # rule: (changes, path, message, remedy)
    "family: Gemma 4 on keras": (
        {**KERAS, **GEMMA_4},
        "spec.model.uri",
        "backend keras does not train models of type gemma4",
        "Use a Gemma 1, 2, 3 or PaliGemma model, or backend torch, which trains on GPUs and CPUs.",
    ),
    "family: Gemma 3n on keras": (
        {**KERAS, **GEMMA_3N},
        "spec.model.uri",
        "does not train models of type gemma3n",
        "or backend torch",
    ),
    "family: Gemma 4 on xla": (
        {**XLA, **GEMMA_4},
        "spec.model.uri",
        "backend xla does not train models of type gemma4",
        "Use a Gemma 1, 2 or 3 model, or backend torch, which trains on GPUs and CPUs.",
    ),
    "family: Gemma 3n on a TPU": (
        {**TPU, **GEMMA_3N},
        "spec.model.uri",
        "backend xla does not train models of type gemma3n",
        "or backend torch",
    ),
    "modules: the head on keras": (
        {**KERAS, **lora("q_proj", "lm_head")},
        "spec.lora.targetModules",
        "names no module of gemma-2-2b that backend keras trains",
        "Use all-linear, attention, or a list of q_proj, k_proj",
    ),
    "modules: the end of a name on keras": (
        {**KERAS, **OWN, **lora("self_attn.q_proj")},
        "spec.lora.targetModules",
        "names no module of the model that backend keras trains",
        "Use all-linear",
    ),
    "modules: a typing error on xla": (
        {**XLA, **lora("qproj", "vproj")},
        "spec.lora.targetModules",
        "name no module of gemma-2-2b that backend xla trains",
        "Use all-linear",
    ),
    "modules: the head on xla": (
        {**XLA, **lora("lm_head")},
        "spec.lora.targetModules",
        "names no module of gemma-2-2b that backend xla trains",
        "Use all-linear",
    ),
    "modules: the head with qlora": (
        {"spec.qlora": {"targetModules": ["lm_head"]}},
        "spec.qlora.targetModules",
        "names no module of gemma-2-2b that backend torch trains",
        "Use all-linear",
    ),
    "modules: the embedding beside a vision tower": (
        {**CPU, "spec.model": {"uri": "hf://google/gemma-3-4b-it"}, **lora("embed_tokens")},
        "spec.lora.targetModules",
        "names no module of gemma-3-4b that backend torch trains",
        "Use all-linear",
    ),
}
