"""Bytes as quantities of Kubernetes."""

from __future__ import annotations

from gemmatune_api.quantity import parse

__all__ = ["GI", "MI", "parse", "text"]

MI, GI = 2**20, 2**30


def text(size: int) -> str:
    """Bytes as the shortest exact quantity with a binary unit, rounded up to whole mebibytes."""
    mebibytes = -(-size // MI)
    return f"{mebibytes // 1024}Gi" if mebibytes % 1024 == 0 else f"{mebibytes}Mi"
