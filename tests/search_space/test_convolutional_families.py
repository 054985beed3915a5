"""What every convolutional family must stand: any input and memory format, being thinned, tapped, paired and taught."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import kdsearch
from kdsearch import kd_methods, proxies
from kdsearch.kd_methods import DataSpec, Need
from kdsearch.kd_methods.tap import Tap, probe
from kdsearch.runs import config_file
from kdsearch.runs.config import RunConfig
from kdsearch.runs.thinning import thin
from kdsearch.search_space import students
from kdsearch.search_space.pairing import pair
from kdsearch.search_space.space import SearchSpace
from kdsearch.search_space.students import TRANSFORMS, measure
from tests.runs.tiny import TINY

DIGITS, CIFAR = (1, 8, 8), (3, 32, 32)
SMALL: dict[str, dict[str, Any]] = {
    "mobilenetv2": {"width": 0.25, "expansion": 3, "depth": 0.5, "last": 64},
    "nasbench201": {"channels": 8, "cells": 1},
    "resnet": {"depth": 8, "width1": 0.75, "width3": 0.5},
    "resnet_s1": {"width": 0.5, "blocks1": 1, "blocks2": 2, "blocks3": 1},
    "shufflenetv2": {"width": 0.25, "depth": 0.5, "last": 64},
    "wrn": {"depth": 10, "width2": 0.75},
}
UNLIKE = ["mobilenetv2", "nasbench201", "shufflenetv2"]
"""Those that are built of other parts than the residual networks."""

every = pytest.mark.parametrize("name", SMALL)


def small(name: str) -> Any:
    return students.create(name, **SMALL[name])


@every
@pytest.mark.parametrize("shape", [DIGITS, (1, 2, 2), (2, 7, 3), (3, 66, 65)])
def test_any_input_shape_and_resolution(name: str, shape: tuple[int, int, int]) -> None:
    model = small(name).build(shape, 7)
    model(torch.randn(3, *shape)).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    spec = probe(model, shape)
    assert len(spec.stages) > 1
    assert all(stage.kind == "map" for stage in spec.stages)
    channels, height, width = shape
    for other in ((height, width), (-(-height // 2), -(-width // 2)), (2 * height, 3 * width)):
        assert model(torch.randn(2, channels, *other)).shape == (2, 7)


@pytest.mark.parametrize("name", UNLIKE)
def test_a_last_batch_of_one_image_of_one_pixel(name: str) -> None:
    model = small(name).build((1, 1, 1), 3).train()
    model(torch.randn(1, 1, 1, 1)).square().mean().backward()
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())


@every
def test_memory_format_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    model = small(name).build(DIGITS, 5).double()
    images = torch.randn(4, *DIGITS, dtype=torch.float64)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = model.to(memory_format=layout)
        model.zero_grad()
        logits = model(images.contiguous(memory_format=layout))
        logits.square().mean().backward()
        found.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
    for plain, last in zip(*found, strict=True):
        torch.testing.assert_close(last, plain, rtol=1e-6, atol=1e-9)


@every
def test_bfloat16_is_close_to_float32(name: str) -> None:
    torch.manual_seed(0)
    model = small(name).build(DIGITS, 5).eval()
    images = torch.randn(8, *DIGITS)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = model(images).float()
    with torch.no_grad():
        high = model(images)
    assert float((low - high).abs().max()) < 0.05 * float(high.abs().max())


@pytest.mark.parametrize("name", [*UNLIKE, "resnet_s1"])
@pytest.mark.parametrize("keep", [0.25, 0.75])
def test_thinned_for_cheap_trials(name: str, keep: float) -> None:
    family = students.create(name)
    model: Any
    model, note = thin(family, TRANSFORMS["none"](), CIFAR, 10, keep, 0)
    assert note == ""
    share = measure.macs(model, CIFAR) / measure.macs(family.build(CIFAR, 10), CIFAR)
    assert keep**2 * 0.7 < share < keep**2 * 1.7
    assert model(torch.randn(2, *CIFAR)).shape == (2, 10)


@every
def test_its_signals(name: str) -> None:
    model = small(name).build(DIGITS, 5)
    spec = probe(model, DIGITS)
    needs = frozenset({Need.LOGITS, Need.FEATURES, Need.PREACT, Need.EMBEDDING, Need.MAP, Need.CLASSIFIER})
    with Tap(model, spec, needs) as tap:
        signals = tap(torch.randn(4, *DIGITS))
    shapes = [(4, s.channels, *s.size) for s in spec.stages]
    assert [tuple(x.shape) for x in signals.features] == [tuple(x.shape) for x in signals.preact] == shapes
    assert len(shapes) == 3
    assert signals.embedding is not None
    assert signals.map is not None
    assert signals.classifier is not None
    torch.testing.assert_close(signals.map.mean((2, 3)), signals.embedding)
    weight, bias = signals.classifier
    assert bias is not None
    torch.testing.assert_close(signals.embedding @ weight.T + bias, signals.logits)


@every
@pytest.mark.parametrize("method", ["fitnets", "at", "ofd"])
def test_feature_methods_bind(name: str, method: str) -> None:
    student, teacher = small(name).build(DIGITS, 10), students.create("cnn").build(DIGITS, 10)
    own, other = probe(student, DIGITS), probe(teacher, DIGITS)
    taken = pair(own.stages, other.stages, "same_depth")
    assert [len(side) for side in taken] == [3, 3]
    own, other = (
        replace(spec, stages=tuple(spec.stages[k] for k in side))
        for spec, side in zip((own, other), taken, strict=True)
    )
    kd_methods.create(method).bind(own, other, DataSpec(64, 10, DIGITS, torch.arange(64) % 10))


@every
def test_moonshine_either_replaces_or_says_why_not(name: str) -> None:
    moonshine = TRANSFORMS["moonshine"](block="DConv")
    model: Any = small(name).build(DIGITS, 10)
    before = measure.parameters(model)
    if name in ("mobilenetv2", "shufflenetv2"):  # nothing but the stem is a full convolution of more than one pixel
        with pytest.raises(ValueError, match="moonshine DConv can replace no convolution"):
            moonshine.apply(model)
    else:
        assert measure.parameters(moonshine.apply(model)) < before
        assert model(torch.randn(2, *DIGITS)).shape == (2, 10)


@pytest.mark.parametrize("name", UNLIKE)
@pytest.mark.parametrize("proxy", proxies.names())
def test_every_proxy_scores_it(name: str, proxy: str) -> None:
    student, teacher = small(name).build(DIGITS, 10), students.create("cnn").build(DIGITS, 10)
    images, target = torch.randn(16, *DIGITS), torch.arange(16) % 10
    first, again = (proxies.create(proxy).score(student, teacher, images, target, seed=3) for _ in range(2))
    assert first == again or proxy == "latency"  # a measurement
    assert first > float("-inf")


def test_a_space_that_names_no_student_holds_every_family() -> None:
    space = SearchSpace.from_dict({})
    assert set(space.options["student"]) == set(students.names()) - {"timm"}
    drawn = {space.sample(seed).student.name for seed in range(200)}
    assert drawn == set(space.options["student"])
    structures, continuous = space.size()
    assert structures > 5**6
    assert continuous > 5


@pytest.fixture(scope="module")
def config() -> RunConfig:
    fidelity = {"epochs": 4, "evaluations": 1, "rungs": [{"name": "full"}]}
    return config_file.check({**TINY, "teacher": {**TINY["teacher"], "epochs": 3}, "fidelity": fidelity}, "tiny")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("teacher")


@pytest.mark.parametrize("name", [*UNLIKE, "resnet"])
def test_trains_through_the_public_api(name: str, config: RunConfig, cache: Path) -> None:
    recipe = {"student": {"family": name, **SMALL[name]}, "logits": "kd", "features": "fitnets", "ce": {"weight": 1.0}}
    student = kdsearch.distill(recipe, config=config, cache=cache)
    assert student.validation["accuracy"] > 0.3  # by chance 0.1
