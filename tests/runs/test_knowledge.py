"""What a config tells its searcher of decisions is checked against the space, before anything is trained."""

from __future__ import annotations

from typing import Any

import pytest

from kdsearch.errors import UserError
from kdsearch.runs import config_file
from kdsearch.runs.config import RunConfig
from kdsearch.search_space.space import SearchSpace

SPACE: dict[str, Any] = {
    "student": {"cnn": {"channels": [4, 8], "stages": 2}},
    "logits": {"none": {}, "kd": {"weight": 1.0}, "dkd": {}},
    "optimizer": ["sgd"],
}


def told(**options: Any) -> RunConfig:
    return config_file.check({"space": SPACE, "searcher": {"name": "mcts", "options": options}}, "config")


def test_every_question_that_a_walk_asks_is_a_decision() -> None:
    space = SearchSpace.from_dict(SPACE)
    decisions, asked = space.decisions(), set()
    for seed in range(200):
        asked |= set(space.params_of(space.sample(seed)))
    assert asked <= set(decisions)
    assert {"student.cnn.channels", "logits", "logits.kd.temperature", "features.pairing"} <= set(decisions)
    assert not {"student", "student.cnn.stages", "logits.kd.weight", "optimizer"} & set(decisions)  # held fixed


def test_what_the_space_asks_for_is_taken() -> None:
    options = {"priors": {"logits": {"kd": 3}, "student.cnn.channels": {6: 2}}, "defaults": {"logits": "dkd"}}
    assert told(**options).searcher.options == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priors": {"logts": {"kd": 3}}}, "options.priors: the space asks for no 'logts'; did you mean 'logits'"),
        ({"priors": {"logits": {"kdd": 3}}}, "options.priors: logits has no 'kdd'; did you mean 'kd'"),
        ({"defaults": {"logits": "at"}}, "options.defaults: logits has no 'at'; known: dkd, kd, none"),
        ({"defaults": {"logits.kd.temprature": 4}}, "did you mean 'logits.kd.temperature'"),
        ({"defaults": {"logits.kd.weight": 1.0}}, "the space asks for no 'logits.kd.weight'"),
    ],
)
def test_anything_else_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match="searcher") as error:
        told(**options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
