"""Networks of many kinds, each built and probed once."""

from __future__ import annotations

from functools import cache
from typing import Any

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from kdsearch.kd_methods import ModelSpec, Need
from kdsearch.kd_methods.tap import probe
from kdsearch.search_space import students

CIFAR = (3, 32, 32)
ALL_FEATURES = frozenset({Need.LOGITS, Need.FEATURES, Need.PREACT, Need.EMBEDDING, Need.CLASSIFIER})


class Functional(nn.Module):
    """A user's network without activation modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 5, padding=2)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1)
        self.fc1 = nn.Linear(12 * 64, 10)
        self.fc2 = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1)))) / 2


@cache
def build(name: str) -> Any:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8}
    if name in students.names():
        return students.create(name, **({"depth": 4, "dim": 48} if name == "vit" else {})).build(CIFAR, 10)
    if name == "torchvision":
        return torchvision.models.resnet18(num_classes=10)
    if name == "functional":
        return Functional()
    options: dict[str, Any] = {"vit_tiny_patch16_224": small, "deit_tiny_distilled_patch16_224": small}.get(name, {})
    if name.startswith("swin"):
        options = {"img_size": 32, "window_size": 2, "depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 1, 1)}
    if name == "resnet18":  # else every block starts as its shortcut, and no pre-activation is negative
        options = {"zero_init_last": False}
    return timm.create_model(name, num_classes=10, **options)


@cache
def measured(name: str) -> ModelSpec:
    return probe(build(name), CIFAR)
