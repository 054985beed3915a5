"""How differently a network's output moves with each of its inputs: jacov and EPE-NAS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.proxies.catalogue import StudentProxy, register

if TYPE_CHECKING:
    from torch import Tensor, nn

EPSILON = 1e-5
MANY_CLASSES = 100
"""Beyond so many classes EPE-NAS compares classes with one another."""


def input_jacobian(model: nn.Module, images: Tensor) -> Tensor:
    """The gradient of the sum of all logits on each image, [B, C · H · W]."""
    import torch

    from kdsearch.proxies._weights import logits_of

    images = images.detach().clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(logits_of(model, images).sum(), images)
    return gradient.flatten(1)


def jacov(jacobian: Tensor) -> Tensor:
    """-Σ over eigenvalues v of the rows' correlations of log(v + 1e-5) + 1 / (v + 1e-5); all v are 1 at best.

    Args:
        jacobian: [B, D], computed in float64.
    """
    from kdsearch.proxies._spectrum import correlation, eigenvalues

    shifted = eigenvalues(correlation(jacobian)).clamp(min=0) + EPSILON
    return -(shifted.log() + 1 / shifted).sum()


def epe_nas(jacobian: Tensor, target: Tensor, classes: int) -> Tensor:
    """Σ over classes of |Σ log(|correlation| + 1e-5)| over all pairs of one class' rows.

    With more than 100 classes each class' sum is divided by its images, and the score is the mean over classes of the
    summed distances to all classes.

    Args:
        jacobian: [B, D], computed in float64; target: [B], negative where there is no label, which leaves a row out.
    """
    from kdsearch.proxies._spectrum import correlation

    jacobian, target = jacobian[target >= 0], target[target >= 0]
    logs = (correlation(jacobian).abs() + EPSILON).log()
    present, index, counts = target.unique(return_inverse=True, return_counts=True)
    within = logs.masked_fill(index[:, None] != index[None, :], 0).sum(1)
    sums = logs.new_zeros(len(present)).index_add_(0, index, within)
    if classes <= MANY_CLASSES:
        return sums.abs().sum()
    means = sums / counts
    return (means[:, None] - means[None, :]).abs().sum() / len(present)


@register
class JaCov(StudentProxy):
    """Covariance of the Jacobian: images that the network can tell apart at random weights; on the batch given.

    Source: Mellor et al., Neural Architecture Search without Training, first version, 2020, section 3 (batch 256, no
    labels); named and measured by Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021.
    """

    name = "jacov"
    title = "Covariance of the input Jacobian"
    paper = "arXiv 2006.04647v1"
    year = 2020

    def of(self, model: nn.Module, images: Tensor, target: Tensor, seed: int) -> Tensor:
        return jacov(input_jacobian(model, images))


@register
class EPENAS(StudentProxy):
    """Correlation of the Jacobian within each class, on the batch given: it should hold several images of a class.

    A class of a single image adds next to nothing.

    Source: Lopes, Alirezazadeh, Alexandre, EPE-NAS: Efficient Performance Estimation Without Training for Neural
    Architecture Search, ICANN 2021, section 3 (batch 256).
    """

    name = "epe_nas"
    title = "Intra-class correlation of the input Jacobian"
    paper = "arXiv 2102.08099"
    year = 2021

    def of(self, model: nn.Module, images: Tensor, target: Tensor, seed: int) -> Tensor:
        import torch

        from kdsearch.proxies._weights import logits_of

        with torch.no_grad():
            classes = logits_of(model, images[:2]).shape[1]
        return epe_nas(input_jacobian(model, images), target, classes)
