"""Several fixed teachers: side by side, as one averaged answer, or weighted before any training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.signals import Batch, Need, Needs, Signals
from kdsearch.kd_methods.strategy import EVERY, Lesson, Plan, TeachingStrategy
from kdsearch.parameters import Choice, Flag, Float


def shares(distances: Sequence[float], sharpness: float = 1.0) -> list[float]:
    """softmax(-sharpness · d / mean d): the nearer, the larger. Equal distances, zeros among them, give equal shares.

    Only ratios of distances count, so that their unit and the size of the batch do not.
    """
    mean = fmean(distances)
    steps = [-sharpness * d / mean if mean > 0 else 0.0 for d in distances]
    powers = [math.exp(step - max(steps)) for step in steps]
    return [power / sum(powers) for power in powers]


@register
class Ensemble(TeachingStrategy):
    """All of the run's fixed teachers teach at once.

    "mean": every teacher its own lesson, with equal shares. "average": the same, but every lesson has the logits of
    the teachers' mean probabilities, so that logit terms learn from one ensemble while terms on stages keep each
    teacher's own. "distance": teacher j has the share w_{j,l} = softmax over j of -s · d_{j,l} / mean_j d_{j,l} at the
    student's layer pair l, where s is the `sharpness` and d_{j,l} the squared Frobenius distance of the row-normalised
    similarity matrices of one batch, the untrained student's and the teacher's. Reason: before training, that distance
    says how far the student's way to relate samples is from a teacher's, and a near one is the easier to learn from
    (DisWOT ranks students by it; Auto-KD's extension to several teachers asks for training-free factors). The rule
    itself is ours. `per_layer` off, and teachers with unequally many layer pairs, take the distance averaged over
    layers.
    """

    name = "ensemble"
    title = "Several teachers, with training-free weights"
    paper = "arXiv 2303.15678"
    year = 2023

    weighting: str = Choice("mean", ["mean", "average", "distance"], doc="how the teachers share the lessons")
    sharpness: float = Float(1.0, low=0.3, high=10, log=True, doc="of the shares by distance; 0 for equal ones")
    per_layer: bool = Flag(True, searched=[False, True], doc="shares by distance layer by layer")

    def __init__(self, **hyper: Any) -> None:
        super().__init__(**hyper)
        if self.weighting == "average":
            # Whatever the terms read, the teachers' answers are averaged.
            self.needs = Needs(teacher=frozenset({Need.LOGITS}))  # type: ignore[misc]

    def plan(self) -> Plan:
        return Plan(teachers=(EVERY,))

    def lessons(self, student: Signals, teachers: dict[str, list[Signals]], batch: Batch) -> list[Lesson]:
        supplied = [(name, signals) for name, given in teachers.items() for signals in given]
        if self.weighting == "average":
            from kdsearch.kd_methods.teaching._ensemble import mean_probabilities

            logits = mean_probabilities([signals.logits for _, signals in supplied])
            supplied = [(name, replace(signals, logits=logits)) for name, signals in supplied]
        # Under "distance" the run multiplies each layer's loss by `weigh`'s shares, which sum to 1 over the teachers
        # (and a loss without layers by their mean over layers): here each lesson counts whole.
        weight = 1.0 if self.weighting == "distance" else 1.0 / len(supplied)
        return [Lesson(student, signals, weight, name) for name, signals in supplied]

    def weigh(self, distances: Mapping[str, Sequence[float]]) -> dict[str, list[float]] | None:
        """Shares of the teachers, one for each paired layer; None unless weighted by distance.

        Raises:
            ValueError: a teacher has no distance at all.
        """
        if self.weighting != "distance":
            return None
        for name, found in distances.items():
            if not found:
                raise ValueError(f"ensemble weighs teachers by their distances, and {name} has none")
        counts = [len(found) for found in distances.values()]
        if self.per_layer and len(set(counts)) == 1:
            columns = [shares(layer, self.sharpness) for layer in zip(*distances.values(), strict=True)]
            return {name: [column[j] for column in columns] for j, name in enumerate(distances)}
        whole = shares([fmean(found) for found in distances.values()], self.sharpness)
        return {name: [share] * count for name, share, count in zip(distances, whole, counts, strict=True)}
