"""Online role change: the best learner of the moment teaches the others, beside a teacher that learns their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.logits.kd import kd
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.kd_methods.strategy import PEERS, PIVOT, Lesson, Plan, TeachingStrategy, peer
from kdsearch.parameters import Float, Int

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


def orc(
    student_logits: Tensor,
    teacher_logits: Sequence[Tensor],
    target: Tensor,
    *,
    beta: float = 0.9,
    temperature: float = 4.0,
) -> Tensor:
    """(1 - β) CE + β Σ over teachers of T² KL(teacher ‖ student), [B, C] each; labels [B] or [B, C].

    With the pivot alone it is private teaching, with temporary teacher and pivot group teaching.

    Source: Choi, Cho, Cheung, Hwang, Online Role Change, ICCV 2023; each teacher's loss apart, as their ablation has it
    best.
    """
    import torch.nn.functional as F

    total = (1 - beta) * F.cross_entropy(student_logits, target)
    for logits in teacher_logits:
        total = total + beta * kd(student_logits, logits, temperature=temperature)
    return total


def roles(errors: Tensor) -> Tensor:
    """Who is whose temporary teacher, [n, n] of 0 and 1 from the learners' errors [n].

    Entry (i, j) is 1 where learner j has the least error and i is another: the best one's column but for its own row.
    """
    import torch

    places = torch.arange(len(errors), device=errors.device)
    best = places == errors.argmin()
    return (best & ~best[:, None]).to(errors.dtype)


def feedback(answers: Sequence[Tensor], target: Tensor) -> Tensor:
    """Samples [B] that more than half of the networks misclassify, of their logits [B, C] and labels [B]."""
    import torch

    wrong = torch.stack([logits.argmax(1) != target for logits in answers])
    return 2 * wrong.sum(0) > len(answers)


def mix_in(
    images: Tensor, labels: Tensor, chosen: Tensor, generator: Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """λ x + (1 - λ) x', and the labels alike; x' is drawn with replacement from the chosen samples, λ from Beta(1, 1).

    Args:
        images, labels: [B, ...] and [B, C].
        chosen: [B], true for samples to draw. Where there are none, λ is 1.

    Returns:
        Images, labels and λ.
    """
    import torch

    some = chosen.any()
    share = torch.rand((), generator=generator, device=images.device, dtype=images.dtype)
    share = torch.where(some, share, torch.ones_like(share))
    drawn = torch.multinomial((chosen | ~some).float(), len(chosen), replacement=True, generator=generator)
    return torch.lerp(images[drawn], images, share), torch.lerp(labels[drawn], labels, share.to(labels.dtype)), share


@register
class ORC(TeachingStrategy):
    """The learner that is ahead is promoted: it teaches the others for a step, and learns from the pivot alone.

    Learners are the student and `peers` networks of sizes between it and the teacher, evenly spaced. The pivot begins
    as the run's teacher and is trained on (intensive teaching): on the batch, mixed with samples that most learners get
    wrong. The best learner then has a lesson from the pivot (private teaching), every other one a lesson from the best
    and one from the pivot (group teaching). The target student is the result, whatever its last role.

    From the paper are the groups, the order of steps and the three objectives. Rebuilt: β, T and T², the Beta(1, 1) of
    the mixture, feedback samples by majority and drawn with replacement to the batch's size, the pivot's learning rate
    and its evaluation mode while it teaches, and the best by a moving average of the batches' cross-entropies, as a
    single batch's is noisy.
    """

    name = "orc"
    title = "Online Role Change"
    paper = "arXiv 2206.01186"
    year = 2023
    reads_labels = True
    needs = Needs.of(Need.LOGITS)
    same_classes = True
    own_objective = True
    functional = staticmethod(orc)

    beta: float = Float(0.9, low=0.5, high=0.99, domain=(0, 1), doc="share of the teachers beside labels")
    temperature: float = Float(4.0, low=1, high=10, log=True, domain=(1e-3, math.inf))
    peers: int = Int(2, low=1, high=3, domain=(1, 8), doc="further learners, larger than the student")
    pivot: float = Float(0.1, low=0.01, high=1.0, log=True, doc="learning rate of the pivot over the student's")
    decay: float = Float(0.9, low=0.0, high=0.99, domain=(0, 0.9999), doc="of the average that ranks the learners")

    def plan(self) -> Plan:
        sizes = tuple((k + 1) / (self.peers + 1) for k in range(self.peers))
        return Plan(teachers=(PEERS, PIVOT), peers=self.peers, peer_sizes=sizes, pivot=self.pivot)

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        from kdsearch.kd_methods.teaching._ranking import Ranking

        return Ranking(self.peers + 1, self.decay)

    def _temporary(self, student: Signals, teachers: dict[str, list[Signals]], batch: Batch) -> Tensor:
        """Row of `roles` for this learner. All learners' instances see the same answers and come to the same roles."""
        import torch
        import torch.nn.functional as F

        own, _ = self.place
        target = batch.target if batch.soft_target is None else batch.soft_target
        with torch.no_grad():
            answers = [student if k == own else teachers[peer(k)][0] for k in range(self.peers + 1)]
            errors = torch.stack([F.cross_entropy(answer.logits, target) for answer in answers])
            return roles(self.parts(errors))[own]

    def lessons(self, student: Signals, teachers: dict[str, list[Signals]], batch: Batch) -> list[Lesson]:
        temporary = self._temporary(student, teachers, batch)
        (pivot,) = teachers[PIVOT]
        # Who teaches is known on the device alone: every peer has its lesson, and all but one the weight 0.
        group = [
            Lesson(student, teachers[peer(k)][0], temporary[k], peer(k))
            for k in range(self.peers + 1)
            if k != self.place[0]
        ]
        return [Lesson(student, pivot, 1.0, PIVOT), *group]

    def label_weight(self) -> float:
        return 1 - self.beta

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return self.beta * kd(student.logits, teacher.logits, temperature=self.temperature)

    def intensive(self, images: Tensor, answers: Sequence[Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        labels = batch.soft_target
        if labels is None:  # scattered: one_hot looks at the labels, which makes the host wait
            none = images.new_zeros(len(images), answers[0].shape[1])
            labels = none.scatter_(1, batch.target[:, None], 1.0)
        mixed, soft, _ = mix_in(images, labels, feedback(answers, batch.target), batch.generator)
        return mixed, soft
