"""The projector of SimKD, and the student that ends in it and the teacher's classifier."""

from __future__ import annotations

from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.kd_methods.adapters import BatchNorm2d, resize, to_dtype_of
from kdsearch.kd_methods.logits._last_map import last_map
from kdsearch.kd_methods.signals import ModelSpec, Need
from kdsearch.kd_methods.tap import Tap


def _layer(channels: int, to: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, to, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return [conv, BatchNorm2d(to)]


class ReusedClassifier(nn.Module):
    """From the student's last map to the teacher's, and on to logits.

    Buffers: `weight` [C, D] and `bias` [C] of the teacher's classifier, and `floor`, below which the projected map is
    cut: 0 is a ReLU, -inf none. All of them come back with the state.
    """

    def __init__(self, student: ModelSpec, teacher: ModelSpec, factor: int = 2) -> None:
        super().__init__()
        stage, to = last_map("simkd", "student", student), last_map("simkd", "teacher", teacher)
        self.student = student
        self.size = (min(stage.size[0], to.size[0]), min(stage.size[1], to.size[1]))
        width = max(1, to.channels // factor)
        self.project = nn.Sequential(
            *_layer(stage.channels, width, 1),
            nn.ReLU(inplace=True),
            *_layer(width, width, 3),
            nn.ReLU(inplace=True),
            *_layer(width, to.channels, 1),
        )
        self.weight: Tensor
        self.bias: Tensor
        self.floor: Tensor
        self.register_buffer("weight", torch.zeros(teacher.classes, to.channels))
        self.register_buffer("bias", torch.zeros(teacher.classes))
        self.register_buffer("floor", torch.zeros(()))

    @torch.no_grad()
    def reuse(self, weight: Tensor, bias: Tensor, floor: Tensor) -> None:
        """Take over what `SimKD.prepare` gave."""
        for buffer, value in ((self.weight, weight), (self.bias, bias), (self.floor, floor)):
            buffer.copy_(value)

    def forward(self, x: Tensor) -> Tensor:
        """A map [B, C, H, W] in the teacher's channels, at its own size."""
        return torch.maximum(self.project(to_dtype_of(self.weight, x)), self.floor)

    def classify(self, x: Tensor) -> Tensor:
        """Logits [B, C] of the student's last map."""
        return F.linear(self(resize(x, self.size)).mean((2, 3)), self.weight, self.bias)


class ReusingStudent(nn.Module):
    """The student without its classifier, the projector and the teacher's classifier: images to logits [B, C].

    Shares every parameter and buffer with both, so that it follows them as they train.
    """

    def __init__(self, student: nn.Module, classifier: ReusedClassifier) -> None:
        super().__init__()
        head = classifier.student.classifier
        self.student = student if head is None else _headless(student, head)
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        # For this call only: hooks that stay would be shared by every copy, and by the student under training.
        with Tap(self.student, self.classifier.student, frozenset({Need.MAP})) as tap:
            seen = tap(images).map
        assert seen is not None
        return self.classifier.classify(seen)


def _headless(module: nn.Module, path: str) -> nn.Module:
    """The same modules with an identity at `path`; only the containers on the way there are new."""
    shell = copy(module)
    name, _, rest = path.partition(".")
    child = module.get_submodule(name)
    shell._modules = {**module._modules, name: _headless(child, rest) if rest else nn.Identity()}
    return shell
