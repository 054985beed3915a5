"""MAKD: the student sees a part of the image and has to give the teacher's features of all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import FeatureMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Signals, View
from kdsearch.parameters import Float, Int

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from kdsearch.kd_methods.tokens._masking import Shown

MASKED = "masked"


def makd(
    decoded_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    student_contexts: Sequence[Tensor] = (),
    teacher_contexts: Sequence[Tensor] = (),
    global_weight: float = 5e-6,
) -> Tensor:
    """Half the mean squared difference of normalised features, plus that of their global contexts, over the levels.

    Args:
        decoded_features: [B, C, H, W], the decoder's, which stands for the whole image.
        teacher_features: the teacher's of the whole image, in the same shapes.
        student_contexts, teacher_contexts: of every level, or none of them: both sides after their context blocks.
        global_weight: of the contexts' squared difference, which is summed over each sample.

    Both sides are normalised for each channel over batch and positions, without learned scales.

    Source: Lao et al., Masked Autoencoders Are Stronger Knowledge Distillers, ICCV 2023, section 3; the normalisation
    is our choice.
    """
    ours, theirs = ([normalise(x) for x in maps] for maps in (decoded_features, teacher_features))
    return of_normalised(ours, theirs, student_contexts, teacher_contexts, global_weight)


def of_normalised(
    decoded_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    student_contexts: Sequence[Tensor],
    teacher_contexts: Sequence[Tensor],
    global_weight: float,
) -> Tensor:
    """`makd` of maps that are normalised already."""
    import torch
    import torch.nn.functional as F

    losses = [0.5 * F.mse_loss(s, t) for s, t in zip(decoded_features, teacher_features, strict=True)]
    for ours, theirs in zip(student_contexts, teacher_contexts, strict=True):
        losses.append(global_weight * (ours - theirs).square().flatten(1).sum(1).mean())
    return torch.stack(losses).sum()


def normalise(x: Tensor) -> Tensor:
    """A map whose channels have mean 0 and variance 1 over batch and positions; a constant channel becomes zero."""
    import torch

    from kdsearch.kd_methods.numerics import widen

    x = widen(x)
    mean = x.mean((0, 2, 3), keepdim=True)
    centred = x - mean
    variance = centred.square().mean((0, 2, 3), keepdim=True)
    spread = variance > (8 * torch.finfo(x.dtype).eps * mean).square()
    # By the reciprocal: one pass over a map that can be large, and its backward pass, where a division takes more.
    return centred * torch.where(spread, torch.where(spread, variance, 1.0).rsqrt(), 0.0)


@register
class MAKD(FeatureMethod):
    """The student is shown each image once more with patches hidden; a decoder for every level restores the rest.

    A patch is as large as the stride of the coarsest stage that takes part. Of every level the decoder: a 1×1
    convolution to its own width, alignment to the coarsest grid by a convolution of that stride, a mask token in the
    hidden places, position embedding, transformer layers, and recovery of the teacher's size by a linear layer and a
    pixel shuffle. The global-context loss compares both sides after a context block each (attention pooling, a
    bottleneck, added to the map), which are trained along; the teacher's is no exception, so its output can move
    towards the student's.

    Rebuilt from notes; there is no code of the authors, and no number of theirs was found: ratio, depth, width and both
    weights are our choices (the context's is its authors' own, FGD). Convolutions are masked: what enters one is zero
    in hidden places, at every resolution; so is what enters a pooling. Normalisation layers still average over all
    places. A transformer runs on the visible patches alone, if it lets patches go. Other networks see the hidden
    pixels at zero. The task's loss reads the whole image, so a step costs two passes of the student; running statistics
    are of whole images. Masks are drawn once, one for each place of the batch; as samples change places, they change
    masks.
    """

    name = "makd"
    title = "Masked Autoencoders Are Stronger Knowledge Distillers"
    paper = "ICCV 2023"
    year = 2023
    spatial = True
    functional = staticmethod(makd)

    weight: float = Float(1.0, low=0.1, high=10, log=True)
    global_weight: float = Float(5e-6, low=1e-6, high=1e-2, log=True, doc="of the global contexts")
    ratio: float = Float(0.5, low=0.15, high=0.75, domain=(0.0, 0.99), doc="share of the patches that is hidden")
    layers: int = Int(1, low=1, high=4, domain=(0, 32), doc="transformer layers of a decoder")
    width: int = Int(
        256, low=64, high=512, log=True, domain=(1, math.inf), doc="of a decoder, or the teacher's if less"
    )

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        from kdsearch.kd_methods.features._makd import Decoders

        return Decoders(student.stages, teacher.stages, data.batch, self.ratio, self.layers, self.width)

    def views(self) -> tuple[View, ...]:
        return (View(MASKED, 1, self.hide, sparse=("token", "map")),)

    def hide(self, images: Tensor, generator: Generator | None = None) -> tuple[Tensor, Shown]:
        """The images [B, C, H, W] with the hidden patches at zero, and which patches are visible."""
        import torch.nn.functional as F

        from kdsearch.kd_methods.features._makd import hidden_patches
        from kdsearch.kd_methods.tokens._masking import Shown

        hidden = self.parts.hidden(len(images)).to(images.dtype)
        height, width = hidden.shape[-2:]
        kept = height * width - hidden_patches((height, width), self.ratio)
        shown = images * (1.0 - F.interpolate(hidden, size=images.shape[-2:], mode="nearest"))
        return shown, Shown(hidden[:, 0] == 0, images, kept)

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        if MASKED not in student.views:
            raise ValueError("makd reads the student's answer to the masked view, and got none")
        decoded, targets, ours, theirs = self.parts(student.views[MASKED].features, teacher.features)
        return of_normalised(decoded, targets, ours, theirs, self.global_weight)
