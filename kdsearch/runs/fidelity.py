"""How much of a full training one rung of the ladder spends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Literal

Keep = float | tuple[float, ...]
Select = Literal["balanced", "entropy"]
Judge = Literal["metric", "likelihood"]


@dataclass(frozen=True)
class Fidelity:
    """A rung: shares of the full budget. The recipe's whole plan, stages and schedule included, is compressed into it.

    Attributes:
        name: how results refer to it.
        epochs: share of the full number of epochs.
        data: share of the training samples.
        keep: share of the student's channels that the random structured mask leaves: one for all stages, or several
            that are spread evenly over the stages in order.
        resolution: share of the image side the student sees.
        tokens: share of the patches a transformer sees in training; other students see as many pixels less.
        select: which samples: as many of each class ("balanced"), or of each degree of doubt of the teacher
            ("entropy").
        judge: what pruners and searchers are told of the rung: the run's metric, or the geometric mean of the true
            labels' probabilities, which tells short trainings apart long before their accuracies differ.
    """

    name: str = "full"
    epochs: float = 1.0
    data: float = 1.0
    keep: Keep = 1.0
    resolution: float = 1.0
    tokens: float = 1.0
    select: Select = "balanced"
    judge: Judge = "metric"

    def __post_init__(self) -> None:
        if isinstance(self.keep, list):  # as JSON gives it back
            object.__setattr__(self, "keep", tuple(self.keep))

    @property
    def full(self) -> bool:
        return self.epochs == self.data == self.resolution == self.tokens == 1.0 and not self.thins

    @property
    def thins(self) -> bool:
        """Whether any stage loses channels."""
        return min(self.keep) < 1 if isinstance(self.keep, tuple) else self.keep < 1

    @property
    def kept(self) -> float:
        """Share of the channels that is left, the mean of the stages'."""
        return fmean(self.keep) if isinstance(self.keep, tuple) else self.keep

    def judged(self, score: float, metrics: Mapping[str, float], *, maximise: bool) -> float:
        """What a training at this fidelity counts for: its score, or the likelihood on the side of the metric that is
        better. It is at home in [0, 1] as shares of right answers are.
        """
        if self.judge == "metric" or "nll" not in metrics:
            return score
        return math.exp(-metrics["nll"]) if maximise else metrics["nll"]

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


FULL = Fidelity()
