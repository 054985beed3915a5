"""Residual networks whose stages differ in depth: the search space S1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from kdsearch.parameters import Float, Int
from kdsearch.search_space.students.family import InputShape, StudentFamily, register

if TYPE_CHECKING:
    from torch import nn


@register
class ResNetS1(StudentFamily):
    """The residual network for small images, each stage with a number of basic blocks of its own.

    With 1, 3, 5 or 7 blocks in each stage these are the 64 networks of S1, on which DisWOT and its successors rank
    students by their accuracy after distillation; `from_code` reads their names, such as 713. Network 333 is resnet20.

    Source: Dong, Li, Wei, DisWOT: Student Architecture Search for Distillation WithOut Training, CVPR 2023; the
    accuracies are in the authors' repository.
    """

    name = "resnet_s1"
    title = "Residual networks of the search space S1"
    paper = "arXiv 2303.15678"
    year = 2023

    blocks1: int = Int(3, low=1, high=7, step=2, domain=(1, 200), doc="blocks of stage 1")
    blocks2: int = Int(3, low=1, high=7, step=2, domain=(1, 200), doc="blocks of stage 2")
    blocks3: int = Int(3, low=1, high=7, step=2, domain=(1, 200), doc="blocks of stage 3")
    width: float = Float(1.0, low=0.25, high=2.0, log=True, domain=(1 / 16, 64), doc="factor on all channels")

    @classmethod
    def from_code(cls, code: str, **hyper: Any) -> Self:
        """The network whose blocks are the three digits of its name in the benchmark.

        Raises:
            ValueError: other than three digits from 1 to 9.
        """
        if len(code) != 3 or any(digit not in "123456789" for digit in code):
            raise ValueError(f"{cls.name} takes three digits from 1 to 9, such as '713', not {code!r}")
        return cls(**{f"blocks{k}": int(digit) for k, digit in enumerate(code, 1)}, **hyper)

    def network(self, input_shape: InputShape, classes: int, branches: frozenset[str]) -> nn.Module:
        from kdsearch.search_space.students.networks.resnet import ResNet as Network

        first, second, third = (max(1, round(channels * self.width)) for channels in (16, 32, 64))
        stem = max(min(16, first), first // 2)
        blocks = (self.blocks1, self.blocks2, self.blocks3)
        return Network(input_shape[0], classes, blocks, stem, (first, second, third))

    def thinned(self, keep: float) -> Self | None:
        return self.changed(width=self.width * keep)

    def widened(self, factor: float) -> Self | None:
        return self.changed(width=self.width * factor)
