"""SMKD: class tokens and matched patches of a masked image learn from other images of its class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import TokenMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals, View
from kdsearch.kd_methods.strategy import AVERAGE, PEERS, SELF
from kdsearch.parameters import Choice, Float, Int

if TYPE_CHECKING:
    from torch import Tensor, nn

VIEW = "smkd"
LEARNING = (AVERAGE, PEERS, SELF)
MATCHINGS = ("cosine", "code")
MASK_SPREAD, MASKED_SHARE = 0.2, 0.5  # as iBOT draws them: half of the images, 0.3 ± 0.2 of each
COLDEST, WARM_UP = 0.04, 0.2  # the teacher's temperature begins there, and rises over 30 of 150 epochs


def smkd(
    student_class: Sequence[Tensor],
    teacher_class: Sequence[Tensor],
    student_patches: Sequence[Tensor],
    teacher_patches: Sequence[Tensor],
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    target: Tensor,
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.07,
    center: Tensor | float = 0.0,
    patch_center: Tensor | float = 0.0,
    patch_weight: float = 1.0,
    matching: str = "cosine",
) -> Tensor:
    """Cross-entropy with the teacher's distribution over prototypes, across the images of a class.

    Every argument but `target` is a list by view of the batch, both sides' in one order; the terms are

    - of class tokens, the mean over all views and all pairs of different images of one class;
    - of patches, the mean over the teacher's patches of their cross-entropy with the nearest patch of each other image
      of the class, in another view wherever there are two.

    Args:
        student_class, teacher_class: [B, K], logits of the class token. Student views beyond the teacher's are small
            crops, which learn from their own image alone.
        student_patches, teacher_patches: [B, M, P] and [B, N, P], logits of the patches.
        student_features, teacher_features: [B, M, D] and [B, N, D], what the networks put out, for the nearest patch.
        target: [B] labels. Where no two agree, the loss is 0.
        center, patch_center: of the teacher's logits, [K] and [P]; subtracted.
        matching: "cosine" of the features, or "code", what the authors' program does in its place: the product of both
            sides' sums over channels, compared with the first image of the class, under the teacher's probabilities of
            the student's image and view.

    Source: Lin et al., Supervised Masked Knowledge Distillation for Few-Shot Transformers, CVPR 2023, sections 3.2 and
    3.3.

    Raises:
        ValueError: an unknown matching.
    """
    import torch

    from kdsearch.kd_methods.numerics import widen
    from kdsearch.kd_methods.tokens._smkd import class_term, patch_term, same_class

    if matching not in MATCHINGS:
        raise ValueError(f"smkd: matching must be 'cosine' or 'code', not {matching!r}")

    def learnt(logits: Tensor) -> Tensor:
        return (widen(logits) / student_temperature).log_softmax(-1)

    def taught(logits: Tensor, center: Tensor | float) -> Tensor:
        return ((widen(logits) - center) / teacher_temperature).softmax(-1).detach()

    same = same_class(target)
    loss = class_term([learnt(x) for x in student_class], [taught(x, center) for x in teacher_class], same)
    s, t = [learnt(x) for x in student_patches], [taught(x, patch_center) for x in teacher_patches]
    views = [(j, k) for j in range(len(s)) for k in range(len(t)) if j != k or len(s) == len(t) == 1]
    terms = [
        patch_term(
            s[j], t[j if matching == "code" else k], student_features[j], teacher_features[k], same, matching=matching
        )
        for j, k in views
    ]
    total, count = (torch.stack(x).sum() for x in zip(*terms, strict=True))
    return loss + patch_weight * total / count.clamp_min(1)


@register
class SMKD(TokenMethod):
    """Masked student, whole teacher, labels for which image may teach which.

    The published teacher is the student's moving average, which is teaching=mean_teacher here; its head is the moving
    average of the student's. Where the run's fixed teacher teaches, which has no such head, its classifier's weights
    are the prototypes, for patches as for class tokens (patches of another width than the classifier reads get a random
    head); `prototypes`, `hidden` and `momentum` are of the heads. Class token is what the classifier reads, patches are
    the last stage's positions, so that any two networks will do.

    Of the published views, two large crops and ten small ones, one large one is left: masked for the student by a
    rectangle, whole for the teacher. The authors run it from a self-supervised student and read the result by nearest
    prototypes; here it stands beside the cross-entropy. The batch has to hold images of one class.
    """

    name = "smkd"
    title = "Supervised Masked Knowledge Distillation for Few-Shot Transformers"
    paper = "arXiv 2303.15466"
    year = 2023
    reads_labels = True
    needs = Needs.of(Need.FEATURES, Need.EMBEDDING, teacher=(Need.CLASSIFIER,))
    pairing = "last"
    functional = staticmethod(smkd)

    weight: float = Float(1.0, low=0.05, high=5, log=True)
    patch_weight: float = Float(1.0, low=0.1, high=5, log=True, doc="of the patches, beside the class token's 1")
    student_temperature: float = Float(0.1, low=0.05, high=0.5, log=True, domain=(1e-3, 100))
    teacher_temperature: float = Float(0.07, low=0.04, high=0.2, log=True, domain=(1e-3, 100), doc="after its warm-up")
    center_momentum: float = Float(0.9, low=0.8, high=0.99, domain=(0, 1))
    momentum: float = Float(0.996, low=0.9, high=0.999, domain=(0, 1), doc="of the teacher's head, at the start")
    mask_ratio: float = Float(0.3, low=0.2, high=0.6, domain=(0, 1), doc="mean share hidden, of half of the images")
    prototypes: int = Int(8192, low=64, high=8192, log=True, domain=(2, 1 << 17))
    hidden: int = Int(2048, low=128, high=2048, log=True, domain=(1, 1 << 14), doc="width of the heads' layers")
    matching: str = Choice("cosine", MATCHINGS, searched=("cosine",), doc="of patches")

    _grid: tuple[int, int] = (1, 1)

    def views(self) -> tuple[View, ...]:
        from kdsearch.kd_methods.tokens._masking import masked_by_a_block

        hide = partial(
            masked_by_a_block, grid=self._grid, ratio=self.mask_ratio, spread=MASK_SPREAD, share=MASKED_SHARE
        )
        return (View(VIEW, 1, hide),)

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        """Heads, centres and what joins unequal widths.

        Raises:
            ValueError: a side has no embedding.
        """
        from kdsearch.kd_methods.tokens._smkd import Prototypes

        widths = []
        for side, spec in (("student", student), ("teacher", teacher)):
            if spec.embedding is None:
                raise ValueError(f"smkd reads class tokens, and the {side} has no embedding")
            widths.append((spec.embedding, spec.stages[0].channels))
        self._student, self._teacher = student.stages[0], teacher.stages[0]
        self._grid = student.stages[0].size
        classes = None if self.supplier in LEARNING else teacher.classes
        return Prototypes(widths[0], widths[1], self.hidden, self.prototypes, classes=classes)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        from kdsearch.kd_methods.adapters import to_tokens

        parts, masked = self.parts, student.views[VIEW]
        assert masked.embedding is not None
        assert teacher.embedding is not None
        assert teacher.classifier is not None
        if parts.training and not parts.fixed:
            parts.follow(self.momentum, batch.progress)
        weight = teacher.classifier[0].detach()
        patches = parts.joined(1, to_tokens(masked.features[0], self._student))
        seen = to_tokens(teacher.features[0], self._teacher)
        learnt = parts.of_student(0, parts.joined(0, masked.embedding), weight), parts.of_student(1, patches, weight)
        taught = parts.of_teacher(0, teacher.embedding, weight), parts.of_teacher(1, seen, weight)
        loss = smkd(
            learnt[:1],
            taught[:1],
            learnt[1:],
            taught[1:],
            [patches],
            [seen],
            batch.target,
            student_temperature=self.student_temperature,
            teacher_temperature=self._temperature(batch.progress),
            center=parts.class_center,
            patch_center=parts.patch_center,
            patch_weight=self.patch_weight,
            matching=self.matching,
        )
        if parts.training:
            parts.move_centers(*taught, self.center_momentum)
        return loss

    def _temperature(self, progress: float) -> float:
        first = min(COLDEST, self.teacher_temperature)
        return first + (self.teacher_temperature - first) * min(1.0, progress / WARM_UP)
