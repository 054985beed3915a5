"""What KD-Zero's distillers share, whatever they compare: three transforms, a distance, a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.kd_methods.decomposed.names import DISTANCES, ON_VECTORS
from kdsearch.kd_methods.method import LossMethod
from kdsearch.parameters import Choice, Float

if TYPE_CHECKING:
    from functools import partial

    from torch import Tensor

    from kdsearch.kd_methods.decomposed.shapes import Shape


class Chain(LossMethod):
    """Declares a candidate of KD-Zero's space on vectors; what reads maps offers more transforms."""

    paper = "NeurIPS 2023"
    year = 2023
    searched = False

    weight: float = Float(1.0, low=0.1, high=1000, log=True)
    first: str = Choice("identity", ON_VECTORS, doc="transform of both sides")
    second: str = Choice("identity", ON_VECTORS, doc="of what the first gives")
    third: str = Choice("identity", ON_VECTORS, doc="of what the second gives")
    distance: str = Choice("l2", DISTANCES, doc="between what the third gives")

    @property
    def steps(self) -> dict[str, str]:
        """The chain as the functional form of the loss takes it."""
        return {"first": self.first, "second": self.second, "third": self.third, "distance": self.distance}

    def rule(self) -> tuple[partial[Shape], partial[Tensor]]:
        """The chain as `joining` takes it."""
        from kdsearch.kd_methods.decomposed.candidate import rule

        return rule((self.first, self.second, self.third), self.distance)
