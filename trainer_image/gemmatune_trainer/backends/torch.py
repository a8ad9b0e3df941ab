"""The torch backend: LoRA, QLoRA and full tuning by transformers, PEFT, bitsandbytes and TRL."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BitsAndBytesConfig, GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers import set_seed as seed_everything

from gemmatune_api.catalog import GenerationRules
from gemmatune_api.runconfig import RunConfig, RunMethod
from gemmatune_trainer.backends import adapter, fused, whole
from gemmatune_trainer.backends.base import Rows, Snapshot, Training, Verification
from gemmatune_trainer.backends.forward import IGNORED, labelled_loss, packed_logits
from gemmatune_trainer.backends.torch_trainer import PackedTrainer, StepLoader, make_trainer
from gemmatune_trainer.generation import terminator_ids
from gemmatune_trainer.models import ModelFiles
from gemmatune_trainer.stop import StopFlag

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl)\.")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for a package that nothing here needs
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class TorchBackend:
    """One run's model on one device."""

    def __init__(self, config: RunConfig, files: ModelFiles, tokenizer: Any, stop: StopFlag) -> None:
        self._config = config
        self._files = files
        self._tokenizer = tokenizer
        self._stop = stop
        self._device = torch.device(config.device)
        self._full = config.method.kind == "full"
        self._kind: Any = whole if self._full else adapter
        self._model: Any = None
        self._before: dict[str, torch.Tensor] = {}
        self._written: dict[str, int] = {}
        self._trainer: PackedTrainer | None = None

    def load(self) -> None:
        """Loads the base, quantises it where asked, and attaches a fresh adapter (by the run's seed).

        With full tuning the base itself is what is trained.
        """
        base = load_base(self._files, self._config)
        seed_everything(self._config.training.seed)
        if self._full:
            whole.prepare(base)
            self._model, self._before = base, whole.pieces(base)
        else:
            self._model = get_peft_model(base, lora_config(self._config, self._files.model.rules))
            fused.install(self._model)
            settings = self._model.peft_config["default"]
            settings.base_model_name_or_path, settings.revision = self._files.published_name
        self._kind.check_dtypes(self._model)

    @torch.inference_mode()
    def generate(self, prompt: Sequence[int], new_tokens: int, stop_at: Sequence[int]) -> list[int]:
        """Greedy continuation of a prompt without its terminator; ends early where the process shall stop."""
        self._model.eval()
        ids = torch.tensor([list(prompt)], device=self._device)
        settings = GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=list(stop_at),
            pad_token_id=self._tokenizer.pad_token_id,
            bos_token_id=self._tokenizer.bos_token_id,
            use_cache=True,
        )
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.training.precision == "bf16"):
            output = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([_Stopped(self._stop)]),
            )
        tokens: list[int] = output[0, ids.shape[1] :].tolist()
        end = next((index for index, token in enumerate(tokens) if token in stop_at), len(tokens))
        return tokens[:end]

    def train(self, rows: Rows, number_of_rows: int, total_steps: int, start: Path | None, training: Training) -> None:
        """Trains up to `total_steps`, from the state in folder `start` where one is given."""
        seed_everything(self._config.training.seed)
        self._trainer = make_trainer(
            self._model, self._config, self._tokenizer, rows, number_of_rows, total_steps, start, training
        )
        self._kind.check_dtypes(self._model)
        if start:
            self.restore_weights(start)
        self._trainer.run(start)

    @torch.no_grad()
    def evaluate(self, rows: Rows, number_of_rows: int, alive: Callable[[], None]) -> tuple[float, int]:
        """Summed loss (nats) over the labelled tokens of all rows, and their number; changes nothing that is trained.

        `alive` is called before every forward pass and may raise to end it.
        """
        training = self._config.training
        loader = StepLoader(self._config, rows, number_of_rows, 0, 0, self._tokenizer.pad_token_id)
        self._model.eval()
        total, labelled = 0.0, 0
        for begin in range(0, number_of_rows, training.micro_batch_size):
            alive()
            batch = loader.collate(list(range(begin, min(begin + training.micro_batch_size, number_of_rows))))
            ids, positions, labels = (batch[name].to(self._device) for name in ("input_ids", "position_ids", "labels"))
            with torch.autocast(self._device.type, torch.bfloat16, enabled=training.precision == "bf16"):
                total += float(labelled_loss(self._model, ids, positions, labels))
            labelled += int((labels[:, 1:] != IGNORED).sum())
        return total, labelled

    def snapshot(self) -> Snapshot:
        """Copies weights, optimizer, schedule, random states and step as they were after the last optimizer step."""
        if self._trainer is None:
            raise RuntimeError("snapshot is called before train")
        parts = (self._kind.snapshot(self._model), self._trainer.snapshot())

        def write(folder: Path) -> None:
            for part in parts:
                part(folder)

        return write

    def save_weights(self, folder: Path) -> None:
        """Writes what is trained, bit by bit."""
        self._kind.snapshot(self._model)(folder)

    def restore_weights(self, folder: Path) -> None:
        """Puts the weights of a folder, as save_weights wrote them, into the model in place of the trained ones."""
        self._kind.restore(self._model, folder)

    def save_result(self, folder: Path) -> None:
        """Writes the PEFT adapter, or the whole model in the run's precision."""
        if self._full:
            dtype = DTYPES[self._config.training.precision]
            ends = terminator_ids(self._files.model.rules, self._files.folder)
            self._written = whole.publish(self._model, folder, dtype, ends)
        else:
            self.save_weights(folder)

    def verify(self, folder: Path, row: Sequence[int]) -> Verification:
        """Reloads the result of a folder as its users will and compares; the reloaded model is used from then on.

        Raises:
            AdapterInvalid, ModelInvalid: weights are missing or unexpected, the outputs differ, or nothing has changed.
        """
        trained = self._logits(row)
        self._trainer = None
        self._model = None  # a large model is never in memory twice
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if self._full:
            dtype = DTYPES[self._config.training.precision]
            self._model = load_base(self._files, self._config, folder=folder, dtype=dtype)
            sums = self._written, whole.checksums(self._model, dtype)
            return whole.compare(self._model, (trained, self._logits(row)), self._before, sums, folder)
        base = load_base(self._files, self._config)
        self._model = PeftModel.from_pretrained(base, folder, is_trainable=False)
        fused.install(self._model)
        adapter.check_keys(self._model, folder)
        reloaded = self._logits(row)
        with self._model.disable_adapter():
            plain = self._logits(row)
        return adapter.compare(trained, reloaded, plain, exact=self._device.type == "cpu", folder=folder)

    @torch.inference_mode()
    def _logits(self, row: Sequence[int]) -> torch.Tensor:
        self._model.eval()
        ids = torch.tensor([list(row)], device=self._device)
        positions = torch.arange(ids.shape[1], device=self._device).unsqueeze(0)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.training.precision == "bf16"):
            return packed_logits(self._model, ids, positions).cpu()


class _Stopped(StoppingCriteria):
    """Ends a generation when the process shall stop."""

    def __init__(self, stop: StopFlag) -> None:
        self._flag = stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._flag.requested, device=input_ids.device)


def load_base(
    files: ModelFiles, config: RunConfig, folder: Path | None = None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The frozen base on the run's device in the run's precision, quantised for qlora and in fp32 for full tuning.

    `folder`: other files of the same model; `dtype`: another precision.
    """
    dtype = dtype or (torch.float32 if config.method.kind == "full" else DTYPES[config.training.precision])
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": files.model.rules.attention,
        "use_safetensors": True,
        "trust_remote_code": False,
        "local_files_only": True,
        "device_map": {"": config.device},
    }
    if config.method.kind == "qlora":
        options["quantization_config"] = quantisation(config.method, dtype)
    base: PreTrainedModel = getattr(transformers, files.model.model_class).from_pretrained(
        folder or files.folder, **options
    )
    if config.method.kind == "qlora":
        _keep_gradients(base)
    base.requires_grad_(False)
    base.config.use_cache = False
    return base


def quantisation(method: RunMethod, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How bitsandbytes quantises the base's linear modules; the others stay in `dtype`."""
    if method.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=method.quant_type or "nf4",
        bnb_4bit_use_double_quant=method.double_quant is not False,
        bnb_4bit_compute_dtype=dtype,
    )


def _keep_gradients(base: PreTrainedModel) -> None:
    """Keeps bitsandbytes from repacking 4-bit weights for AVX512-BF16 in the first forward pass without gradients.

    What it would switch to has no backward pass, also after `.train()`: the adapter would get wrong gradients.
    """
    for module in base.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False


def lora_config(config: RunConfig, rules: GenerationRules) -> LoraConfig:
    """PEFT's configuration of the run's adapter, its targets always explicit."""
    method = config.method
    return LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=rules.peft_targets(method.target_modules),
        use_dora=method.dora,
        bias="none",
        task_type="CAUSAL_LM",
    )
