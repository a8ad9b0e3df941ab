"""The versions of the libraries that decide a result, for manifests and the report."""

from __future__ import annotations

from importlib import metadata

LIBRARIES = ("gemmatune", "torch", "torch-xla", "transformers", "trl", "peft", "bitsandbytes", "tokenizers")


def versions() -> dict[str, str]:
    """Version of each library that is installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
