"""Specs, plans and problems in words: messages of conditions and the text of kubectl's columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gemmatune_api.catalog import GemmaModel
from gemmatune_api.errors import Problem
from gemmatune_api.names import Reason
from gemmatune_api.placement import AcceleratorSpec
from gemmatune_api.spec import FineTuneSpec
from gemmatune_api.status import DataStatus, Plan, Summary

GIB = 2**30
_SHOWN_PROBLEMS = 5


def resolved(spec: FineTuneSpec) -> dict[str, Any]:
    """The resolved spec as the status shows it."""
    return spec.model_dump(by_alias=True, exclude_none=True, mode="json")


def model_name(spec: FineTuneSpec, model: GemmaModel | None) -> str:
    """The catalog's name, else the last part of the URI."""
    return model.name if model is not None and model.name else spec.model.uri.rstrip("/").rsplit("/", 1)[-1]


def method(spec: FineTuneSpec) -> str:
    """`qlora r8`."""
    return spec.method if spec.method == "full" else f"{spec.method} r{spec.adapter.rank}"


def accelerator(wanted: AcceleratorSpec) -> str:
    """`1x nvidia-l4`, `tpu-v5-lite-podslice 2x4` or `cpu`."""
    if wanted.gpu is not None:
        return f"{(wanted.gpu.count or 1) * (wanted.gpu.nodes or 1)}x {wanted.gpu.type}"
    if wanted.tpu is not None:
        return f"{wanted.tpu.type} {wanted.tpu.topology}"
    return "cpu"


def what(spec: FineTuneSpec, model: GemmaModel | None) -> str:
    """`qlora r8 of gemma-2-2b on 1x nvidia-l4`."""
    return f"{method(spec)} of {model_name(spec, model)} on {accelerator(spec.accelerator)}"


def summary(spec: FineTuneSpec, model: GemmaModel | None) -> Summary:
    """The columns of kubectl that the spec decides."""
    return Summary(
        model=model_name(spec, model),
        method=method(spec),
        accelerator=accelerator(spec.accelerator),
        output=spec.output.uri,
    )


def memory(plan: Plan) -> str:
    """`12.3 of 22.5 GiB`, and host memory where it is short."""
    needed, capacity = f"{plan.memory.total / GIB:.1f}", plan.memory.capacity
    of_device = f"{needed} of {capacity / GIB:.1f} GiB" if capacity else f"{needed} GiB needed"
    if plan.host_capacity is None or not plan.host_short:
        return of_device
    host, given = f"{plan.host_memory / GIB:.1f} GiB", f"{plan.host_capacity / GIB:.1f}"
    return f"each pod needs {host} of host memory, and gets {given} of its machine ({of_device} on each device)"


def verdict(plan: Plan | None) -> str:
    """`fits (12.3 of 22.5 GiB)`."""
    return "its memory is planned after preparation" if plan is None else f"{plan.verdict} ({memory(plan)})"


def data(found: DataStatus) -> str:
    """What prepare read."""
    text = f"{found.rows:,} rows, {found.tokens:,} tokens, {found.labelled_tokens:,} of them trained"
    if found.truncated_rows:
        text += f"; {found.truncated_rows:,} rows cut at maxLength ({found.cut_tokens:,} tokens)"
    if found.dropped_rows:
        text += f"; {found.dropped_rows:,} rows dropped as too long"
    if found.eval_truncated_rows:
        text += f"; {found.eval_truncated_rows:,} rows for evaluation cut ({found.eval_cut_tokens:,} tokens)"
    if found.eval_dropped_rows:
        text += f"; {found.eval_dropped_rows:,} rows for evaluation dropped as too long"
    return text


def problems(found: Sequence[Problem]) -> tuple[Reason, str, str]:
    """Reason, message and remedy of a spec's problems; a contradiction is told before a missing feature."""
    ordered = sorted(found, key=lambda problem: problem.reason is Reason.NOT_SUPPORTED_YET)
    first = ordered[0]
    lines = [str(problem) for problem in ordered[:_SHOWN_PROBLEMS]]
    if len(ordered) > _SHOWN_PROBLEMS:
        lines.append(f"and {len(ordered) - _SHOWN_PROBLEMS} more")
    return first.reason, " ".join(lines), first.remedy
