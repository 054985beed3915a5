"""FreeKD: wavelet bands of the features, masked by prompts that were learned on the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import FeatureMethod, Frozen
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Signals
from kdsearch.parameters import Choice, Float, Int

if TYPE_CHECKING:
    from torch import Tensor, nn


def freekd(
    projected_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    prompts: Sequence[Tensor],
    *,
    variant: str = "paper",
    channel_weights: Sequence[Tensor] | None = None,
) -> Tensor:
    """Masked L1 distance of the Haar wavelet bands of both sides, summed over bands and pairs.

    A prompt's mask is the sigmoid of its product with the teacher's band at every position. Each band's distance is
    averaged over everything, prompts included.

    Args:
        projected_features, teacher_features: [B, C, H, W].
        prompts: one [S, T, C] a pair, T prompts for each of S bands. "paper": S = 3J + 1, three orientations of every
            level, fine to coarse, then the low band. "published": S = J + 1, the low band first, then the levels.
        variant: "paper", or "published" as the authors' code has it: the orientations of a level share the mask that
            their sum makes, and the low band takes no part.
        channel_weights: [B, C] for every pair; None for ones.

    Source: Zhang et al., FreeKD: Knowledge Distillation via Semantic Frequency Prompt, CVPR 2024, section 3.

    Raises:
        ValueError: an unknown variant.
    """
    import torch

    from kdsearch.kd_methods.features._freekd import bands, haar
    from kdsearch.kd_methods.numerics import widen

    losses = []
    for k, (student, teacher, prompt) in enumerate(zip(projected_features, teacher_features, prompts, strict=True)):
        s, t = widen(student), widen(teacher)
        levels = levels_of(len(prompt), variant)
        weight = None if channel_weights is None else channel_weights[k][:, :, None, None, None]
        difference = bands(*haar(s - t, levels), variant)  # the transform is linear
        for band, seen, some in zip(difference, bands(*haar(t, levels), variant), prompt, strict=True):
            if band is None or seen is None:
                continue
            mask = masks(seen, some).mean(1)[:, None, None]
            size = band.abs() if weight is None else weight * band.abs()
            losses.append((size * mask).mean())
    return torch.stack(losses).sum()


def masks(band: Tensor, prompts: Tensor) -> Tensor:
    """[B, T, h, w] in (0, 1), of prompts [T, C] and a teacher's band [B, C, K, h, w] whose K orientations are added."""
    import torch

    return torch.einsum("tc,bchw->bthw", prompts.to(band.dtype), band.sum(2)).sigmoid()


def levels_of(sets: int, variant: str) -> int:
    """How many levels a number of prompt sets is for.

    Raises:
        ValueError: an unknown variant.
    """
    if variant not in ("paper", "published"):
        raise ValueError(f"freekd: variant must be 'paper' or 'published', not {variant!r}")
    return (sets - 1) // 3 if variant == "paper" else sets - 1


@register
class FreeKD(FeatureMethod):
    """Frequency prompts are learned on the frozen teacher; then the student imitates its masked wavelet bands.

    Preparation: a stage's bands are masked and transformed back, and what comes out has to be classified while the
    prompts' masks should overlap little (the paper's Jaccard term at weight 1; a prompt with itself left out). The
    paper returns it to the detector. Here a convolutional rest of the network, with the widths of the stages that
    follow, is trained along and thrown away: the teacher's own classifier reads the mean over positions, which no high
    band changes. Masked bands are averaged over the prompts, not added; the rest's normalisation undoes the factor.

    `position="relation"` is the paper's position-aware weight, not in the released class: for each channel, a gate on
    the softmax of its products with the channels of the next deeper stage, one for each side, multiplied. Shares of
    the channels are what is kept (mean 1 over the channels): trained by the very loss that it scales, the gate would
    close altogether. No gradient passes through the relations to the student.

    Haar wavelets with zeros at odd ends; a small map has as many of the levels as bring it down to 1×1. The released
    configuration adds a plain squared difference of the same features at weight 5.
    """

    name = "freekd"
    title = "FreeKD: Knowledge Distillation via Semantic Frequency Prompt"
    paper = "arXiv 2311.12079"
    year = 2024
    reads_labels = True
    spatial = True
    prepares = ("variant", "prompts", "levels", "passes")
    functional = staticmethod(freekd)

    weight: float = Float(1.0, low=0.05, high=50, log=True)
    variant: str = Choice("paper", ("paper", "published"), searched=("paper",), doc="which bands have masks of theirs")
    prompts: int = Choice(2, [1, 2, 4, 6], searched=[2, 6], doc="for every band")
    levels: int = Int(3, low=1, high=3, domain=(1, 8), doc="of the wavelet transform")
    position: str = Choice("relation", ("relation", "none"), doc="weights of the channels by their relations")
    passes: int = Choice(1, [1, 3, 10, 30], searched=[1], doc="over the data, for the prompts")

    def prepare(self, teacher: Frozen) -> dict[str, Tensor]:
        """The prompts of every paired stage of the teacher.

        Raises:
            ValueError: the data has no labels.
        """
        from kdsearch.kd_methods.features._freekd_prompts import learn_prompts

        return learn_prompts(teacher, self.prompts, self.levels, self.variant, self.passes)

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        from kdsearch.kd_methods.features._freekd import Frequencies, sets_of

        parts = Frequencies(
            student.stages,
            teacher.stages,
            prompts=self.prompts,
            sets=[sets_of(stage.size, self.levels, self.variant) for stage in teacher.stages],
            relation=self.position == "relation",
        )
        if self.prepared is not None:
            parts.learned(self.prepared)
        return parts

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        if not self.parts.ready:
            raise ValueError("freekd has no prompts of the teacher: set `prepared` before `bind`")
        projected, targets, weights = self.parts(student.features, teacher.features)
        return freekd(projected, targets, self.parts.prompts, variant=self.variant, channel_weights=weights)
