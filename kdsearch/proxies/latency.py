"""Measured latency, negative so that higher is better."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.parameters import Int
from kdsearch.proxies.catalogue import Proxy, register

if TYPE_CHECKING:
    from torch import Tensor, nn


@register
class Latency(Proxy):
    """Minus the milliseconds of an inference of `batch` images, measured where the student is.

    On a CPU it is the processor time of one thread, the smallest of five rounds' medians; it is a measurement, and
    varies by some per cent from one to the next. Of the images given only the shape counts.
    """

    name = "latency"
    title = "Measured latency, in negative milliseconds"
    paper = "-"
    year = 0

    batch: int = Int(1, low=1, high=256, log=True, domain=(1, 65536), doc="images of an inference")

    def measure(
        self, student: nn.Module, teacher: nn.Module | None, images: Tensor, target: Tensor, *, seed: int
    ) -> float:
        from kdsearch.proxies._fresh import copied
        from kdsearch.search_space.students.measure import latency

        return -latency(copied(student), (images.shape[1], images.shape[2], images.shape[3]), self.batch)
