"""The neural tangent kernel of an untrained student, alone and beside its teacher's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.parameters import Choice, Flag
from kdsearch.proxies.catalogue import Proxy, StudentProxy, register

if TYPE_CHECKING:
    from torch import Tensor, nn


def tangent_kernel(model: nn.Module, images: Tensor) -> Tensor:
    """[B, B] inner products of the gradients, on all weights, of each image's summed logits / √K.

    This is the pseudo-kernel whose distance to the kernel of all K logits vanishes with width, at a K-th of its price.
    Batch normalisation must be in evaluation mode: its running statistics are what it normalises by.

    Source: Mohamadi, Bae, Sutherland, A Fast, Well-Founded Approximation to the Empirical Neural Tangent Kernel, ICML
    2023.
    """
    from kdsearch.proxies._kernel import gradient_gram

    return gradient_gram(model, images, lambda logits: logits.sum(1) / logits.shape[1] ** 0.5)


def loss_kernel(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """[B, B] inner products of the gradients, on all weights, of each image's cross-entropy; 0 without a label."""
    import torch.nn.functional as F

    from kdsearch.proxies._kernel import gradient_gram
    from kdsearch.proxies._weights import within

    def losses(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, within(target, logits.shape[1]), reduction="none")

    return gradient_gram(model, images, losses)


def condition(kernel: Tensor) -> Tensor:
    """Largest over smallest eigenvalue of a symmetric matrix; infinite where the smallest is not positive."""
    import torch

    from kdsearch.proxies._spectrum import eigenvalues

    values = eigenvalues(kernel)
    return torch.where(values[0] <= 0, torch.inf, values[-1] / values[0])


def kernel_alignment(one: Tensor, other: Tensor, *, debiased: bool = False) -> Tensor:
    """Centred kernel alignment of two kernels [B, B] of the same images: 1 where they are equal up to their scale.

    `debiased` leaves out the diagonals, which alone make large kernels of few images look alike.

    Raises:
        ValueError: kernels of different shapes, or debiased ones of fewer than four images.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019, section 3;
    debiased: Song et al., Feature Selection via Dependence Maximization, JMLR 2012, section 3.
    """
    if one.shape != other.shape:
        raise ValueError(f"kernels of the same images are compared, not {tuple(one.shape)} with {tuple(other.shape)}")
    size = len(one)
    if debiased and size < 4:
        raise ValueError(f"debiased alignment needs at least four images, not {size}")

    def centred(kernel: Tensor) -> Tensor:
        kernel = kernel.double()
        if not debiased:
            return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()
        off = kernel - kernel.diagonal().diag()
        rows = off.sum(1) / (size - 2)
        found = off - rows[:, None] - rows[None, :] + off.sum() / ((size - 1) * (size - 2))
        return found - found.diagonal().diag()

    a, b = centred(one), centred(other)
    return (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()


@register
class NTK(StudentProxy):
    """The neural tangent kernel's trace over the batch, by image: how fast the network can move; on the batch given.

    "condition" is minus the kernel's condition number: how evenly it can move in all directions. Batch normalisation
    uses the batch's statistics, held constant.

    Source: Shu et al., NASI: Label- and Data-agnostic Neural Architecture Search at Initialization, ICLR 2022, section
    3 (trace); Chen, Gong, Wang, Neural Architecture Search on ImageNet in Four GPU Hours (TE-NAS), ICLR 2021, section
    3.1 (condition number). Both on the pseudo-kernel of the summed logits, as TE-NAS' code has it.
    """

    name = "ntk"
    title = "Neural tangent kernel"
    paper = "arXiv 2109.00817"
    year = 2022

    part: str = Choice("trace", ["trace", "condition"])

    def of(self, model: nn.Module, images: Tensor, target: Tensor, seed: int) -> Tensor:
        from kdsearch.proxies._fresh import frozen_statistics

        kernel = tangent_kernel(frozen_statistics(model, images), images)
        return kernel.diagonal().mean() if self.part == "trace" else -condition(kernel)


@register
class CrossNTK(Proxy):
    """How alike student and teacher learn from one image for the others: alignment of their gradient kernels.

    Each kernel holds the inner products of the per-sample gradients on all weights, of the summed logits (no labels) or
    of the cross-entropy ("loss"); the score is their centred kernel alignment on the batch given, in [0, 1]. The papers
    compare with the trained teacher, whose own weights and statistics `teacher` "trained" keeps; by default its copy is
    initialised anew, as in all other scores. They project gradients at random to afford large models; here the inner
    products are exact.

    Source: the measure from On the Relationship Between Neural Tangent Kernel Frobenius Distance and Distillation
    Sample Complexity, OpenReview UpMG1bPKSB, 2025; the idea also from Could Student Selection Be the Missing Piece for
    Efficient Distillation?, OpenReview x4kreAhV1c, 2025, of which we know the abstract.
    """

    name = "cross_ntk"
    title = "Alignment of student's and teacher's tangent kernels"
    paper = "OpenReview UpMG1bPKSB"
    year = 2025
    needs_teacher = True

    of: str = Choice("logits", ["logits", "loss"], doc="what is differentiated")
    teacher: str = Choice("random", ["random", "trained"], doc="the teacher's weights")
    debiased: bool = Flag(False, doc="leave out the kernels' diagonals")
    init: str = Choice("default", ["default", "gaussian"], doc="the copies' weights: the layers' own, or N(0, 1)")

    def measure(
        self, student: nn.Module, teacher: nn.Module | None, images: Tensor, target: Tensor, *, seed: int
    ) -> float:
        import torch

        from kdsearch.proxies._fresh import copied, fresh, frozen_statistics
        from kdsearch.proxies._teachers import remembered

        assert teacher is not None
        images, target = images.detach().cpu().float(), target.detach().cpu()
        gaussian = self.init == "gaussian"

        def kernel(model: nn.Module) -> Tensor:
            return tangent_kernel(model, images) if self.of == "logits" else loss_kernel(model, images, target)

        with torch.enable_grad():
            mine = kernel(frozen_statistics(fresh(student, seed, gaussian=gaussian), images))
            if self.teacher == "trained":
                theirs = kernel(copied(teacher).to("cpu").float().requires_grad_(True).eval())
            else:  # another seed than the student's: equal architectures would be equal networks
                theirs = remembered(
                    teacher,
                    (self.name, seed, self.of, self.init),
                    images,
                    target,
                    lambda: kernel(frozen_statistics(fresh(teacher, seed + 1, gaussian=gaussian), images)),
                )
        return float(kernel_alignment(mine, theirs, debiased=self.debiased))
