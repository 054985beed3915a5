"""Parameters and multiply-accumulates: the bar that any other proxy has to clear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.proxies.catalogue import Proxy, register

if TYPE_CHECKING:
    from torch import Tensor, nn


@register
class Parameters(Proxy):
    """The number of parameters."""

    name = "params"
    title = "Number of parameters"
    paper = "-"
    year = 0

    def measure(
        self, student: nn.Module, teacher: nn.Module | None, images: Tensor, target: Tensor, *, seed: int
    ) -> float:
        from kdsearch.search_space.students.measure import parameters

        return float(parameters(student))


@register
class MACs(Proxy):
    """Multiply-accumulates of convolutions and linear layers for one image."""

    name = "macs"
    title = "Multiply-accumulates"
    paper = "-"
    year = 0

    def measure(
        self, student: nn.Module, teacher: nn.Module | None, images: Tensor, target: Tensor, *, seed: int
    ) -> float:
        from kdsearch.proxies._fresh import copied
        from kdsearch.search_space.students.measure import macs

        return float(macs(copied(student), (images.shape[1], images.shape[2], images.shape[3])))
