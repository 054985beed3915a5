"""Born-again networks: generations of one architecture, each taught by the one before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.kd_methods.softening import reduce
from kdsearch.kd_methods.strategy import TEACHER, Plan, Pretrain, TeachingStrategy
from kdsearch.parameters import Choice, Flag, Float, Int

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


def born_again(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    objective: str = "ban",
    temperature: float = 1.0,
    kept: str = "argmax",
    generator: Generator | None = None,
    reduction: str = "mean",
) -> Tensor:
    """One of the three objectives by which a generation learns from the one before.

    "ban": T² · cross-entropy of the teacher's softmax and the student's; T is 1 in the paper. "dkpp": the same, all of
    the teacher's probabilities but one permuted within their row, by a permutation of each sample's own. "cwtm":
    cross-entropy of the labels, weighted by the teacher's largest probability over the batch's mean of these.

    Args:
        student_logits, teacher_logits: [B, C].
        target: [B] labels, or [B, C] mixed labels. Only "cwtm" and `kept="label"` read it.
        temperature: of "ban" and "dkpp".
        kept: what "dkpp" leaves in its place: the teacher's "argmax", or the "label", as third-party code has it.
        generator: of the permutations, on the logits' device.
        reduction: "mean", or "none" for [B].

    Source: Furlanello et al., Born-Again Neural Networks, ICML 2018, section 3.

    Raises:
        ValueError: an unknown objective or an unknown element to keep.
    """
    import torch.nn.functional as F

    from kdsearch.kd_methods.numerics import widen

    if objective not in ("ban", "cwtm", "dkpp"):
        raise ValueError(f"objective must be 'ban', 'cwtm' or 'dkpp', not {objective!r}")
    if kept not in ("argmax", "label"):
        raise ValueError(f"kept must be 'argmax' or 'label', not {kept!r}")
    student, teacher = widen(student_logits), widen(teacher_logits)
    if objective == "cwtm":
        confidence = teacher.softmax(1).amax(1)
        return reduce(confidence / confidence.mean() * F.cross_entropy(student, target, reduction="none"), reduction)
    soft = (teacher / temperature).softmax(1)
    if objective == "dkpp":
        label = target if target.ndim == 1 else target.argmax(1)
        soft = _permuted(soft, teacher.argmax(1) if kept == "argmax" else label, generator)
    rows = -(soft * (student / temperature).log_softmax(1)).sum(1)
    return reduce(temperature**2 * rows, reduction)


def _permuted(rows: Tensor, kept: Tensor, generator: Generator | None) -> Tensor:
    """Every row [B, C] in an order of its own, but for one column of each, `kept` [B]."""
    import torch

    # Both orders begin with the kept column: it goes from its place to its place.
    first = kept.unsqueeze(1)
    keys = torch.rand(rows.shape, generator=generator, device=rows.device)
    drawn = keys.scatter(1, first, -1.0).argsort(1)
    places = torch.arange(rows.shape[1], device=rows.device).expand_as(drawn).scatter(1, first, -1).argsort(1)
    return torch.zeros_like(rows).scatter(1, places, rows.gather(1, drawn))


@register
class BornAgain(TeachingStrategy):
    """Students of one architecture, trained one after the other: the run's teacher teaches the first, each the next.

    Earlier generations learn by the whole recipe, as the last one does, from other initial weights and in another
    order of samples. The published objectives ("ban" and "dkpp" from the teacher alone, "cwtm" from weighted labels)
    have no cross-entropy beside them, so that `ce` is 0 unless the recipe states it; 1 beside "ban" is the paper's
    BAN+L. A logit term of the recipe stands in for them. With one generation the teacher's only student is the result.

    `ensemble`: all generations' probabilities are averaged (the teacher's are not), and the network to evaluate and
    hand out is as many times as large. In the paper the teacher has the student's architecture too; here it is
    whatever the run has. The authors published no code. Third-party code of "dkpp" keeps the label's probability in its
    place where the paper keeps the largest, and draws one permutation for all samples: each sample's own is ours where
    the paper leaves it open.
    """

    name = "born_again"
    title = "Born-Again Neural Networks"
    paper = "arXiv 1805.04770"
    year = 2018
    needs = Needs.of(Need.LOGITS)
    same_classes = True
    ce_weight = 0.0
    own_objective = True
    shaping = ("generations", "ensemble")
    functional = staticmethod(born_again)

    weight: float = Float(1.0, low=0.3, high=3, log=True, doc="of the published objective")
    objective: str = Choice("ban", ["ban", "cwtm", "dkpp"])
    temperature: float = Float(1.0, low=1, high=4, log=True, domain=(1e-3, math.inf), doc="of 'ban' and 'dkpp'")
    kept: str = Choice("argmax", ["argmax", "label"], searched=["argmax"], doc="what 'dkpp' leaves in its place")
    generations: int = Int(2, low=2, high=3, domain=(1, 10), doc="students trained, the last one included")
    ensemble: bool = Flag(False, doc="all generations together are the result")

    def plan(self) -> Plan:
        earlier: list[Pretrain] = []
        above = TEACHER
        for k in range(1, self.generations):
            earlier.append(Pretrain(f"generation{k}", 0.0, (above,), by="recipe", generation=k))
            above = earlier[-1].name
        members = tuple(model.name for model in earlier) if self.ensemble else ()
        return Plan(teachers=(above,), pretrain=tuple(earlier), members=members)

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> None:
        """Raises ValueError where labels are to be kept in their place and some samples have none."""
        if data.partly and self.objective == "dkpp" and self.kept == "label":
            raise ValueError("born_again.kept=label needs the label of every sample, and some have none")

    def combine(self, members: Sequence[nn.Module], student: nn.Module) -> nn.Module:
        from kdsearch.kd_methods.teaching._ensemble import Ensemble

        return Ensemble(members, student)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        mixed = batch.soft_target if self.objective == "cwtm" else None
        return born_again(
            student.logits,
            teacher.logits,
            batch.target if mixed is None else mixed,
            objective=self.objective,
            temperature=self.temperature,
            kept=self.kept,
            generator=batch.generator,
        )
