"""DisWOT's two similarities of student and teacher, used as a loss in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import RelationMethod
from kdsearch.kd_methods.relations.sp import sp
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.parameters import Float

if TYPE_CHECKING:
    from torch import Tensor


def classifier_gradient(logits: Tensor, embedding: Tensor, target: Tensor) -> Tensor:
    """d cross-entropy / d classifier weight, [C, D], in closed form: (softmax - label)ᵀ · embedding / B.

    Itself differentiable, so that no second backward pass is needed.

    Args:
        logits: [B, C]; embedding: [B, D]; target: [B] labels, or [B, C] mixed labels.
    """
    import torch.nn.functional as F

    from kdsearch.kd_methods.numerics import widen

    p = widen(logits).softmax(1)
    label = target.to(p.dtype) if target.ndim == 2 else F.one_hot(target, p.shape[1]).to(p.dtype)
    return (p - label).T @ widen(embedding) / len(p)


def diswot_distiller(
    student_features: Sequence[Tensor] | Tensor,
    teacher_features: Sequence[Tensor] | Tensor,
    student_gradient: Tensor,
    teacher_gradient: Tensor,
    *,
    relation: float = 1.0,
    semantic: float = 1.0,
) -> Tensor:
    """relation · squared distance of batch similarities + semantic · that of the classifiers' gradient correlations.

    The relation part is `sp` of the last maps. The semantic part compares, class by class, the D×D outer product of
    the gradient row with itself, its rows normalised: the sum of squared differences over C · D. Row i of g gᵀ,
    normalised, is sign(g_i) g / |g|, so the products are never built, and the gradient flows through the cosine alone.

    Args:
        student_features, teacher_features: [B, ...] before pooling, or a list of them; all but B may differ.
        student_gradient, teacher_gradient: [C, D] of `classifier_gradient`; where widths differ, the wider one's
            channels are averaged down to the narrower width (ours: the authors' pairs have equal ones).
        relation, semantic: weights; the score adds the parts as they are, where the semantic one is 100 times larger.

    Raises:
        ValueError: the gradients are of different numbers of classes.

    Source: Dong, Li, Wei, DisWOT: Student Architecture Search for Distillation WithOut Training, CVPR 2023, section 3;
    the score there is minus this loss.
    """
    loss = relation * sp(student_features, teacher_features)
    return loss + semantic * _semantic(student_gradient, teacher_gradient) if semantic else loss


def _semantic(student: Tensor, teacher: Tensor) -> Tensor:
    import torch.nn.functional as F

    from kdsearch.kd_methods.numerics import rescale, unit

    if len(student) != len(teacher):
        raise ValueError(f"diswot_distiller compares classes; the student has {len(student)}, not {len(teacher)}")
    width = min(student.shape[1], teacher.shape[1])
    # Signs and directions do not depend on the scale, and a confident network's gradient is tiny.
    s, t = (rescale(x if x.shape[1] == width else F.adaptive_avg_pool1d(x, width)) for x in (student, teacher))
    return outer_distance(s.detach().sign(), t.detach().sign(), (unit(s) * unit(t)).sum(1))


def outer_distance(student_signs: Tensor, teacher_signs: Tensor, cosine: Tensor) -> Tensor:
    """Mean squared difference of two row-normalised outer products g gᵀ, averaged over the gradients' rows g.

    Args:
        student_signs, teacher_signs: [C, D], sign(g) times the length of that row of the normalised product: 1 or 0.
        cosine: [C], of the student's g with the teacher's.
    """
    apart = student_signs.square().sum(1) + teacher_signs.square().sum(1)
    return (apart - 2 * (student_signs * teacher_signs).sum(1) * cosine).mean() / student_signs.shape[1]


@register
class DisWOTDistiller(RelationMethod):
    """Relation similarity of the last stage and semantic similarity of the classifier's gradient, both to be raised.

    Both parts count alike, as in the score of the architecture search; the authors publish no weight for training with
    it. The semantic part knows directions alone, so its pull does not fade as the student learns: at weight 1 it
    outlives the cross-entropy and undoes it, and 0.1 is our choice. The relation part is about 1e-4 there: its own
    weight in the CIFAR-100 literature, as `sp`, is 3000. The gradient comes from logits and embedding in closed form,
    that of the teacher likewise, at its trained weights.
    """

    name = "diswot_distiller"
    title = "DisWOT: Student Architecture Search for Distillation WithOut Training"
    paper = "arXiv 2303.15678"
    year = 2023
    reads_labels = True
    needs = Needs.of(Need.LOGITS, Need.EMBEDDING, Need.FEATURES)
    pairing = "last"
    same_classes = True
    functional = staticmethod(diswot_distiller)

    weight: float = Float(0.1, low=0.01, high=3, log=True)
    relation: float = Float(1.0, low=1, high=3000, log=True)
    semantic: float = Float(1.0, low=0.1, high=10, log=True)

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> None:
        """Builds nothing.

        Raises:
            ValueError: a side has no linear classifier, whose gradient is compared.
        """
        for side, spec in (("student", student), ("teacher", teacher)):
            if spec.embedding is None:
                raise ValueError(f"diswot_distiller needs a {side} with a linear classifier; this one has none")

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        assert student.embedding is not None
        assert teacher.embedding is not None
        target = batch.target if batch.soft_target is None else batch.soft_target
        return diswot_distiller(
            student.features,
            teacher.features,
            classifier_gradient(student.logits, student.embedding, target),
            classifier_gradient(teacher.logits, teacher.embedding, target),
            relation=self.relation,
            semantic=self.semantic,
        )
