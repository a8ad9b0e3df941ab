"""The rules between method, backend, accelerator, training and provisioning: specs that keep and break each."""

from __future__ import annotations

from typing import Any

Changes = dict[str, Any]

TPU = {"tpu": {"type": "tpu-v5-lite-podslice", "topology": "2x4", "chipsPerNode": 4}}
CPU: Changes = {"spec.accelerator": {"cpu": {}}}
KERAS: Changes = {"spec.accelerator": {"cpu": {"devices": 4}}, "spec.backend": "keras"}


def training(**fields: Any) -> Changes:
    return {"spec.training": fields}


def provisioning(**fields: Any) -> Changes:
    return {"spec.provisioning": fields}


def mlflow(uri: str) -> Changes:
    return {"spec.tracking": {"mlflow": {"uri": uri}}}


GOOD: dict[str, Changes] = {
    "trackers": {"spec.tracking": {"tensorboard": True, "wandb": {"project": "a"}, "mlflow": {"uri": "https://a:1/b"}}},
    "a tracker's folder": mlflow("file:///mlruns"),
    "the smallest": {},
    "xla on tpu": {"spec.accelerator": TPU},
    "keras with its optimizer": {**KERAS, **training(optimizer="adamw_torch_fused")},
    "keras on cpu": {"spec.accelerator": {"cpu": {"devices": 4}}, "spec.backend": "keras", "spec.mesh": {"data": 4}},
    "torch on cpu": CPU,
    "evaluation by share": {"spec.dataset.evalFraction": 0.1, "spec.checkpoint": {"best": True, "everySteps": 5}},
    "best by evaluations": {
        "spec.dataset.evalFraction": 0.1,
        "spec.checkpoint": {"best": True},
        **training(evalEverySteps=5),
    },
    "evaluation by file": {"spec.dataset.evalUri": "gs://b/e.jsonl", "spec.samples": {"fromEval": 2}},
    "best switched off": {"spec.checkpoint": {"best": False}},
    "qlora with types": {"spec.qlora": {"bits": 4, "quantType": "fp4", "doubleQuant": False}},
    "qlora on cpu": {**CPU, "spec.qlora": {}},
    "8 bits": {"spec.qlora": {"bits": 8}},
    "4 bits and DoRA": {"spec.qlora": {"dora": True}},
    "micro-batch of the default": training(microBatchSize=16),
    "micro-batch": training(globalBatchSize=12, microBatchSize=4),
    "constant without warm-up": training(schedule="constant", warmupSteps=0),
    "warm-up as long as the run": training(maxSteps=10, warmupSteps=10),
    "paged on gpu": training(optimizer="paged_adamw_32bit"),
    "8-bit on cpu": {**CPU, **training(optimizer="adamw_bnb_8bit")},
    "adafactor on tpu": {"spec.accelerator": TPU, **training(optimizer="adafactor")},
    "spot with fallback": provisioning(mode="spot", fallback={"afterPending": "1h"}),
    "reservation of another project": provisioning(mode="reservation", reservation="gpu-fleet/h100-1"),
    "flex-start": provisioning(mode="flexStart"),
    "a queue and a class": {"spec.scheduling": {"queueName": "team.research", "computeClass": "l4"}},
    "reservation": provisioning(mode="reservation", reservation="r"),
    "ttl of nothing": {"spec.ttlAfterFinished": "0s"},
    "ten years": {"spec.limits": {"deadline": "3650d"}},
}

BAD: dict[str, tuple[Changes, str, str, str]] = {
    # rule: (changes, path, message, remedy)
    "keras: DoRA": ({**KERAS, "spec.lora": {"dora": True}}, "spec.lora.dora", "has no DoRA", "Remove it"),
    "keras: dropout": ({**KERAS, "spec.lora": {"dropout": 0.1}}, "spec.lora.dropout", "without dropout", "Remove it"),
    "keras: optimizer": (
        {**KERAS, **training(optimizer="adafactor")},
        "spec.training.optimizer",
        "AdamW in fp32 alone",
        "Use adamw_torch",
    ),
    "backend: torch on tpu": (
        {"spec.accelerator": TPU, "spec.backend": "torch"},
        "spec.backend",
        "backend torch trains on gpu and cpu, not on tpu",
        "Use backend xla or keras",
    ),
    "backend: xla on gpu": (
        {"spec.backend": "xla"},
        "spec.backend",
        "backend xla trains on tpu and cpu, not on gpu",
        "Use backend torch",
    ),
    "backend: mesh with torch": ({"spec.mesh": {"data": 2}}, "spec.mesh", "belong to the xla and keras", "Remove it"),
    "backend: devices with torch": (
        {"spec.accelerator": {"cpu": {"devices": 4}}},
        "spec.accelerator.cpu.devices",
        "belong to the xla and keras",
        "Remove it",
    ),
    "evaluation: two sources": (
        {"spec.dataset.evalFraction": 0.1, "spec.dataset.evalUri": "gs://b/e.jsonl"},
        "spec.dataset",
        "at most one of evalFraction and evalUri",
        "Keep one",
    ),
    "evaluation: steps without rows": (
        training(evalEverySteps=5),
        "spec.training.evalEverySteps",
        "needs evaluation rows",
        "Set dataset.evalFraction",
    ),
    "evaluation: best without rows": (
        {"spec.checkpoint": {"best": True, "everySteps": 5}},
        "spec.checkpoint.best",
        "needs evaluation rows",
        "Set dataset.evalFraction",
    ),
    "evaluation: best by the clock": (
        {"spec.dataset.evalFraction": 0.1, "spec.checkpoint": {"best": True}},
        "spec.checkpoint.best",
        "needs evaluations at steps",
        "Set training.evalEverySteps or checkpoint.everySteps",
    ),
    "evaluation: the rows that are trained": (
        {"spec.dataset.uri": "gs://b/e.jsonl", "spec.dataset.evalUri": "gs://b/e.jsonl"},
        "spec.dataset.evalUri",
        "names the rows that are trained",
        "Name other rows",
    ),
    "evaluation: samples without rows": (
        {"spec.samples": {"fromEval": 2}},
        "spec.samples.fromEval",
        "needs evaluation rows",
        "Set dataset.evalFraction",
    ),
    "method: two": ({"spec.lora": {}, "spec.full": {}}, "spec", "at most one of qlora, lora and full", "lora and full"),
    "method: qlora on tpu": (
        {"spec.accelerator": TPU, "spec.qlora": {}},
        "spec.qlora",
        "cannot run on a TPU",
        "Write lora: {} in its place, or use accelerator.gpu",
    ),
    "method: a whole qlora on tpu": (
        {
            "spec.accelerator": TPU,
            "spec.qlora": {
                "rank": 16,
                "alpha": 24,
                "dropout": 0.05,
                "targetModules": ["q_proj", "v_proj"],
                "dora": True,
                "bits": 4,
                "doubleQuant": False,
            },
        },
        "spec.qlora",
        "cannot run on a TPU",
        "Write lora: {rank: 16, alpha: 24, dropout: 0.05, targetModules: [q_proj, v_proj], dora: true} in its place",
    ),
    "method: a whole qlora on keras": (
        {
            "spec.accelerator": TPU,
            "spec.backend": "keras",
            "spec.qlora": {"rank": 16, "dropout": 0.05, "targetModules": "all-linear", "dora": True},
        },
        "spec.qlora",
        "cannot run on a TPU",
        "Write lora: {rank: 16, targetModules: all-linear} in its place",
    ),
    "method: qlora on xla": (
        {**CPU, "spec.backend": "xla", "spec.qlora": {}},
        "spec.qlora",
        "qlora needs backend torch",
        "Write lora: {} in its place, or use backend torch",
    ),
    "method: type of 8 bits": (
        {"spec.qlora": {"bits": 8, "quantType": "nf4"}},
        "spec.qlora.quantType",
        "applies to bits 4 only",
        "Remove it",
    ),
    "method: double of 8 bits": (
        {"spec.qlora": {"bits": 8, "doubleQuant": False}},
        "spec.qlora.doubleQuant",
        "applies to bits 4 only",
        "Remove it",
    ),
    "method: DoRA of 8 bits": (
        {"spec.qlora": {"bits": 8, "dora": True}},
        "spec.qlora.dora",
        "DoRA needs bits 4",
        "Remove it",
    ),
    "training: steps and epochs": (
        training(maxSteps=1, epochs=1),
        "spec.training",
        "at most one of maxSteps",
        "Keep one",
    ),
    "training: micro-batch": (
        training(globalBatchSize=12, microBatchSize=5),
        "spec.training.microBatchSize",
        "must divide globalBatchSize 12",
        "Use 1, 2, 3, 4, 6 or 12",
    ),
    "training: micro-batch above the default": (
        training(microBatchSize=32),
        "spec.training.microBatchSize",
        "must divide globalBatchSize 16",
        "Use 1, 2, 4, 8 or 16",
    ),
    "training: warm-up of a constant": (
        training(schedule="constant", warmupSteps=2),
        "spec.training.warmupSteps",
        "schedule constant has no warm-up",
        "constant_with_warmup",
    ),
    "training: longer warm-up than run": (
        training(maxSteps=5, warmupSteps=6),
        "spec.training.warmupSteps",
        "is more than maxSteps 5",
        "Lower warmupSteps",
    ),
    "training: paged on cpu": (
        {**CPU, **training(optimizer="paged_adamw_8bit")},
        "spec.training.optimizer",
        "paged optimizers need a GPU",
        "Use adamw_bnb_8bit",
    ),
    "training: paged 32 bit on cpu": (
        {**CPU, **training(optimizer="paged_adamw_32bit")},
        "spec.training.optimizer",
        "paged optimizers need a GPU",
        "Use adamw_torch",
    ),
    "training: 8-bit on tpu": (
        {"spec.accelerator": TPU, **training(optimizer="adamw_bnb_8bit")},
        "spec.training.optimizer",
        "8-bit optimizers need backend torch",
        "Use adamw_torch",
    ),
    "checkpoint: two rhythms": (
        {"spec.checkpoint": {"everySteps": 1, "every": "1m"}},
        "spec.checkpoint",
        "at most one of everySteps and every",
        "Keep one",
    ),
    "accelerator: none": ({"spec.accelerator": {}}, "spec.accelerator", "exactly one of gpu, tpu and cpu", "Add one"),
    "accelerator: two": ({"spec.accelerator.cpu": {}}, "spec.accelerator", "exactly one of gpu, tpu", "gpu and cpu"),
    "tracking: no server": (mlflow("mlflow"), "spec.tracking.mlflow.uri", "is no tracking server", "https://HOST"),
    "tracking: half an address": (mlflow("http://[a"), "spec.tracking.mlflow.uri", "is no tracking", "https://HOST"),
    "tracking: a password": (mlflow("https://a:b@c"), "spec.tracking.mlflow.uri", "holds a user", "secretRef"),
    "provisioning: reservation without name": (
        provisioning(mode="reservation"),
        "spec.provisioning.reservation",
        "needs its name",
        "Add the reservation",
    ),
    "provisioning: name without mode": (
        provisioning(reservation="r"),
        "spec.provisioning.reservation",
        "has no meaning with mode onDemand",
        "set mode to reservation",
    ),
    "provisioning: fallback without spot": (
        provisioning(mode="flexStart", fallback={}),
        "spec.provisioning.fallback",
        "only spot falls back",
        "set mode to spot",
    ),
    "durations: nothing": (
        {"spec.limits": {"stallTimeout": "0m"}},
        "spec.limits.stallTimeout",
        "longer than 0s",
        "Write",
    ),
    "durations: no rhythm": ({"spec.checkpoint": {"every": "0s"}}, "spec.checkpoint.every", "longer than 0s", "Write"),
    "durations: a century": (
        {"spec.limits": {"deadline": "36500d"}},
        "spec.limits.deadline",
        "must be at most 3650d",
        "shorter",
    ),
    "durations: fallback": (
        provisioning(mode="spot", fallback={"afterPending": "0s"}),
        "spec.provisioning.fallback.afterPending",
        "longer than 0s",
        "Write",
    ),
}
