"""jacobian: golden numbers through two small networks, its closed form, hazards, and a short training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdsearch import kd_methods
from kdsearch.kd_methods import Need, Signals
from kdsearch.kd_methods import functional as KF

from .feature_golden import fill, module_gradients_agree
from .feature_signals import batch_of, learns, model
from .golden import agrees, cases, tensors

GOLDEN = "features/jacobian_matching"


def network(name: str, width: int) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 5),
    ).double()
    fill(GOLDEN, name, dict(layers.named_parameters()))
    return layers


def input_gradient(layers: nn.Module, images: Tensor, target: Tensor, *, create_graph: bool) -> Tensor:
    images = images.clone().requires_grad_()
    true = layers(images).gather(1, target[:, None]).sum()
    return torch.autograd.grad(true, images, create_graph=create_graph)[0]


@pytest.mark.parametrize(("case", "arrays"), cases(GOLDEN))
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    images, target, student, teacher = case["uses"]
    x = tensors(arrays)
    s, t = network(student, 4), network(teacher, 6)
    loss = KF.jacobian(
        input_gradient(s, x[images], x[target], create_graph=True),
        input_gradient(t, x[images], x[target], create_graph=False),
    )
    agrees(case, loss, x)
    module_gradients_agree(case, student, loss, dict(s.named_parameters()))


def test_is_twice_one_minus_cosine() -> None:
    s, t = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    cosine = nn.functional.cosine_similarity(s.flatten(1), t.flatten(1))
    torch.testing.assert_close(KF.jacobian(s, t, average="samples"), (2 - 2 * cosine).mean())
    torch.testing.assert_close(KF.jacobian(s, t), (2 - 2 * cosine).mean() / 48)


def test_only_directions_matter() -> None:
    s, t = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    scales = torch.tensor([1.0, 3.0, 0.1, 50.0, 7.0], dtype=torch.float64).view(5, 1, 1, 1)
    torch.testing.assert_close(KF.jacobian(s * scales, t), KF.jacobian(s, t))
    torch.testing.assert_close(KF.jacobian(s.flip(0), t.flip(0)), KF.jacobian(s, t))
    assert KF.jacobian(3 * s, s) < 1e-30


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e20])
def test_finite(size: int, dtype: torch.dtype, scale: float) -> None:
    s, t = torch.randn(2, size, 3, 4, 4)
    s[0] = 0  # a sample whose every ReLU is shut
    s = (s * scale).to(dtype).requires_grad_()
    loss = KF.jacobian(s, t.to(dtype))
    (gradient,) = torch.autograd.grad(loss, s)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert not gradient[0].any()


def test_learns() -> None:
    learns(kd_methods.create("jacobian"), model([]), model([]), lr=2000.0)


def test_declaration() -> None:
    method = kd_methods.create("jacobian")
    assert method.needs.student == method.needs.teacher == {Need.INPUT_GRADIENT}
    with pytest.raises(ValueError, match="reads the input gradients"):
        method.loss(Signals(torch.zeros(2, 3)), Signals(torch.zeros(2, 3)), batch_of(2))
    with pytest.raises(ValueError, match="'elements' or 'samples', not 'mean'"):
        KF.jacobian(torch.zeros(2, 3), torch.zeros(2, 3), average="mean")
