"""Deliberately wrong branches: copies of a module with one condition negated, or one comparison moved, found by AST."""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_MOVED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
"""Comparisons whose boundary moves; negation shows the rest."""


Change = Callable[[ast.AST], str]
"""Makes a node of its kind wrong in place, and says what it did."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A wrong copy of a module."""

    name: str
    """The function and what is wrong in it: `_free: not (used.preemptions - base >= limit)`."""
    tree: ast.Module
    position: int
    """Of the node that is made wrong, in the order of a walk."""
    change: Change

    def source(self) -> str:
        """The wrong module's text."""
        wrong = copy.deepcopy(self.tree)
        self.change(list(ast.walk(wrong))[self.position])
        return ast.unparse(wrong)


def mutants(source: str) -> list[Mutant]:
    """All wrong copies of a module, in the order of their places."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    for position, node in enumerate(ast.walk(tree)):
        for change in _changes(node):
            inside = [item.name for item in functions if item.lineno <= _line(node) <= (item.end_lineno or 0)]
            name = f"{inside[-1] if inside else 'module'}: {change(copy.deepcopy(node))}"
            seen[name] += 1
            unique = f"{name} ({seen[name]})" if seen[name] > 1 else name
            found.append(Mutant(unique, tree, position, change))
    return found


def _line(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0) or getattr(node, "target", node).lineno)


def _changes(node: ast.AST) -> Iterator[Change]:
    """What can be made wrong at a node."""
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield _negate
    if isinstance(node, ast.comprehension):
        yield from (_drop(position) for position in range(len(node.ifs)))
    if isinstance(node, ast.BoolOp) and _is_condition(node):
        yield _swap
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _MOVED:
        yield _move


def _is_condition(node: ast.BoolOp) -> bool:
    """Whether it joins truths; `found or default` joins values."""
    return any(isinstance(value, ast.Compare | ast.UnaryOp | ast.BoolOp) for value in node.values)


def _negate(node: ast.AST) -> str:
    assert isinstance(node, ast.If | ast.IfExp | ast.While)
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return ast.unparse(node.test)


def _drop(position: int) -> Change:
    def drop(node: ast.AST) -> str:
        assert isinstance(node, ast.comprehension)
        return f"without the filter {ast.unparse(node.ifs.pop(position))}"

    return drop


def _swap(node: ast.AST) -> str:
    assert isinstance(node, ast.BoolOp)
    node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    return ast.unparse(node)


def _move(node: ast.AST) -> str:
    assert isinstance(node, ast.Compare)
    node.ops[0] = _MOVED[type(node.ops[0])]()
    return ast.unparse(node)
