"""A trained stand-in for a small network, and whether a large one computes the same."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.search_space import students
from kdsearch.search_space.students.growth.growing import grow

DIGITS = (1, 8, 8)
Hyper = dict[str, Any]


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def fresh(family: str, hyper: Hyper, shape: tuple[int, int, int] = DIGITS, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return students.create(family, **hyper).build(shape, 10, **options)


def trained(model: nn.Module) -> nn.Module:
    """All that training moves, moved: weights, scales and shifts, statistics."""
    generator = seeded(1)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if value.is_floating_point():
                value += 0.2 * torch.randn(value.shape, generator=generator)
                if name.endswith("running_var"):
                    value.abs_().add_(0.1)
    return model


def outputs(model: nn.Module, shape: tuple[int, int, int] = DIGITS) -> Tensor:
    images = torch.randn(5, *shape, generator=seeded(7), dtype=torch.float64)
    with torch.no_grad():
        return model.double().eval()(images)


def preserved(small: nn.Module, large: nn.Module, shape: tuple[int, int, int] = DIGITS) -> None:
    grow(small, large, shape, generator=seeded(2))
    before = outputs(small, shape)
    assert float(before.std()) > 1e-3
    assert float((outputs(large, shape) - before).abs().max()) <= 1e-8 * max(1.0, float(before.abs().max()))


def fit(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> list[float]:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def learns(small: nn.Module, large: nn.Module, new: str) -> None:
    """A grown network's loss falls, and each parameter under the path `new` takes part."""
    images = torch.randn(32, *DIGITS, generator=seeded(3))
    labels = torch.randint(10, (32,), generator=seeded(4))
    fit(small, images, labels, 5)
    grow(small, large, DIGITS, generator=seeded(2), noise=0.01)
    first = {name: value.detach().clone() for name, value in large.named_parameters() if name.startswith(new)}
    losses = fit(large, images, labels, 10)
    assert losses[-1] < 0.9 * losses[0]
    assert first
    now = dict(large.named_parameters())
    assert not [name for name, value in first.items() if torch.equal(value, now[name])]
