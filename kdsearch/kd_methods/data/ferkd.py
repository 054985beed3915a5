"""FerKD: stored crops sorted by the teacher's confidence; some dropped, some relabelled, some mixed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.curriculum import Course, Crops, Curriculum
from kdsearch.kd_methods.data.fkd import FKD, Regions
from kdsearch.kd_methods.soft_labels import SoftLabels
from kdsearch.parameters import Choice, Float

if TYPE_CHECKING:
    from torch import Tensor

MOST_DROPPED = 0.5


def sort_crops(confidence: Tensor, low: float, middle: float, top: float) -> tuple[Tensor, Tensor]:
    """Which crops are shown and which of these are hard, from the teacher's confidence [V, M]: two flags [V, M].

    Below `low` and above `top` a crop is dropped; from `low` to below `middle` it is hard. An image that would lose all
    its crops keeps the one that is nearest to the two thresholds.

    Source: Shen, FerKD: Surgical Label Adaptation for Efficient Distillation, ICCV 2023.
    """
    shown = (confidence >= low) & (confidence <= top)
    excess = (low - confidence).clamp_min(0) + (confidence - top).clamp_min(0)
    nearest = excess.argmin(0, keepdim=True)
    spared = (~shown).all(0, keepdim=True).expand_as(nearest)
    shown = shown.scatter(0, nearest, shown.gather(0, nearest) | spared)
    return shown, shown & (confidence < middle)


class SortedRegions(Regions):
    """FKD's regions without the dropped ones: a shown crop of the same image stands in for each."""

    graded = True

    def __init__(self, course: Course, method: FerKD) -> None:
        super().__init__(course, method.crops)
        self.method = method
        self.hard: Tensor | None = None
        self.dropped = self.relabelled = 0.0

    def grade(self, confidence: Tensor) -> None:
        import torch

        method, course = self.method, self.course
        thresholds = (method.low, method.middle, method.top)
        if method.thresholds == "quantile":
            # A quantile of many values by sorting: torch.quantile takes 16 million at most.
            ordered = confidence.flatten().float().sort().values
            thresholds = tuple(float(ordered[round(q * (len(ordered) - 1))]) for q in thresholds)  # type: ignore[assignment]
        low, middle, top = thresholds
        outside = float(((confidence < low) | (confidence > top)).float().mean())
        if outside > MOST_DROPPED:
            raise ValueError(
                f"low {low:.3g} and top {top:.3g} drop {outside:.0%} of the stored crops; "
                f"at most {MOST_DROPPED:.0%} may be dropped"
            )
        shown, hard = sort_crops(confidence, low, middle, top)
        self.dropped, self.relabelled = outside, float(hard.float().mean())
        self.crops = Crops.of(shown, course.ids, course.samples, method.selfmix)
        self.hard = torch.zeros(course.views, course.samples, dtype=torch.bool, device=confidence.device)
        self.hard[:, course.ids] = hard

    def views_at(self, ids: Tensor, turn: int | Tensor) -> int | Tensor:
        if self.crops is None:
            return super().views_at(ids, turn)
        return self.crops.order[turn % self.crops.count[ids], ids].long()

    def relabel(self, ids: Tensor, view: int | Tensor, log_labels: Tensor, target: Tensor) -> Tensor:
        """The true label, smoothed, for hard crops; the teacher's for the others."""
        import torch

        if self.hard is None:
            return log_labels
        smoothing, classes = self.method.smoothing, log_labels.shape[1]
        true = torch.full_like(log_labels, math.log(max(smoothing / max(classes - 1, 1), 1e-8)))
        true.scatter_(1, target[:, None], math.log(1 - smoothing))
        return torch.where(self.hard[view % len(self.hard), ids][:, None], true, log_labels)

    def notes(self) -> list[str]:
        return [
            f"ferkd: {self.dropped:.1%} of the stored crops dropped, {self.relabelled:.1%} with the smoothed true label"
        ]


@register
class FerKD(FKD):
    """FKD's stored crops, the too easy and the hopeless ones dropped, the hard ones given the true label, SelfMix.

    The confidence is the teacher's largest probability of the crop. All stored crops are labelled before the first
    step, which costs `stored` passes over the images (or the run's number of views); the kept crops of an image are
    then shown in turn, so that an epoch is as long as before. A setting that drops more than half of the crops is
    refused.
    SelfMix pastes a box of another kept crop of the same image, of an area drawn evenly, and mixes the labels by area;
    the partner belongs to the view and not to the batch. Signals other than labels come from a live teacher.

    The authors' repository has no thresholds, no smoothing and no mixing probability: those here are choices. By
    default the thresholds are quantiles over all stored crops, which carry over from teacher to teacher; "absolute"
    reads them as confidences (0.15, 0.3 and 0.95, say). low = middle = 0, top = 1 and selfmix = 0 give fkd.
    """

    name = "ferkd"
    title = "FerKD: Surgical Label Adaptation for Efficient Distillation"
    paper = "arXiv 2312.17473"
    year = 2023
    reads_labels = True
    functional = None  # type: ignore[assignment]

    thresholds: str = Choice("quantile", ["quantile", "absolute"], searched=["quantile"])
    low: float = Float(0.05, low=0.0, high=0.15, domain=(0, 1), doc="crops below are dropped")
    middle: float = Float(0.2, low=0.15, high=0.5, domain=(0, 1), doc="crops below get the true label")
    top: float = Float(0.95, low=0.8, high=1.0, domain=(0, 1), doc="crops above are dropped")
    smoothing: float = Float(0.1, low=0.0, high=0.3, domain=(0, 0.99), doc="of the true label of hard crops")
    selfmix: float = Float(0.5, low=0.0, high=1.0, domain=(0, 1), doc="probability of a box of another crop")

    def __init__(self, **hyper: Any) -> None:
        super().__init__(**hyper)
        if not self.low <= self.middle <= self.top:
            raise ValueError(
                f"ferkd's thresholds must rise: low {self.low:g}, middle {self.middle:g}, top {self.top:g} do not"
            )

    def soft_labels(self) -> SoftLabels | None:
        return SoftLabels(self.labels, self.k, graded=True)

    def curriculum(self, course: Course) -> Curriculum:
        return SortedRegions(course, self)
