"""Sizes are plain counts."""

from __future__ import annotations

import torch
from torch import nn

from kdsearch import proxies


def test_counts_by_hand() -> None:
    layers = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=4)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    images, target = torch.zeros(4, 3, 10, 10), torch.zeros(4, dtype=torch.long)
    parameters = 8 * 3 * 9 + 16 + (8 * 2 * 9 + 8) + (8 * 5 + 5)
    macs = 8 * 3 * 9 * 25 + 8 * 2 * 9 * 25 + 8 * 5
    assert proxies.create("params").score(model, None, images, target, seed=0) == parameters
    assert proxies.create("macs").score(model, None, images, target, seed=0) == macs
