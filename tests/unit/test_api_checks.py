"""The rules between fields: specs that keep each and specs that break it, and that no rule is left out."""

from __future__ import annotations

from inspect import isfunction
from types import ModuleType
from typing import Any

import pytest

from gemmatune_api import checks, checks_accelerator, checks_data, checks_images, checks_model, checks_pod
from tests.support import rules_accelerator, rules_between, rules_data, rules_images, rules_model, rules_pod
from tests.support.resources import problems_between_fields

TABLES = {
    checks: rules_between,
    checks_accelerator: rules_accelerator,
    checks_data: rules_data,
    checks_images: rules_images,
    checks_model: rules_model,
    checks_pod: rules_pod,
}
"""Modules of rules, each with its specs."""

GOOD: dict[str, dict[str, Any]] = {case: spec for table in TABLES.values() for case, spec in table.GOOD.items()}
BAD: dict[str, tuple[dict[str, Any], str, str, str]] = {
    case: expected for table in TABLES.values() for case, expected in table.BAD.items()
}


@pytest.mark.parametrize("case", GOOD)
def test_good(case: str) -> None:
    assert [str(problem) for problem in problems_between_fields(GOOD[case])] == []


@pytest.mark.parametrize("case", GOOD)
def test_a_resolved_spec_passes_again(case: str) -> None:
    assert [str(problem) for problem in problems_between_fields(GOOD[case], resolved=True)] == []


@pytest.mark.parametrize("case", BAD)
def test_bad(case: str) -> None:
    changes, path, message, remedy = BAD[case]

    found = problems_between_fields(changes)

    assert [problem.path for problem in found] == [path]
    assert message in found[0].message
    assert remedy in found[0].remedy


def test_no_case_hides_another() -> None:
    assert len(GOOD) == sum(len(table.GOOD) for table in TABLES.values())
    assert len(BAD) == sum(len(table.BAD) for table in TABLES.values())


@pytest.mark.parametrize("module", TABLES, ids=lambda module: module.__name__)
def test_every_rule_of_the_module_is_in_the_table_and_has_a_bad_case(module: ModuleType) -> None:
    rules = {rule.__name__ for rule in checks.RULES if rule.__module__ == module.__name__}

    assert {case.split(":")[0] for case in TABLES[module].BAD} == rules


@pytest.mark.parametrize(
    "module",
    [checks_accelerator, checks_data, checks_images, checks_model, checks_pod],
    ids=lambda module: module.__name__,
)
def test_every_public_function_of_the_module_is_a_rule(module: ModuleType) -> None:
    functions = {value for name, value in vars(module).items() if isfunction(value) and not name.startswith("_")}

    assert {function for function in functions if function.__module__ == module.__name__} <= set(checks.RULES)
