"""What holds for every proxy that is registered: families, small batches, and input that is not a number."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdsearch import proxies
from kdsearch.search_space.students.family import create

DATALESS = {"autodas", "l2_norm", "latency", "macs", "params", "synflow", "zen"}
"""Scores that look at nothing of the batch but its shape."""

UNDEFINED = {"autodas": "no convolution|has none", "meco": "no layer", "naswot": "no rectifier"}
"""What a recurrent network lacks."""


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 16, 16, generator=generator), torch.randint(10, (8,), generator=generator)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return create("cnn", channels=4).build((3, 16, 16), 10)


STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet": ("resnet", {"depth": 8}),
    "shufflenetv2": ("shufflenetv2", {"width": 0.25, "depth": 0.5, "last": 64}),
    "vit": ("vit", {"dim": 48, "depth": 3}),
    "rnn": ("rnn", {"hidden": 16}),
}


@pytest.mark.parametrize("family", STUDENTS)
@pytest.mark.parametrize("name", proxies.names())
def test_students_of_all_kinds(name: str, family: str, batch: tuple[Tensor, Tensor], teacher: nn.Module) -> None:
    kind, hyper = STUDENTS[family]
    student = create(kind, **hyper).build((3, 16, 16), 10).train()
    state = copy.deepcopy(student.state_dict())
    threads = torch.get_num_threads()
    proxy = proxies.create(name)
    if family == "rnn" and name in UNDEFINED:
        with pytest.raises(ValueError, match=UNDEFINED[name]):
            proxy.score(student, teacher, *batch, seed=0)
    else:
        with torch.no_grad():
            score = proxy.score(student, teacher, *batch, seed=0)
        assert isinstance(score, float)
        assert math.isfinite(score)
    after = student.state_dict()
    assert all(torch.equal(after[key], value) for key, value in state.items())
    assert all(p.grad is None and p.requires_grad for p in student.parameters())
    assert all(
        layer.training and not layer._forward_hooks and not layer._forward_pre_hooks for layer in student.modules()
    )
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", proxies.names())
def test_a_batch_of_two(name: str, batch: tuple[Tensor, Tensor], teacher: nn.Module) -> None:
    student = create("resnet", depth=8).build((3, 16, 16), 10)
    score = proxies.create(name).score(student, teacher, batch[0][:2], batch[1][:2], seed=0)
    assert math.isfinite(score)


@pytest.mark.parametrize("name", proxies.names())
def test_what_is_not_a_number_is_worst(name: str, batch: tuple[Tensor, Tensor], teacher: nn.Module) -> None:
    student = create("cnn", channels=4).build((3, 16, 16), 10)
    images = batch[0].clone()
    images[0, 0, 3, 3] = math.nan
    score = proxies.create(name).score(student, teacher, images, batch[1], seed=0)
    assert math.isfinite(score) if name in DATALESS else score == -math.inf


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("diswot", {"similarity": "channels"}),
        ("diswot", {"similarity": "first_image"}),
        ("diswot", {"gradient": "weight"}),
        ("diswot", {"init": "default"}),
        ("fisher", {"weighting": "weights"}),
        ("meco", {"layers": "all"}),
        ("meco", {"sampled": 2}),
        ("ntk", {"part": "condition"}),
        ("synflow", {"normalised": True}),
        ("zen", {"variant": "code"}),
        ("zico", {"spread": "signed"}),
        ("zico", {"batches": 4}),
        ("grasp", {"temperature": 200.0}),
        ("l2_norm", {"init": "gaussian"}),
        ("autodas", {"layers": "all"}),
    ],
)
def test_options_change_the_score(
    name: str, options: dict[str, object], batch: tuple[Tensor, Tensor], teacher: nn.Module
) -> None:
    student = create("cnn", channels=8).build((3, 16, 16), 10)
    default, other = (
        proxies.create(name, **chosen).score(student, teacher, *batch, seed=0) for chosen in ({}, options)
    )
    assert math.isfinite(other)
    assert other != default


def test_what_cannot_be_scored_is_said(batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="cuts the batch into 16 parts; it has 8 images"):
        proxies.create("zico", batches=16).score(create("cnn").build((3, 16, 16), 10), None, *batch, seed=0)
    with pytest.raises(ValueError, match="no layer with a weight matrix"):
        proxies.create("snip").score(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), None, *batch, seed=0)
    with pytest.raises(ValueError, match="no teacher"):
        proxies.create("cross_ntk").score(create("cnn").build((3, 16, 16), 10), None, *batch, seed=0)
