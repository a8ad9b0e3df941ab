"""Nothing is handed to a trainer in vain: every leaf of RunConfig is read by it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gemmatune_api.location import arms, is_model
from gemmatune_api.runconfig import RunConfig, RunTraining

TRAINER = Path(__file__).resolve().parents[2] / "trainer_image" / "gemmatune_trainer"

IN_READING = {"version"}
"""Leaves that RunConfig.from_env itself reads, which every trainer begins with."""


def leaves(model: Any, path: str = "") -> Iterator[str]:
    """Paths of all fields that hold no further fields, in Python's names."""
    for name, field in model.model_fields.items():
        blocks = [arm for arm in arms(field.annotation) if is_model(arm)]
        for block in blocks:
            yield from leaves(block, f"{path}{name}.")
        if not blocks:
            yield f"{path}{name}"


def attributes(tree: ast.AST) -> set[str]:
    """The names of all attributes that are read."""
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def trees(files: Iterable[Path]) -> Iterator[ast.AST]:
    for file in files:
        yield ast.parse(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def read() -> set[str]:
    """What the trainer reads, also by way of RunTraining's methods."""
    found = set().union(*map(attributes, trees(TRAINER.rglob("*.py"))))
    for name, method in inspect.getmembers(RunTraining, inspect.isfunction):
        if method.__module__ == RunTraining.__module__ and name in found:
            found |= attributes(ast.parse(textwrap.dedent(inspect.getsource(method))))
    return found


@pytest.mark.parametrize("path", sorted(set(leaves(RunConfig)) - IN_READING))
def test_the_trainer_reads_the_leaf(path: str, read: set[str]) -> None:
    assert path.rpartition(".")[2] in read
