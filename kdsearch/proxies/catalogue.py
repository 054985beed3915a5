"""The table of training-free proxies. Needs no torch to be read."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from kdsearch.parameters import Choice, Declared
from kdsearch.registry import Registry, discover

if TYPE_CHECKING:
    from torch import Tensor, nn

ENTRY_POINTS = "kdsearch.proxies"


class Proxy(Declared):
    """A score of an untrained student, beside its teacher where the score is of the pair. Higher is better, always.

    Class attributes:
        name, title, paper, year: the key it registers under, what it is and where it comes from.
        needs_teacher: whether it looks at the teacher at all.
    """

    title: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int]
    needs_teacher: ClassVar[bool] = False

    def score(
        self, student: nn.Module, teacher: nn.Module | None, images: Tensor, target: Tensor, *, seed: int
    ) -> float:
        """The score on one batch, images [B, C, H, W] (normalised) and target [B]. The batch is part of the definition.

        Copies are scored, initialised anew under `seed`; nothing that is handed in changes. What is not finite
        scores -inf.

        Raises:
            ValueError: a pair score without a teacher.
        """
        if self.needs_teacher and teacher is None:
            raise ValueError(f"proxy {self.name!r} scores a pair and was given no teacher")
        value = self.measure(student, teacher, images, target, seed=seed)
        return value if math.isfinite(value) else -math.inf

    def measure(
        self, student: nn.Module, teacher: nn.Module | None, images: Tensor, target: Tensor, *, seed: int
    ) -> float:
        """What a proxy implements."""
        raise TypeError(f"proxy {self.name!r} measures nothing")


class StudentProxy(Proxy):
    """A score of the student alone: a copy of it on the CPU in float32, initialised anew, batch statistics in force."""

    init: str = Choice("default", ["default", "gaussian"], doc="the copy's weights: the layers' own, or N(0, 1)")

    def measure(
        self, student: nn.Module, teacher: nn.Module | None, images: Tensor, target: Tensor, *, seed: int
    ) -> float:
        import torch

        from kdsearch.proxies._fresh import fresh

        model = fresh(student, seed, gaussian=self.init == "gaussian")
        with torch.enable_grad():
            value = self.of(model, images.detach().cpu().float(), target.detach().cpu(), seed)
        return float(value)

    def of(self, model: nn.Module, images: Tensor, target: Tensor, seed: int) -> Tensor | float:
        """What a proxy of the student implements. The model is its to change."""
        raise TypeError(f"proxy {self.name!r} measures nothing")


PROXIES: Registry[Proxy] = Registry("proxy", partial(discover, ENTRY_POINTS, "kdsearch.proxies"))
register = PROXIES.register


def names() -> list[str]:
    """All registered names."""
    return PROXIES.names()


def create(name: str, /, **options: Any) -> Proxy:
    """A proxy by name.

    Raises:
        ValueError: unknown name or option, or a value outside its domain; the message gives the nearest valid ones.
    """
    return PROXIES[name](**options)
