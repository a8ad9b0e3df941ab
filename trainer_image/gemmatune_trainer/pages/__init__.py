"""The templates of what people read: model card and report."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


@cache
def environment() -> Environment:
    """Templates of this package; values in HTML are escaped, in Markdown indented or quoted by the template."""
    return Environment(
        loader=PackageLoader("gemmatune_trainer.pages", "."),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
