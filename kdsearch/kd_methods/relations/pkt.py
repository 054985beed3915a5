"""Probabilistic knowledge transfer: how likely a sample has each other sample as its neighbour."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import RelationMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.parameters import Choice, Flag, Float

if TYPE_CHECKING:
    from torch import Tensor, nn


def pkt(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    *,
    kernel: str = "cosine",
    diagonal: bool = False,
    eps: float = 1e-7,
) -> Tensor:
    """Sum over i and j of p_ij log(p_ij / q_ij), over B², of the teacher's and the student's neighbour probabilities.

    A row of probabilities is a row of kernel values over their sum.

    Args:
        student_embedding, teacher_embedding: [B, D]; D may differ, maps are flattened.
        kernel: "cosine", (1 + cos) / 2, or "gaussian", exp(-d² / 2σ²), with the mean d² of the batch's pairs, each
            side's own, as σ².
        diagonal: a sample counts among its own neighbours, as in the authors' code; the paper leaves it out.
        eps: added to lengths and to probabilities.

    A batch of one gives 0.

    Source: Passalis, Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018, section 3,
    its cosine and Gaussian kernels; the average over all B² entries and `eps` are the authors' code's.

    Raises:
        ValueError: an unknown kernel.
    """
    q = _probabilities(student_embedding, kernel, diagonal, eps)
    p = _probabilities(teacher_embedding, kernel, diagonal, eps)
    return (p * ((p + eps) / (q + eps)).log()).mean()


def _probabilities(embedding: Tensor, kernel: str, diagonal: bool, eps: float) -> Tensor:
    """[B, B], rows that sum to one; rows of zeros where there is no neighbour."""
    import torch

    from kdsearch.kd_methods.numerics import widen

    x = widen(embedding).flatten(1)
    if kernel == "cosine":
        x = _unit(x, eps)
        values = (1 + x @ x.T).clamp(min=0) / 2
    elif kernel == "gaussian":
        values = _gaussian(x)
    else:
        raise ValueError(f"pkt: kernel must be 'cosine' or 'gaussian', not {kernel!r}")
    if not diagonal:
        values = values.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0.0)
    total = values.sum(1, keepdim=True)
    return values / torch.where(total > 0, total, 1.0)


def _unit(x: Tensor, eps: float) -> Tensor:
    """x over its length plus eps. Computed on x over its peak, so that squares neither overflow nor vanish."""
    import torch

    from kdsearch.kd_methods.numerics import peak_of

    peak = peak_of(x)
    peak = torch.where(peak > 0, peak, 1.0)
    x = x / peak
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    long = length > 1e-12  # a shorter one has no direction, and a gradient of one over eps
    return x * torch.where(long, 1.0 / (torch.where(long, length, 1.0) + eps / peak), 0.0)


def _gaussian(x: Tensor) -> Tensor:
    import torch

    from kdsearch.kd_methods.numerics import rescale

    x = rescale(x)  # the mean in the exponent takes the scale out
    x = x - x.mean(0)
    squares = x.square().sum(1)
    distances = (squares[:, None] + squares - 2 * x @ x.T).clamp(min=0)
    width = distances.sum() / max(len(x) * (len(x) - 1), 1)
    return (distances / torch.where(width > 0, -2 * width, 1.0)).exp()


@register
class PKT(RelationMethod):
    """Neighbour probabilities of the embeddings under the cosine kernel; weight 30000 as the benchmarks run it.

    The paper's sum leaves out a sample as its own neighbour, which the authors' code counts: `diagonal=True` is the
    published code. The paper leaves the Gaussian kernel's width to the user; here it is the batch's own. Its supervised
    form, with probabilities from labels in place of a teacher's, is left out.
    """

    name = "pkt"
    title = "Learning Deep Representations with Probabilistic Knowledge Transfer"
    paper = "arXiv 1803.10837"
    year = 2018
    needs = Needs.of(Need.EMBEDDING)
    functional = staticmethod(pkt)

    weight: float = Float(30000.0, low=1000, high=1e5, log=True)
    kernel: str = Choice("cosine", ("cosine", "gaussian"), searched=("cosine",), doc="how alike two samples are")
    diagonal: bool = Flag(False, doc="a sample is its own neighbour too, as in the authors' code")

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module | None:
        if student.embedding is None or teacher.embedding is None:
            raise ValueError("pkt compares embeddings; student and teacher must both have one")
        return None

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        assert student.embedding is not None
        assert teacher.embedding is not None
        return pkt(student.embedding, teacher.embedding, kernel=self.kernel, diagonal=self.diagonal)
