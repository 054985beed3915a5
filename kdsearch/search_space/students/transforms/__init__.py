"""Transforms make another network of any student, before or while it is trained. Importing this needs no torch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from kdsearch.parameters import Declared
from kdsearch.registry import Registry, discover

if TYPE_CHECKING:
    from torch import Tensor, nn

ENTRY_POINTS = "kdsearch.student_transforms"


class StudentTransform(Declared):
    """One way to change a student. A subclass is one file of this folder.

    Class attributes:
        name: the key it registers under.
        title, paper, year: what it is and where it comes from.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int]

    def apply(self, model: nn.Module) -> nn.Module:
        """The transformed network; `model` itself is changed.

        Raises:
            ValueError: the transform finds nothing to change, so that the recipe would not be what it says.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no change")

    @property
    def revision(self) -> float | None:
        """Share of the training after which `revise` is called, once and between epochs; None for never.

        A subclass may declare it as a hyper-parameter.
        """
        return None

    def revise(self, model: nn.Module, images: Tensor) -> None:
        """Change the network in the middle of its training. What changes is in its buffers and the values of its
        parameters: optimisers keep theirs, and a state dict tells all.

        Args:
            model: of `apply`; what it was trained as (training mode) stays so.
            images: [B, channels, H, W], some hundreds of the training images, normalised as the network sees them.
        """


TRANSFORMS: Registry[StudentTransform] = Registry("student transform", partial(discover, ENTRY_POINTS, __name__))
register = TRANSFORMS.register
