"""Recipes: YAML in and out, defaults, canonical hash, errors that say where."""

from __future__ import annotations

import pytest
import yaml

from kdsearch.search_space.recipe import Recipe

FULL = {
    "student": {"family": "cnn", "channels": 4},
    "ce": {"weight": 0.5},
    "logits": {"method": "dkd", "beta": 2.0},
    "features": {"method": "at", "pairing": "last"},
    "temperature": "logit_std",
    "teaching": {"method": "takd", "path": "0.33"},
    "optimizer": {"method": "sgd", "lr": 0.1},
}


def test_round_trip_through_yaml() -> None:
    recipe = Recipe.from_dict(FULL)
    again = Recipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict())))
    assert again == recipe
    assert again.hash == recipe.hash
    assert recipe.pairing == "last"
    assert recipe.terms["logits"].hyper["beta"] == 2.0


def test_what_is_left_out_takes_its_default() -> None:
    recipe = Recipe.from_dict({"student": "cnn", "logits": "kd"})
    assert recipe.ce_weight == 0.1  # published beside kd
    assert recipe.policies["teaching"].name == "teacher"
    assert recipe == Recipe.from_dict(recipe.to_dict())


def test_hash_depends_on_content_alone() -> None:
    one = Recipe.from_dict({"student": "cnn", "logits": {"method": "kd", "weight": 0.3}})
    two = Recipe.from_dict({"logits": {"weight": 0.1 + 0.2, "method": "kd"}, "student": {"family": "cnn"}})
    assert one.hash == two.hash
    assert one.hash != Recipe.from_dict({"student": "cnn", "logits": {"method": "kd", "weight": 0.31}}).hash


def test_baselines_keep_student_and_optimiser() -> None:
    recipe = Recipe.from_dict(FULL)
    bare, kd = recipe.without_distillation(), recipe.plain_kd()
    assert not bare.distils
    assert kd.distils
    assert bare.student == kd.student == recipe.student
    assert bare.policies["optimizer"].hyper["lr"] == 0.1
    assert bare.ce_weight == 1.0
    assert kd.terms["logits"].hyper == {"weight": 0.9, "temperature": 4.0}


def test_equation_names_every_part() -> None:
    text = Recipe.from_dict(FULL).equation()
    for part in ("0.5·CE", "dkd(", "at(", "[temperature: logit_std]", "[teaching: takd]"):
        assert part in text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"student": "cnn", "logit": "kd"}, "recipe has no slot 'logit'; did you mean 'logits'"),
        ({"logits": "kd"}, "recipe.student is missing"),
        ({"student": "cnm"}, "student: unknown student family 'cnm'; did you mean 'cnn'"),
        ({"student": "cnn", "logits": "dkdd"}, "logits: unknown method 'dkdd'; did you mean 'dkd'"),
        ({"student": "cnn", "logits": "at"}, "logits: 'at' is a features method"),
        ({"student": "cnn", "logits": {"method": "kd", "temprature": 2}}, "did you mean 'temperature'"),
        ({"student": "cnn", "logits": {"method": "kd", "temperature": -1}}, "kd.temperature must lie in"),
        ({"student": "cnn", "features": {"method": "at", "pairing": "lst"}}, "did you mean 'last'"),
        ({"student": "cnn", "ce": {"weight": "big"}}, "ce.weight must be a number"),
    ],
)
def test_mistakes_say_where_and_what(data: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Recipe.from_dict(data)
    assert message in str(caught.value)
