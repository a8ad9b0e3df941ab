"""The price table: prices per hour by accelerator type, as the operator and `gft plan` read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemmatune_api import yamlio
from gemmatune_api.errors import InvalidResourceError, Problem, shown
from gemmatune_api.placement import AcceleratorSpec

ON_DEMAND = "onDemand"
MODES = (ON_DEMAND, "spot", "flexStart", "reservation")
Price = float | dict[str, float]
"""Per hour of one GPU or chip: one number, or one for each provisioning mode, of which onDemand must be there."""
Prices = Mapping[str, Price]
"""By accelerator type, in one currency; `cpu` stands for a CPU node."""

_EXAMPLE = "Write lines such as `nvidia-l4: 0.75` or `nvidia-l4: {onDemand: 0.75, spot: 0.3}`."


def parse(text: str) -> dict[str, Price]:
    """The table in a YAML text; {} from an empty one.

    Raises:
        InvalidResourceError: no YAML, no table, or a price that is no number from 0.
    """
    documents = yamlio.load_all(text) or [{}]
    table = documents[0] if len(documents) == 1 else documents
    if not isinstance(table, dict):
        message = "must map accelerator types to prices per hour"
        raise InvalidResourceError([Problem("the price table", message, _EXAMPLE, shown(table))])
    wrong = [problem for name, price in table.items() for problem in _problems(str(name), price)]
    if wrong:
        raise InvalidResourceError(wrong)
    return {str(name): _price(price) for name, price in table.items()}


def per_hour(prices: Prices, accelerator: str, mode: str | None = None) -> float | None:
    """Price per hour of one GPU or chip in a provisioning mode; None where the table does not name the type.

    A mode without a price of its own costs what onDemand costs: never less than what will be paid.
    """
    price = prices.get(accelerator)
    if isinstance(price, dict):
        return price.get(mode or ON_DEMAND, price[ON_DEMAND])
    return price


def units(accelerator: AcceleratorSpec, hosts: int, chips: int) -> int:
    """How many are paid for: every GPU or chip; of CPUs the nodes, however many virtual devices they have."""
    return hosts if accelerator.cpu is not None else chips


def type_of(accelerator: AcceleratorSpec) -> str:
    """The name under which an accelerator stands in the table."""
    found = accelerator.gpu or accelerator.tpu
    return found.type if found is not None else "cpu"


def _problems(name: str, price: Any) -> list[Problem]:
    if not isinstance(price, dict):
        return [] if _is_price(price) else [Problem(name, "must be a price per hour", _EXAMPLE, shown(price))]
    found = [
        Problem(f"{name}.{mode}", f"must be one of {', '.join(MODES)}", _EXAMPLE, shown(mode))
        for mode in price
        if mode not in MODES
    ]
    if ON_DEMAND not in price:
        found.append(Problem(name, f"must have a price for {ON_DEMAND}", _EXAMPLE, shown(price)))
    return found + [
        Problem(f"{name}.{mode}", "must be a price per hour", _EXAMPLE, shown(value))
        for mode, value in price.items()
        if not _is_price(value)
    ]


def _is_price(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _price(price: Any) -> Price:
    return {mode: float(value) for mode, value in price.items()} if isinstance(price, dict) else float(price)
