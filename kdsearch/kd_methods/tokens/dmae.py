"""DMAE: the visible part of a masked image, as a frozen teacher's first layers see it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import Stage, TokenMethod, alone_first
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals, View
from kdsearch.kd_methods.softening import reduce
from kdsearch.parameters import Choice, Flag, Float, Int

if TYPE_CHECKING:
    from torch import Tensor, nn

VIEW = "dmae"


def dmae(
    student_tokens: Sequence[Tensor],
    teacher_tokens: Sequence[Tensor],
    visible: Tensor | None = None,
    *,
    distance: str = "l1",
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """Mean difference of aligned tokens, each of length one, where both sides see the image; summed over the pairs.

    Args:
        student_tokens, teacher_tokens: [B, N, D] of each pair, of equal shapes.
        visible: [B, N], where tokens count; all of them without it.
        distance: "l1" or the squared "l2".
        normalize: divide each token by its L2 norm, as the authors do wherever there is a joint layer.
        reduction: "mean", or "none" for [B].

    Source: Bai et al., Masked Autoencoders Enable Efficient Knowledge Distillers, CVPR 2023, section 3.2.

    Raises:
        ValueError: an unknown distance.
    """
    import torch

    from kdsearch.kd_methods.numerics import unit, widen

    if distance not in ("l1", "l2"):
        raise ValueError(f"dmae: distance must be 'l1' or 'l2', not {distance!r}")
    losses = []
    for student, teacher in zip(student_tokens, teacher_tokens, strict=True):
        s, t = widen(student), widen(teacher)
        if normalize:
            s, t = unit(s, dim=2), unit(t, dim=2)
        apart = (s - t).abs() if distance == "l1" else (s - t).square()
        tokens = apart.mean(2)
        if visible is None:
            losses.append(tokens.mean(1))
        else:
            weight = visible.to(tokens.dtype)
            losses.append((tokens * weight).sum(1) / weight.sum(1).clamp_min(1.0))
    return reduce(torch.stack(losses).sum(0), reduction)


@register
class DMAE(TokenMethod):
    """Student and teacher see the same masked image, and their tokens agree at three quarters of either depth.

    A joint linear layer brings the student's tokens to the teacher's width; class tokens take part where both sides
    have them. The teacher runs no further than the stage that is read, where nothing else reads it. The mask lies on
    the smaller of both stages' grids. A transformer that lets patches go (timm's plain ones do) runs on the visible
    ones alone, once they know their positions; any other network sees the hidden cells painted in the mean colour of
    the visible ones, at the cost of whole images. So does a transformer whose patch grid the mask's does not divide.

    The published procedure is `staged`: this alone, then labels. `reconstruction` adds the published decoder and its
    loss on the hidden pixels, in [0, 1] here, at equal weight; it is off since it is larger than small students are.
    The authors' teacher is itself a masked autoencoder, not tuned to labels.
    """

    name = "dmae"
    title = "Masked Autoencoders Enable Efficient Knowledge Distillers"
    paper = "arXiv 2208.12256"
    year = 2023
    needs = Needs.of(Need.FEATURES)
    pairing = "0.75>0.75"
    spatial = True
    views_only = True
    functional = staticmethod(dmae)

    weight: float = Float(1.0, low=0.1, high=30, log=True)
    mask_ratio: float = Float(0.75, low=0.25, high=0.95, domain=(0, 1), doc="share of the image that is hidden")
    distance: str = Choice("l1", ("l1", "l2"), searched=("l1",), doc="of the tokens")
    staged: bool = Flag(True, searched=(True, False), doc="a stage of alignment alone, before the other terms")
    alignment_share: float = Float(0.5, low=0.25, high=0.8, domain=(0.01, 0.99), doc="the first stage's of the budget")
    reconstruction: bool = Flag(False, doc="hidden pixels too, from the student's last stage")
    norm_pixels: bool = Flag(False, doc="reconstruct pixels that are normalised within their cell")
    decoder_width: int = Int(512, low=64, high=512, log=True, domain=(1, 4096))
    decoder_depth: int = Int(8, low=1, high=8, domain=(1, 64), doc="transformer blocks")

    _grid: tuple[int, int] = (1, 1)
    _cell: tuple[int, int] = (1, 1)

    def __init__(self, **hyper: Any) -> None:
        super().__init__(**hyper)
        if self.reconstruction:
            # The teacher's stage stands there once more because stages come in pairs; nobody reads it twice.
            self.pairing = "0.75>0.75, 1>0.75"  # type: ignore[misc]

    def stages(self) -> tuple[Stage, ...]:
        return alone_first("alignment", self.alignment_share, "labels") if self.staged else ()

    def views(self) -> tuple[View, ...]:
        from kdsearch.kd_methods.tokens._masking import masked_at_random

        mask = partial(masked_at_random, grid=self._grid, ratio=self.mask_ratio)
        return (View(VIEW, 1, mask, teacher=True, sparse=("token",)),)

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        """The joint layer, and the decoder.

        Raises:
            ValueError: a stage has shrunk to a single position, of which none could be hidden.
        """
        from torch import nn

        from kdsearch.kd_methods.tokens._dmae import Alignment, Decoder

        s, t = student.stages[0], teacher.stages[0]
        grid = (min(s.size[0], t.size[0]), min(s.size[1], t.size[1]))
        if grid[0] * grid[1] == 1:
            raise ValueError("dmae hides a part of the image, and a stage it reads has a single position")
        self._grid = grid
        parts = nn.ModuleDict({"align": Alignment(s, t)})
        if self.reconstruction:
            channels, *sides = student.input_shape
            self._cell = (-(-sides[0] // grid[0]), -(-sides[1] // grid[1]))
            parts["decode"] = Decoder(
                student.stages[-1],
                grid,
                self._cell,
                channels,
                width=self.decoder_width,
                depth=self.decoder_depth,
            )
        return parts

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        from kdsearch.kd_methods.tokens._dmae import at, cells, reconstruction

        s, t = student.views[VIEW].features, teacher.views[VIEW].features
        shown = batch.views[VIEW].aside
        left, right, visible = self.parts["align"](s[0], t[0], shown.visible)
        loss = dmae([left], [right], visible, distance=self.distance)
        if self.reconstruction:
            visible = at(shown.visible, self._grid)
            predicted = self.parts["decode"](s[-1], visible)
            target = cells(shown.images, self._grid, self._cell)
            loss = loss + reconstruction(predicted, target, visible.flatten(1), norm=self.norm_pixels)
        return loss
