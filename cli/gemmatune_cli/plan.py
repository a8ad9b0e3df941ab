"""`gft plan`: will it fit, what the defaults become, how much is trained and what it costs, before money is spent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemmatune_cli.console import FAILED, CommandError, output

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from gemmatune_api.placement import AcceleratorSpec
    from gemmatune_api.prices import Prices
    from gemmatune_api.spec import FineTuneSpec
    from gemmatune_api.status import Plan
    from gemmatune_cli.planning import Planned

GIB = 2**30
VERDICT_STYLES = {"fits": "bold green", "tight": "bold yellow", "does not fit": "bold red"}


def command(
    files: Annotated[list[str], typer.Argument(help="YAML or JSON files, folders of them, or - for standard input.")],
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of the data; they give the steps.")] = None,
    longest: Annotated[int | None, typer.Option(min=1, help="Tokens of the longest row.")] = None,
    model: Annotated[str | None, typer.Option(help="Model of the catalog, where the URI does not tell.")] = None,
    prices: Annotated[
        str | None, typer.Option(help="YAML file of prices per hour by accelerator type, such as `nvidia-l4: 0.75`.")
    ] = None,
) -> None:
    """Show memory, defaults and cost of a run before it starts. Exit code 1: it does not fit."""
    from gemmatune_cli.documents import fine_tunes
    from gemmatune_cli.local.cluster import memory_of_machine
    from gemmatune_cli.planning import planned

    table = _prices(prices) if prices else None
    console = output()
    too_large = False
    for resource in fine_tunes(files):
        here = memory_of_machine() if resource.spec.accelerator.kind == "cpu" else 0
        found = planned(resource, model=model, rows=rows, longest=longest, host_memory=here, prices=table)
        too_large |= found.plan.verdict == "does not fit"
        for part in _report(found, resource.spec.model_dump(by_alias=True, exclude_none=True), table is not None):
            console.print(part)
    if too_large:
        raise typer.Exit(FAILED)


def _prices(path: str) -> Prices:
    from gemmatune_api import prices
    from gemmatune_api.errors import InvalidResourceError
    from gemmatune_cli.documents import text_of

    try:
        return prices.parse(text_of(path))
    except CommandError as error:
        raise CommandError(f"--prices {error.message}", error.remedy) from error
    except InvalidResourceError as error:
        raise CommandError(f"--prices {path}: {error}") from error


def _report(found: Planned, written: Mapping[str, Any], priced: bool) -> Iterator[RenderableType]:
    from rich.text import Text

    spec, plan = found.resource.spec, found.plan
    yield Text.assemble(
        (found.resource.metadata.name, "bold"),
        f": {found.model.label}, {_method(spec)} on {_place(spec.accelerator)}: ",
        (plan.verdict, VERDICT_STYLES[plan.verdict]),
    )
    for remedy in plan.remedies:
        yield Text(f"  remedy: {remedy}")
    yield _memory(plan)
    yield _weights(plan, _loaded_bits(spec))
    yield _run(found, priced)
    for note in plan.notes:
        yield Text(f"note: {note}")
    yield _defaults(spec.model_dump(by_alias=True, exclude_none=True), written)


def _place(wanted: AcceleratorSpec) -> str:
    if wanted.gpu is not None:
        nodes = f" in each of {wanted.gpu.nodes} nodes" if (wanted.gpu.nodes or 1) > 1 else ""
        return f"{wanted.gpu.count or 1} x {wanted.gpu.type}{nodes}"
    return f"{wanted.tpu.type} {wanted.tpu.topology}" if wanted.tpu is not None else "this machine's CPU"


def _method(spec: FineTuneSpec) -> str:
    return spec.method if spec.method == "full" else f"{spec.method} r{spec.adapter.rank}"


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def _loaded_bits(spec: FineTuneSpec) -> str:
    """Bits in which the base's linear layers are loaded."""
    if spec.qlora is not None and spec.method == "qlora":
        return str(spec.qlora.bits)
    if spec.method == "full":
        return "32"
    return "32" if spec.training is not None and spec.training.precision == "fp32" else "16"


def gib(size: int) -> str:
    """Bytes for people, in GiB with two digits."""
    return f"{size / GIB:.2f} GiB"


def _memory(plan: Plan) -> Table:
    memory = plan.memory
    table = _table("Memory of one device", "for", "size", "of capacity")

    def row(name: str, size: int, style: str = "") -> None:
        share = f"{size / memory.capacity:.0%}" if memory.capacity else "unknown"
        table.add_row(name, gib(size), share, style=style)

    for name in ("weights", "gradients", "optimizer", "activations", "logits", "overhead"):
        row(name, getattr(memory, name))
    of_host = plan.host_short and memory.total <= memory.capacity  # it is not the device that is too small
    row("total", memory.total, "" if of_host else VERDICT_STYLES[plan.verdict])
    table.add_row("capacity", gib(memory.capacity) if memory.capacity else "unknown", "")
    return table


def _weights(plan: Plan, used: str) -> Table:
    table = _table("Weights of the base model", *(f"{bits} bits" for bits in plan.weights_by_bits))
    table.add_row(*(gib(size) + (" *" if bits == used else "") for bits, size in plan.weights_by_bits.items()))
    table.caption, table.caption_justify = "* as this run loads them", "left"
    return table


def _run(found: Planned, priced: bool) -> Table:
    spec, plan = found.resource.spec, found.plan
    gpu = spec.accelerator.gpu
    share = plan.trainable_parameters / found.model.parameters
    steps = str(plan.total_steps) if plan.total_steps is not None else "known with --rows, or after preparation"
    checkpointing = "on" if plan.gradient_checkpointing else "off"
    batch = spec.training.global_batch_size if spec.training else None
    table = _table("Run", "", "")
    table.show_header = False
    table.add_row("trainable parameters", f"{plan.trainable_parameters:,} of {found.model.parameters:,} ({share:.2%})")
    if plan.exported_parameters:
        table.add_row("in the adapter's file", f"{plan.exported_parameters:,} (PEFT's form of the same adapter)")
    table.add_row("rows per step", f"{batch} = {_product(plan, batch)}")
    if plan.chips > 1:
        table.add_row("devices", _devices(plan))
    table.add_row("gradient checkpointing", checkpointing)
    table.add_row("steps", steps)
    given = "" if plan.host_capacity is None else f" of {gib(plan.host_capacity)} that a pod gets"
    style = VERDICT_STYLES[plan.verdict] if plan.host_short else ""
    table.add_row("host memory", f"{gib(plan.host_memory)}{given}", style=style)
    table.add_row("ephemeral storage", gib(plan.disk))
    if plan.cost_per_hour is not None:
        table.add_row("cost per hour", f"{plan.cost_per_hour:.2f}")
    elif priced:
        table.add_row("cost per hour", f"unknown: --prices names no {gpu.type if gpu else spec.accelerator.kind}")
    return table


def _product(plan: Plan, batch: int | None) -> str:
    """Rows of a forward pass by passes, and by the devices that share a step."""
    each = plan.micro_batch_size * plan.accumulation
    shared = f" x {batch // each}" if batch is not None and batch > each else ""
    return f"{plan.micro_batch_size} x {plan.accumulation}{shared}"


def _devices(plan: Plan) -> str:
    where = f"{plan.chips} in {plan.hosts} {'pods' if plan.hosts > 1 else 'pod'}"
    if plan.sharded is not None:
        how = "which divide the model (FSDP2)" if plan.sharded else "each with a copy of the model (DDP)"
        return f"{where}, {how}"
    mesh = f", mesh {plan.mesh['data']} x {plan.mesh['model']} (data x model)" if plan.mesh else ""
    return f"{where}{mesh}"


def _defaults(resolved: Mapping[str, Any], written: Mapping[str, Any]) -> Table:
    """The fields that the user did not write, with what they became."""
    given = dict(_leaves(written))
    table = _table("Defaults", "field", "value")
    for path, value in _leaves(resolved):
        if path not in given:
            table.add_row(path, json.dumps(value, ensure_ascii=False).strip('"'))
    return table


def _leaves(block: Mapping[str, Any], root: str = "spec") -> Iterator[tuple[str, Any]]:
    for name, value in block.items():
        path = f"{root}.{name}"
        if isinstance(value, dict):
            yield from _leaves(value, path)
        else:
            yield path, value
