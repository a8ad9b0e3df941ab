"""Problems as a person reads them."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from gemmatune_api.errors import InvalidResourceError, Problem, problems_of, shown
from gemmatune_api.location import locate
from gemmatune_api.spec import GemmaFineTune


class Text(BaseModel):
    """A class whose name could be a field's."""

    Text: int


class Example(BaseModel):
    """Unions, maps and lists of blocks, named to confuse."""

    either: Literal["a", "b"] | Annotated[list[Text], Field(max_length=2)] | None = None
    by_name: dict[str, Text] = Field(default_factory=dict)
    both: Annotated[int, Field(ge=1)] | Annotated[str, Field(min_length=2)] = 1


def told(**values: object) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as error:
        Example.model_validate(values, strict=True)
    return [(problem.path, problem.message) for problem in problems_of(error.value, Example, "root")]


def test_a_problem_reads_as_a_sentence() -> None:
    problem = Problem("spec.lora.rank", "must be at least 1", "Write a number in that range.", "0")

    assert str(problem) == "spec.lora.rank: must be at least 1 (found 0). Write a number in that range."
    assert str(InvalidResourceError([problem, problem])) == f"{problem}\n{problem}"
    assert str(Problem("spec", "is empty", "")) == "spec: is empty."


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", '"a"'),
        (None, "null"),
        (True, "true"),
        ({"a": [1]}, '{"a": [1]}'),
        ("é", '"é"'),
        ("\ud800", '"\\ud800"'),
        pytest.param(10**5000, "a very large int", id="large"),
        ("x" * 500, '"' + "x" * 118 + "…"),
    ],
)
def test_values_are_shown_as_json(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("values", "path", "message"),
    [
        ({"either": [{"Text": "x"}]}, "root.either[0].Text", "must be a whole number"),
        ({"either": [{}]}, "root.either[0].Text", "is required"),
        ({"either": [{"Text": 1}] * 3}, "root.either", "must have at most 2 entries"),
        ({"either": 5}, "root.either", "must be one of a, b, or a list"),
        ({"either": "c"}, "root.either", "must be one of a, b"),
        ({"by_name": {"x": {"Text": "y"}}}, "root.by_name.x.Text", "must be a whole number"),
        ({"by_name": {"a/b": {}}}, 'root.by_name["a/b"].Text', "is required"),
        ({"both": 0}, "root.both", "must be at least 1"),
        ({"both": "a"}, "root.both", "must have at least 2 characters"),
        ({"both": 1.5}, "root.both", "must be a whole number, or a text"),
    ],
)
def test_paths_and_words_pass_the_names_of_branches(values: dict[str, object], path: str, message: str) -> None:
    assert told(**values) == [(path, message)]


def test_a_place_knows_the_fields_around_it() -> None:
    place = locate(GemmaFineTune, ("spec", "dataset", "maxLen"), unknown=True)

    assert place.path == "spec.dataset.maxLen"
    assert {"uri", "maxLength"} <= set(place.names)
    assert locate(GemmaFineTune, ()).path == ""
