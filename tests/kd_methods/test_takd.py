"""takd: which paths there are, and what they plan."""

from __future__ import annotations

from typing import Any

import pytest

from kdsearch import kd_methods
from kdsearch.kd_methods.strategy import TEACHER
from kdsearch.kd_methods.teaching._sizes import sizes
from kdsearch.parameters import Choices
from kdsearch.search_space.narrowing import narrow


@pytest.mark.parametrize("name", ["takd", "dgkd"])
@pytest.mark.parametrize("path", ["", "0.5-", "-0.5", "0.33-0.67", "0.5-0.5", "1", "0", "1.5", "nan", "half", " 0.5"])
def test_what_is_no_path(name: str, path: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}\.path must "):
        kd_methods.create(name, path=path)


def test_a_bad_path_names_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"falling sizes from 0\.99 to 0\.01 joined by '-'.*, not '1-0'"):
        kd_methods.create("takd", path="1-0")


def test_paths_that_mean_the_same_are_the_same() -> None:
    assert kd_methods.create("takd", path="0.670-.33").hyper == {"path": "0.67-0.33"}
    assert sizes("0.9-0.5-0.3-0.1") == [0.9, 0.5, 0.3, 0.1]


def test_every_step_of_a_path_teaches_the_next() -> None:
    method: Any = kd_methods.create("takd", path="0.8-0.6-0.4-0.2")
    plan = method.plan()
    assert [(p.name, p.size, p.teachers, p.by) for p in plan.pretrain] == [
        ("assistant1", 0.8, (TEACHER,), "kd"),
        ("assistant2", 0.6, ("assistant1",), "kd"),
        ("assistant3", 0.4, ("assistant2",), "kd"),
        ("assistant4", 0.2, ("assistant3",), "kd"),
    ]
    assert plan.teachers == ("assistant4",)
    default: Any = kd_methods.create("takd")
    assert [p.size for p in default.plan().pretrain] == [0.5]


def test_a_search_draws_from_several_paths_or_from_those_that_a_space_names() -> None:
    parameter: Any = kd_methods.METHODS["takd"].parameters["path"]
    steps = {len(sizes(path)) for path in parameter.distribution().choices}
    assert steps == {1, 2, 3}
    narrowed = narrow(parameter, ["0.9-0.6-0.3", "0.4"], "space.teaching.takd.path")
    assert isinstance(narrowed, Choices)
    assert narrowed.distribution().choices == ("0.9-0.6-0.3", "0.4")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="falling sizes"):
        narrow(parameter, ["0.3-0.6"], "space.teaching.takd.path")
