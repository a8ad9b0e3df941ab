"""The price table: prices per hour by accelerator type, as the operator and `gft plan` read it."""

from __future__ import annotations

from gemmatune_api import yamlio
from gemmatune_api.errors import InvalidResourceError, Problem, shown

_EXAMPLE = "Write lines such as `nvidia-l4: 0.75`."


def parse(text: str) -> dict[str, float]:
    """Prices per hour of one GPU or chip, in one currency, by accelerator type, from a YAML text; {} from an empty one.

    Raises:
        InvalidResourceError: no YAML, no table, or a price that is no number from 0.
    """
    documents = yamlio.load_all(text) or [{}]
    table = documents[0] if len(documents) == 1 else documents
    if not isinstance(table, dict):
        message = "must map accelerator types to prices per hour"
        raise InvalidResourceError([Problem("the price table", message, _EXAMPLE, shown(table))])
    wrong = [
        Problem(str(name), "must be a price per hour", _EXAMPLE, shown(price))
        for name, price in table.items()
        if isinstance(price, bool) or not isinstance(price, int | float) or price < 0
    ]
    if wrong:
        raise InvalidResourceError(wrong)
    return {name: float(price) for name, price in table.items()}
