"""TinyMIM: the relations of queries to keys and of values to values, from a middle block to the student's last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import Stage, TokenMethod, alone_first
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.kd_methods.softening import reduce
from kdsearch.parameters import Flag, Float

if TYPE_CHECKING:
    from torch import Tensor, nn


def tinymim(student_qkv: Sequence[Tensor], teacher_qkv: Sequence[Tensor], *, reduction: str = "mean") -> Tensor:
    """KL(teacher ‖ student) of softmax(Q · Kᵀ / √d) and of softmax(V · Vᵀ / √d), added up; summed over the pairs.

    Args:
        student_qkv, teacher_qkv: [B, 3, heads, N, d] each: queries, keys and values. Heads and tokens are the same on
            both sides, their widths d need not be.
        reduction: "mean" over batch, heads and tokens, or "none" for [B].

    Source: Ren et al., TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models, CVPR 2023, section 3.1.2.

    Raises:
        ValueError: heads or tokens differ.
    """
    import torch

    losses = []
    for student, teacher in zip(student_qkv, teacher_qkv, strict=True):
        if student.shape[:4] != teacher.shape[:4]:
            raise ValueError(
                f"tinymim compares equal heads and tokens, not {tuple(student.shape[2:4])} and "
                f"{tuple(teacher.shape[2:4])}"
            )
        for a, b in ((0, 1), (2, 2)):
            s, t = _relation(student[:, a], student[:, b]), _relation(teacher[:, a], teacher[:, b])
            losses.append((t.exp() * (t - s)).sum(-1).mean((1, 2)))
    return reduce(torch.stack(losses).sum(0), reduction)


def _relation(a: Tensor, b: Tensor) -> Tensor:
    """Logarithm of how each token's `a` [B, heads, N, d] divides its attention among all tokens' `b`."""
    from kdsearch.kd_methods.numerics import widen

    a, b = widen(a), widen(b)
    return (a * a.shape[-1] ** -0.5 @ b.transpose(-2, -1)).log_softmax(-1)


@register
class TinyMIM(TokenMethod):
    """Relations of tokens under unmasked images, for transformers that teach transformers.

    The student's last block learns from the teacher's at `teacher_depth` of its depth: block 18 of 24 as published for
    the large teacher, and the last for the base one. The authors give the student's last block the teacher's number of
    heads; here its queries, keys and values, all heads side by side, are cut into that many parts, by way of a linear
    layer where their width is no multiple of it. Grids of other sizes are averaged to the smaller one, and of prefix
    tokens those count that both sides have.

    The published procedure is `staged`: relations alone, then labels. The joint form is one more term of a training on
    labels. Drop path and colour jitter for the student alone are left out; the sequence of teachers, each taught by the
    last, is a choice of teaching.
    """

    name = "tinymim"
    title = "TinyMIM: An Empirical Study of Distilling MIM Pre-trained Models"
    paper = "arXiv 2301.01296"
    year = 2023
    needs = Needs.of(Need.QKV)
    branches = frozenset({"attention"})
    pairing = "1>0.75"
    functional = staticmethod(tinymim)

    weight: float = Float(1.0, low=0.1, high=10, log=True)
    teacher_depth: float = Float(0.75, low=0.5, high=1, domain=(0, 1), doc="which block of the teacher, by its depth")
    staged: bool = Flag(True, searched=(True, False), doc="a stage of relations alone, before the other terms")
    relation_share: float = Float(0.75, low=0.25, high=0.9, domain=(0.01, 0.99), doc="the first stage's of the budget")

    def __init__(self, **hyper: Any) -> None:
        super().__init__(**hyper)
        # The class states the default's pair.
        self.pairing = f"1>{self.teacher_depth:g}"  # type: ignore[misc]

    def stages(self) -> tuple[Stage, ...]:
        return alone_first("relations", self.relation_share, "labels") if self.staged else ()

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        """What brings both sides to the same heads and tokens.

        Raises:
            ValueError: a side has a stage without a self-attention whose queries, keys and values can be read.
        """
        from kdsearch.kd_methods.tokens._tinymim import Heads

        for side, spec in (("student", student), ("teacher", teacher)):
            lacking = [stage.path for stage in spec.stages if not stage.heads]
            if lacking or not spec.stages:
                where = f"stage {lacking[0]!r} has" if lacking else "there is"
                raise ValueError(
                    f"tinymim joins transformers; of the {side}, {where} no self-attention over patch tokens"
                )
        return Heads(student.stages, teacher.stages)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        return tinymim(*self.parts(student.qkv, teacher.qkv))
