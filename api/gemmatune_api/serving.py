"""Commands that serve what a run left: vLLM with the adapter, transformers, and the merged weights."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for --max-lora-rank."""

_CHAT = """turns = [{"role": "user", "content": prompt}]
text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")"""


@dataclass(frozen=True, slots=True)
class Served:
    """What a run left, as far as a server must know it.

    `base` is the published name of the base or a file:// URI, `where` the prefix of the adapter or of the whole model,
    `chat` whether turns were trained, `images` whether a prompt is about an image, `merged` the prefix of the merged
    weights, where there are any.
    """

    name: str
    base: str
    where: str
    kind: Literal["adapter", "model"] = "adapter"
    revision: str | None = None
    rank: int = 8
    chat: bool = False
    images: bool = False
    merged: str | None = None


def vllm(served: Served) -> str:
    """vLLM: the base with the adapter under the run's name, or the whole model.

    A PaliGemma was tried with no server: what it left is answered by the program of `transformers`.
    """
    if served.images:
        return transformers(served)
    fetch, path = _local(served.where, served.name)
    name = shlex.quote(served.name)
    if served.kind == "model":
        return f"{fetch}vllm serve {shlex.quote(path)} --served-model-name {name}"
    rank = next((size for size in LORA_RANKS if size >= served.rank), LORA_RANKS[-1])
    parts = [f"{fetch}vllm serve {shlex.quote(_path(served.base))}"]
    if served.revision:
        parts.append(f"--revision {shlex.quote(served.revision)}")
    parts.append(f"--enable-lora --max-lora-rank {rank} --lora-modules {shlex.quote(f'{served.name}={path}')}")
    parts.append(f"--generation-config {shlex.quote(path)}")  # the base's own may not end at the end of a turn
    if served.chat:
        parts.append(f"--chat-template {shlex.quote(f'{path}/chat_template.jinja')}")
    return " ".join(parts)


def merged(served: Served) -> str | None:
    """vLLM on the merged weights, which need no adapter; None where there are none."""
    if served.merged is None:
        return None
    fetch, path = _local(served.merged, f"{served.name}-merged")
    return f"{fetch}vllm serve {shlex.quote(path)} --served-model-name {shlex.quote(served.name)}"


def transformers(served: Served) -> str:
    """A Python program that answers one prompt, by transformers and PEFT."""
    fetch, path = _local(served.where, served.name)
    if served.images:
        return f"{fetch}python -c {shlex.quote(_about_image(served))} {shlex.quote(path)} IMAGE 'YOUR PROMPT'"
    package, kind = ("peft", "AutoPeftModelForCausalLM")
    if served.kind == "model":
        package, kind = ("transformers", "AutoModelForCausalLM")
    asked = _CHAT if served.chat else 'inputs = tokenizer(prompt, return_tensors="pt")'
    program = f"""import sys
from {package} import {kind}
from transformers import AutoTokenizer, GenerationConfig
folder, prompt = sys.argv[1:]
model = {kind}.from_pretrained(folder, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(folder)
{asked}
output = model.generate(**inputs, generation_config=GenerationConfig.from_pretrained(folder), max_new_tokens=128)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
    return f"{fetch}python -c {shlex.quote(program)} {shlex.quote(path)} 'YOUR PROMPT'"


def _about_image(served: Served) -> str:
    """A program that answers one prompt about an image; the base's own processor puts the image before the text."""
    base, revision = _path(served.base), f", revision={served.revision!r}" if served.revision else ""
    load, further = "Model.from_pretrained(folder)", ""
    if served.kind == "adapter":
        load = f"PeftModel.from_pretrained(Model.from_pretrained({base!r}{revision}), folder)"
        further = "\nfrom peft import PeftModel"
    return f"""import sys{further}
from PIL import Image
from transformers import AutoProcessor, GenerationConfig, PaliGemmaForConditionalGeneration as Model
folder, image, prompt = sys.argv[1:]
model = {load}
processor = AutoProcessor.from_pretrained({base!r}{revision})
inputs = processor(images=Image.open(image).convert("RGB"), text="<image>" + prompt, return_tensors="pt")
output = model.generate(**inputs, generation_config=GenerationConfig.from_pretrained(folder), max_new_tokens=128)
print(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""


def _local(uri: str, name: str) -> tuple[str, str]:
    """What copies a prefix here, and the path where it then is."""
    if not uri.startswith("gs://"):
        return "", _path(uri)
    path = f"./{name}"
    copy = f"mkdir -p {shlex.quote(path)} && gcloud storage cp -r {shlex.quote(f'{uri}/*')} {shlex.quote(path)} && "
    return copy, path


def _path(uri: str) -> str:
    """The path of a file:// URI, as programs open it; any other name as it is."""
    return unquote(urlsplit(uri).path) if uri.startswith("file://") else uri
