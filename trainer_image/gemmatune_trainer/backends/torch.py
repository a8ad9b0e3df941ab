"""The torch backend: LoRA, QLoRA and full tuning by transformers, PEFT, bitsandbytes and TRL."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel, get_peft_model
from transformers import BitsAndBytesConfig, GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers import set_seed as seed_everything

from gemmatune_api.runconfig import RunConfig, RunMethod
from gemmatune_trainer.backends import adapter, fused, whole
from gemmatune_trainer.backends.base import Rows, Snapshot, Training, Verification
from gemmatune_trainer.backends.forward import IGNORED, labelled_loss, packed_logits
from gemmatune_trainer.backends.parallel import Shell, copied, divide, layers_of, reshard
from gemmatune_trainer.backends.torch_trainer import PackedTrainer, Setting, StepLoader, make_trainer
from gemmatune_trainer.backends.usage import give_back, nothing_kept
from gemmatune_trainer.generation import terminator_ids
from gemmatune_trainer.models import ModelFiles
from gemmatune_trainer.ranks import Ranks
from gemmatune_trainer.stop import StopFlag

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl)\.")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it asks for a package that nothing here needs
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def make(config: RunConfig, files: ModelFiles | None, stop: StopFlag, ranks: Ranks) -> TorchBackend:
    """The backend of a run."""
    return TorchBackend(config, files, stop, ranks)


class TorchBackend:
    """One run's model on one device."""

    def __init__(self, config: RunConfig, files: Any, stop: StopFlag, ranks: Ranks | None = None) -> None:
        self._config = config
        self._files = files
        self._stop = stop
        self._ranks = ranks or Ranks()
        self._divided = config.training.sharded and self._ranks.size > 1
        self._shell: Any = None
        self._device = torch.device(config.device)
        self._full = config.method.kind == "full"
        self._kind: Any = whole if self._full else adapter
        self._model: Any = None
        self._before: dict[str, torch.Tensor] = {}
        self._written: dict[str, int] = {}
        self._trainer: PackedTrainer | None = None

    def use(self, files: Any) -> None:
        """Names the model's files, where they were not known before `load`."""
        self._files = files

    def load(self) -> None:
        """Loads the base, quantises it where asked, and attaches a fresh adapter (by the run's seed).

        With full tuning the base itself is what is trained.
        """
        base = self._base()
        seed_everything(self._config.training.seed)
        if self._full:
            whole.prepare(base)
            self._model = base
        else:
            self._model = get_peft_model(base, adapter.lora_config(self._config, self._files.model.rules))
            fused.install(self._model)
            settings = self._model.peft_config["default"]
            settings.base_model_name_or_path, settings.revision = self._files.published_name
        self._place()
        self._before = whole.pieces(self._model) if self._full else {}
        self._kind.check_dtypes(self._model)

    def _base(self) -> PreTrainedModel:
        """The base on the device; on the CPU, from which each process takes its part, where the model is divided."""
        if not self._divided:
            return load_base(self._files, self._config)
        # Pages of the files, which the processes of a host share: masters are made of them layer by layer.
        return load_base(self._files, self._config, dtype="auto" if self._full else None, device="cpu")

    def _place(self) -> None:
        """Makes the model's shell, and divides the model where it is to be."""
        self._shell = Shell(self._model)
        if self._divided:
            bf16 = self._config.training.precision == "bf16"
            divide(self._shell, layers_of(self._model), self._ranks, self._device, self._full, bf16)

    def _pass(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """`function(model, ...)` in the run's precision, without gradients."""
        self._model.eval()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.training.precision == "bf16"):
            found = self._shell(function, *arguments, **options)
        reshard(self._shell)
        return found

    @torch.no_grad()
    def generate(self, prompt: Sequence[int], new_tokens: int, stop_at: Sequence[int]) -> list[int]:
        """Greedy continuation of a prompt without its terminator; ends early where the process shall stop."""
        ids = torch.tensor([list(prompt)], device=self._device)
        settings = GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=list(stop_at),
            pad_token_id=self._files.tokenizer.pad_id,
            bos_token_id=self._files.tokenizer.bos_id,
            use_cache=True,
        )
        output = self._pass(
            lambda model: model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([_Stopped(self._stop, self._ranks if self._divided else None)]),
            )
        )
        tokens: list[int] = output[0, ids.shape[1] :].tolist()
        end = next((index for index, token in enumerate(tokens) if token in stop_at), len(tokens))
        return tokens[:end]

    def train(self, rows: Rows, number_of_rows: int, total_steps: int, start: Path | None, training: Training) -> None:
        """Trains up to `total_steps`, from the state in folder `start` where one is given."""
        if start:  # first: an adapter that keras began brings shapes of its own
            self.restore_weights(start)
        copies = self._ranks.size > 1 and not self._divided
        setting = Setting(self._config, self._ranks, copied(self._shell) if copies else self._shell)
        self._trainer = make_trainer(
            self._model, setting, self._files.tokenizer, rows, number_of_rows, total_steps, start, training
        )
        self._kind.check_dtypes(self._model)
        # Last: transformers' Trainer seeds every rank alike, and copies shall not leave out the same of their rows.
        seed_everything(self._config.training.seed + self._ranks.rank)
        self._trainer.run(start)

    @torch.no_grad()
    def evaluate(self, rows: Rows, number_of_rows: int, alive: Callable[[], None]) -> tuple[float, int]:
        """Summed loss (nats) over the labelled tokens of all rows, and their number; changes nothing that is trained.

        `alive` is called before every forward pass and may raise to end it.
        """
        size, ranks = self._config.training.micro_batch_size, self._ranks
        loader = StepLoader(self._config, rows, number_of_rows, 0, 0, self._files.tokenizer.pad_id)
        total, labelled = 0.0, 0
        for begin in range(0, number_of_rows, size * ranks.size):
            alive()
            first = begin + ranks.rank * size
            chosen = list(range(first, min(first + size, number_of_rows)))
            batch = loader.collate(chosen or [0])  # all take part in every pass
            ids, positions, labels = (batch[name].to(self._device) for name in ("input_ids", "position_ids", "labels"))
            if not chosen:
                labels = torch.full_like(labels, IGNORED)
            total += float(self._pass(labelled_loss, ids, positions, labels))
            labelled += int((labels[:, 1:] != IGNORED).sum())
        summed, counted = ranks.add([total, float(labelled)])
        return summed, int(counted)

    def snapshot(self) -> Snapshot:
        """Copies weights, optimizer, schedule, random states and step as they were after the last optimizer step."""
        if self._trainer is None:
            raise RuntimeError("snapshot is called before train")
        parts = (self._kind.snapshot(self._model, keep=self._ranks.main), self._trainer.snapshot())

        def write(folder: Path) -> None:
            for part in parts:
                part(folder)

        return write

    def save_weights(self, folder: Path) -> None:
        """Writes what is trained, bit by bit."""
        write = self._kind.snapshot(self._model, keep=self._ranks.main)
        if self._ranks.main:
            write(folder)

    def restore_weights(self, folder: Path) -> None:
        """Puts the weights of a folder, as save_weights wrote them, into the model in place of the trained ones."""
        self._kind.restore(self._model, folder, self._ranks)

    def save_result(self, folder: Path) -> None:
        """Writes the PEFT adapter, or the whole model in the run's precision."""
        if self._full:
            dtype = DTYPES[self._config.training.precision]
            ends = terminator_ids(self._files.tokenizer)
            self._written = whole.publish(self._model, folder, dtype, ends, write=self._ranks.main)
        else:
            self.save_weights(folder)

    def verify(self, folder: Path, row: Sequence[int]) -> Verification:
        """Reloads the result of a folder as its users will and compares; the reloaded model is used from then on.

        Raises:
            AdapterInvalid, ModelInvalid: weights are missing or unexpected, the outputs differ, or nothing has changed.
        """
        trained = self._logits(row)
        self._trainer = None
        if self._divided:
            return self._verify_divided(folder, row, trained)
        self._model = self._shell = None  # a large model is never in memory twice
        give_back(self._device)
        if self._full:
            dtype = DTYPES[self._config.training.precision]
            self._model = load_base(self._files, self._config, folder=folder, dtype=dtype)
            self._place()
            sums = self._written, whole.checksums(self._model, dtype)
            return whole.compare(self._model, (trained, self._logits(row)), self._before, sums, folder)
        base = load_base(self._files, self._config)
        self._model = PeftModel.from_pretrained(base, folder, is_trainable=False)
        fused.install(self._model)
        self._place()
        adapter.check_keys(self._model, folder)
        reloaded = self._logits(row)
        plain = self._plain_logits(row)
        return adapter.compare(trained, reloaded, plain, exact=self._device.type == "cpu", folder=folder)

    def _verify_divided(self, folder: Path, row: Sequence[int], trained: torch.Tensor) -> Verification:
        """The same where no process holds the whole model: files are rank 0's, weights are dealt out from there."""
        if self._full:
            dtype = DTYPES[self._config.training.precision]
            if self._ranks.main:
                whole.check_files(folder, self._written)
            whole.round_to(self._model, dtype)
            return whole.compare(self._model, (trained, self._logits(row)), self._before, ({}, {}), folder)
        self._model = self._shell = None
        give_back(self._device)
        self.load()
        self.restore_weights(folder)
        if self._ranks.main:
            reloaded, plain = self._logits(row), self._plain_logits(row)
            exact = self._device.type == "cpu"
            return adapter.compare(trained, reloaded, plain, exact=exact, folder=folder)
        self._logits(row)
        self._plain_logits(row)
        return Verification(0.0, 0.0, 0)

    def _plain_logits(self, row: Sequence[int]) -> torch.Tensor:
        with self._model.disable_adapter():
            return self._logits(row)

    @torch.no_grad()
    def _logits(self, row: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([list(row)], device=self._device)
        positions = torch.arange(ids.shape[1], device=self._device).unsqueeze(0)
        logits: torch.Tensor = self._pass(packed_logits, ids, positions)
        return logits.cpu()


class _Stopped(StoppingCriteria):
    """Ends a generation when the process shall stop."""

    def __init__(self, stop: StopFlag, ranks: Ranks | None) -> None:
        self._flag = stop
        self._ranks = ranks

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        # Where all generate together, all must end together.
        wanted = self._flag.requested if self._ranks is None else self._ranks.stopping(self._flag)
        return torch.full((input_ids.shape[0],), wanted, device=input_ids.device)


def load_base(
    files: ModelFiles,
    config: RunConfig,
    folder: Path | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | None = None,
) -> PreTrainedModel:
    """The frozen base on the run's device in the run's precision, quantised for qlora and in fp32 for full tuning.

    `folder`: other files of the same model; `dtype`: another precision ("auto": that of the files).
    """
    dtype = dtype or (torch.float32 if config.method.kind == "full" else DTYPES[config.training.precision])
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": files.model.rules.attention,
        "use_safetensors": True,
        "trust_remote_code": False,
        "local_files_only": True,
        "device_map": {"": device or config.device},
    }
    if config.method.kind == "qlora":
        options["quantization_config"] = quantisation(config.method, DTYPES[config.training.precision])
    with nothing_kept(torch.device(options["device_map"][""])):
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
