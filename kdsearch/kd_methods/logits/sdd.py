"""Scale decoupled distillation: logits of regions at several scales, each taught by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.logits._last_map import last_map
from kdsearch.kd_methods.method import LogitMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.kd_methods.softening import reduce, temper
from kdsearch.kd_methods.warmup import ramp
from kdsearch.parameters import Choice, Flag, Float

if TYPE_CHECKING:
    from torch import Tensor

    Classifier = tuple[Tensor, Tensor | None]


def region_logits(feature_map: Tensor, classifier: Classifier, scales: Sequence[int] = (1, 2, 4)) -> Tensor:
    """The classifier on the mean of each region: [B, D, H, W] to [B, C, R], region 0 being the whole map.

    Scale m cuts the map into m × m regions, row by row; the coarser scales are pooled from the finest, as the authors
    do, which differs from pooling the map itself where the finest scale does not divide its size.
    """
    import torch
    import torch.nn.functional as F

    weight, bias = classifier
    finest = F.adaptive_avg_pool2d(feature_map, max(scales))
    pooled = torch.cat([F.adaptive_avg_pool2d(finest, scale).flatten(2) for scale in scales], 2)
    return F.linear(pooled.transpose(1, 2).to(weight.dtype), weight, bias).transpose(1, 2)


def sdd(
    student_regions: Tensor,
    teacher_regions: Tensor,
    target: Tensor,
    *,
    base: str = "dkd",
    consistent: float = 1.0,
    complementary: float = 2.0,
    temperature: float | Tensor | tuple[float | Tensor, float | Tensor] = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    gamma: float = 8.0,
    keep_target: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """A logit loss on every region, weighted by whether the teacher is as right there as on the whole image.

    Args:
        student_regions, teacher_regions: [B, C, R] with the whole image in region 0; `region_logits` makes them.
        target: [B] labels.
        base: the loss on a region's logits: "kd", "dkd" (with `alpha`, `beta`) or "nkd" (with `gamma`).
        consistent: weight where the teacher's prediction of region and image are both right or both wrong; region 0
            is always so.
        complementary: weight where one is right and the other wrong.
        temperature: float, or (student's, teacher's); a tensor is [B · R, 1], the regions of a sample together.
        keep_target: under "nkd", the authors' code: their mask removes nothing, so that the second part is the
            tempered cross-entropy over all classes, the target among them, where the equations leave it out.
        reduction: "mean", or "none" for [B].

    Raises:
        ValueError: an unknown `base`.

    Source: Wei, Luo, Luo, Scale Decoupled Distillation, CVPR 2024, section 3.
    """
    import torch

    batch_size, _, count = student_regions.shape
    s, t = (x.transpose(1, 2).flatten(0, 1) for x in (student_regions, teacher_regions))
    labels = target.repeat_interleave(count)
    rows = _base(s, t, labels, base, temperature, alpha, beta, gamma, keep_target).view(batch_size, count)
    right = teacher_regions.argmax(1) == target.unsqueeze(1)
    rows = torch.where(right == right[:, :1], consistent * rows, complementary * rows)
    return reduce(rows.mean(1), reduction)


def _base(
    s: Tensor,
    t: Tensor,
    target: Tensor,
    base: str,
    temperature: float | Tensor | tuple[float | Tensor, float | Tensor],
    alpha: float,
    beta: float,
    gamma: float,
    keep_target: bool,
) -> Tensor:
    """The loss of each row, [B · R]."""
    if base == "kd":
        from kdsearch.kd_methods.logits.kd import kd

        return kd(s, t, temperature=temperature, reduction="none")
    if base == "dkd":
        from kdsearch.kd_methods.logits.dkd import dkd

        return dkd(s, t, target, alpha=alpha, beta=beta, temperature=temperature, reduction="none")
    if base != "nkd":
        raise ValueError(f"base must be 'kd', 'dkd' or 'nkd', not {base!r}")
    from kdsearch.kd_methods.logits.nkd import nkd

    if not keep_target:
        return nkd(s, t, target, gamma=gamma, temperature=temperature, reduction="none")
    of_target = nkd(s, t, target, gamma=0.0, temperature=temperature, reduction="none")
    tempered_s, tempered_t, factor = temper(s, t, temperature)
    return of_target - gamma * factor * (tempered_t.softmax(1) * tempered_s.log_softmax(1)).sum(1)


@register
class SDD(LogitMethod):
    """SD-DKD by default, beside full cross-entropy; the authors run SD-KD with 0.1 of cross-entropy and weight 0.9.

    Regions come from the networks' last maps and their own classifiers. Scales are clipped to the smaller map, so that
    on a 1×1 map the base loss is left. DKD's beta is 6 or 2 for some of the authors' pairs; NKD takes its gamma from
    the same setting there. The recipe's temperature policy sees every region as a sample; logits that it
    transforms are transformed for both parts of NKD. SD-DKD and SD-NKD grow
    linearly over the first 20 of 240 epochs; SD-KD does not.
    """

    name = "sdd"
    title = "Scale Decoupled Distillation"
    paper = "arXiv 2403.13512"
    year = 2024
    reads_labels = True
    needs = Needs.of(Need.MAP, Need.CLASSIFIER)
    functional = staticmethod(sdd)

    weight: float = Float(1.0, low=0.1, high=10, log=True)
    base: str = Choice("dkd", ["kd", "dkd", "nkd"], doc="the loss on each region's logits")
    scales: str = Choice("1,2,4", ["1,2", "1,4", "1,2,4"], doc="regions a side")
    consistent: float = Float(1.0, low=0.5, high=2, log=True)
    complementary: float = Float(2.0, low=0.5, high=4, log=True)
    temperature: float = Float(4.0, low=1, high=20, log=True, domain=(1e-3, math.inf))
    alpha: float = Float(1.0, low=0.2, high=4, log=True, doc="DKD's")
    beta: float = Float(8.0, low=0.5, high=16, log=True, doc="DKD's")
    gamma: float = Float(8.0, low=0.5, high=16, log=True, doc="NKD's")
    keep_target: bool = Flag(False, doc="NKD as the authors' code has it")
    warmup: float = Float(20 / 240, low=0, high=0.25, domain=(0, 1), doc="share of the training")

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> None:
        """Builds nothing.

        Raises:
            ValueError: a side has no last map.
        """
        last_map("sdd", "student", student)
        last_map("sdd", "teacher", teacher)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        assert student.map is not None
        assert teacher.map is not None
        assert student.classifier is not None
        assert teacher.classifier is not None
        most = min(*student.map.shape[2:], *teacher.map.shape[2:])
        scales = sorted({min(int(scale), most) for scale in self.scales.split(",")})
        s = region_logits(student.map, student.classifier, scales)
        t = region_logits(teacher.map, teacher.classifier, scales)
        batch_size, _, count = s.shape
        soft_target = batch.soft_target
        regions = replace(
            batch,
            target=batch.target.repeat_interleave(count),
            ids=batch.ids.repeat_interleave(count),
            soft_target=None if soft_target is None else soft_target.repeat_interleave(count, 0),
        )
        flat = [Signals(x.transpose(1, 2).flatten(0, 1)) for x in (s, t)]
        soft = self.soften(flat[0], flat[1], regions)
        value = sdd(
            soft.student.unflatten(0, (batch_size, count)).transpose(1, 2),
            soft.teacher.unflatten(0, (batch_size, count)).transpose(1, 2),
            batch.target,
            base=self.base,
            consistent=self.consistent,
            complementary=self.complementary,
            temperature=soft.temperature,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            keep_target=self.keep_target,
        )
        return value if self.base == "kd" else ramp(batch.progress, self.warmup) * value
