"""What each backend can train of a model: families of backends keras and xla, and modules that an adapter may name."""

from __future__ import annotations

from gemmatune_api.catalog import GemmaModel, models
from gemmatune_api.errors import either
from gemmatune_api.shapes import LINEAR_TARGETS
from gemmatune_api.spec import Backend

FAMILIES = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "paligemma"})
"""model_types that keras and xla train; torch trains all.

The layers of Gemma 3n and 4 hand each other more than one hidden state: keys and values, embeddings of every layer,
several streams. KerasHub has no such layers, and xla divides and recomputes the hidden state alone. That PaliGemma is
keras's, the rules for images say.
"""
_EMBEDDINGS = frozenset({"embed_tokens", "embed_tokens_per_layer"})
"""What PEFT adapts beside linear modules. Not `lm_head`: losses and logits take its weight and pass an adapter by."""


def family_refused(backend: Backend, model: GemmaModel) -> tuple[str, str] | None:
    """Message and remedy where the backend does not train models of this family."""
    return type_refused(backend, model.family)


def type_refused(backend: Backend, model_type: str) -> tuple[str, str] | None:
    """The same by the model_type of a config.json."""
    if backend == "torch" or model_type in FAMILIES:
        return None
    usual = "Gemma 1, 2, 3 or PaliGemma" if backend == "keras" else "Gemma 1, 2 or 3"
    remedy = f"Use a {usual} model, or backend torch, which trains on GPUs and CPUs."
    return f"backend {backend} does not train models of type {model_type}", remedy


def modules_refused(backend: Backend, names: list[str], model: GemmaModel | None) -> tuple[list[str], str, str] | None:
    """Names that cannot be trained, message and remedy; `model` is None where it is not known yet.

    KerasHub's layers are named one by one. PEFT takes the ends of names, and passes over those that name nothing, so
    long as one does.
    """
    if backend == "keras":
        known, wrong = set(LINEAR_TARGETS), [name for name in names if name not in LINEAR_TARGETS]
    else:
        known = _modules(model)
        wrong = [name for name in names if name.rsplit(".", 1)[-1] not in known]
        wrong = wrong if len(wrong) == len(names) else []
    if not wrong:
        return None
    whose = "of the model" if model is None else f"of {model.label}"
    message = f"name{'s' if len(wrong) == 1 else ''} no module {whose} that backend {backend} trains"
    usual = [name for name in LINEAR_TARGETS if name in known]
    return wrong, message, f"Use all-linear, attention, or a list of {either(usual)}."


def _modules(model: GemmaModel | None) -> set[str]:
    """Names of modules that PEFT can adapt; beside a vision tower only those of the text decoder's layers."""
    asked = models() if model is None else (model,)
    linear = {matrix.name.rsplit(".", 1)[-1] for one in asked for matrix in one.matrices()}
    return linear if model is not None and model.multimodal else linear | _EMBEDDINGS
