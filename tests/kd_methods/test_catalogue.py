"""The catalogue as a whole: what every entry must declare, read off the registry."""

from __future__ import annotations

import inspect
import json
import math
import re
import subprocess
import sys
from typing import Any

import pytest

from kdsearch import kd_methods
from kdsearch.kd_methods import LOSS_SLOTS, METHODS, SLOTS, Need, Needs, functional
from kdsearch.parameters import Choices, FloatRange, IntRange, Parameter, TextChoices

CLASSES = list(METHODS)
PARAMETERS = [(cls, key, parameter) for cls in CLASSES for key, parameter in cls.parameters.items()]
every_method = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.name)
every_parameter = pytest.mark.parametrize(
    ("cls", "key", "parameter"), PARAMETERS, ids=[f"{cls.name}.{key}" for cls, key, _ in PARAMETERS]
)


def test_names() -> None:
    names = kd_methods.names()
    assert len(names) == len(set(names)) == len(CLASSES)
    assert names == sorted(names)
    by_slot = [name for slot in SLOTS for name in kd_methods.names(slot)]
    assert sorted(by_slot) == names


def test_every_slot_has_a_neutral_choice() -> None:
    neutral = {
        "temperature": "constant",
        "targets": "labels",
        "teaching": "teacher",
        "schedule": "always",
        "data": "standard",
        "optimizer": "sgd",
    }
    for slot, name in neutral.items():
        assert name in kd_methods.names(slot)


@every_method
def test_says_what_it_is(cls: Any) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", cls.name)
    assert cls.slot in SLOTS
    assert cls.title.strip() == cls.title != ""
    assert cls.paper.strip() == cls.paper != ""
    assert 2006 <= cls.year <= 2026
    assert cls.__doc__, "what it does is said in its docstring"
    assert f".{cls.slot}." in cls.__module__, "a method's file lies in the folder of its slot"


@every_method
def test_published_defaults_construct(cls: Any) -> None:
    method = kd_methods.create(cls.name)
    assert method.hyper == {key: parameter.default for key, parameter in cls.parameters.items()}
    assert kd_methods.create(cls.name, **method.hyper).hyper == method.hyper


@pytest.mark.parametrize("cls", [c for c in CLASSES if c.slot in LOSS_SLOTS], ids=lambda cls: cls.name)
def test_every_loss_has_a_weight_and_a_function(cls: Any) -> None:
    weight = cls.parameters["weight"]
    assert isinstance(weight, FloatRange)
    assert weight.log
    assert weight.default > 0
    assert cls.functional is not None
    assert cls.needs.student


@every_parameter
def test_ranges_are_honest(cls: Any, key: str, parameter: Parameter) -> None:
    assert parameter.check(parameter.default) == parameter.default
    if isinstance(parameter, Choices):
        assert len(set(parameter.options)) == len(parameter.options) > 1
        assert set(parameter.searched) <= set(parameter.options)
    elif isinstance(parameter, FloatRange | IntRange):
        assert parameter.domain[0] <= parameter.low <= parameter.default <= parameter.high <= parameter.domain[1]
        assert parameter.low < parameter.high
        assert not parameter.log or parameter.low > 0


@every_parameter
def test_values_outside_the_domain_are_refused(cls: Any, key: str, parameter: Parameter) -> None:
    bad: list[Any] = [None, math.nan]
    if not isinstance(parameter, TextChoices):
        bad.append("nonsense")
    if isinstance(parameter, FloatRange | IntRange):
        bad += [end + step for end, step in zip(parameter.domain, (-1, 1), strict=True) if math.isfinite(end)]
    for value in bad:
        with pytest.raises(ValueError, match=rf"^{cls.name}\.{key} "):
            kd_methods.create(cls.name, **{key: value})


@every_parameter
def test_distribution_holds_what_is_searched(cls: Any, key: str, parameter: Parameter) -> None:
    distribution: Any = parameter.distribution()
    if isinstance(parameter, Choices):
        assert distribution.choices == (parameter.searched or parameter.options)
    elif isinstance(parameter, FloatRange | IntRange):
        assert (distribution.low, distribution.high) == (parameter.low, parameter.high)
        assert distribution._contains(distribution.to_internal_repr(parameter.default))


def test_functional_lists_what_the_classes_declare() -> None:
    listed = dir(functional)
    assert listed == [cls.name for cls in CLASSES if cls.functional is not None]
    assert "kd" in listed
    for name in listed:
        assert getattr(functional, name) is METHODS[name].functional
    with pytest.raises(AttributeError, match="no loss function 'labels'"):
        _ = functional.labels


@pytest.mark.parametrize("name", [c.name for c in CLASSES if c.slot == "logits" and c.needs == Needs.of(Need.LOGITS)])
def test_logit_functions_begin_alike(name: str) -> None:
    """(student_logits, teacher_logits, target?), every hyper-parameter by keyword, with the class' own default."""
    cls = METHODS[name]
    signature = inspect.signature(getattr(functional, name))
    positional = [p.name for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert positional[:2] == ["student_logits", "teacher_logits"]
    assert positional[2:] in ([], ["target"])
    for key, parameter in cls.parameters.items():
        if key in signature.parameters:
            assert signature.parameters[key].default == parameter.default


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown method 'dkdd'; did you mean 'dkd'"):
        kd_methods.create("dkdd")
    with pytest.raises(ValueError, match=r"kd has no hyper-parameter 'temprature'; did you mean 'temperature'\?"):
        kd_methods.create("kd", temprature=2)


def test_listing_imports_nothing_heavy() -> None:
    """In a process of its own: names, declarations and docs come without torch, optuna or timm."""
    script = (
        "import json, sys; from kdsearch import kd_methods; names = kd_methods.names();"
        "[cls.parameters[k].describe() for cls in kd_methods.METHODS for k in cls.parameters];"
        "[kd_methods.create(name) for name in names];"
        "print(json.dumps([names, [m for m in ('torch', 'optuna', 'timm', 'numpy', 'ray') if m in sys.modules]]))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    names, heavy = json.loads(result.stdout)
    assert names == kd_methods.names()
    assert heavy == []
