"""Small vision transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from kdsearch.parameters import Choice, Int, Value
from kdsearch.search_space.students.family import InputShape, StudentFamily, register

if TYPE_CHECKING:
    from torch import nn


@register
class ViT(StudentFamily):
    """timm's vision transformer with a class token, and a distillation token where a method asks for one.

    Images whose sides are no multiple of the patch are padded with zeros at the right and the bottom; positions are
    interpolated where the network is shown another resolution than it was built for.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; the distillation token from Touvron et al.,
    ICML 2021.
    """

    name = "vit"
    title = "Vision transformer"
    paper = "arXiv 2010.11929"
    year = 2021
    supports = frozenset({"distillation_token"})

    patch: int = Choice(4, (2, 4, 8, 16), searched=(4, 8), doc="side of a patch in pixels")
    dim: int = Int(96, low=48, high=192, step=48, domain=(4, 4096), doc="embedding width, a multiple of heads")
    depth: int = Int(6, low=3, high=12, domain=(1, 64), doc="transformer blocks")
    heads: int = Choice(3, (1, 2, 3, 4, 6, 8, 12, 16), searched=(2, 3, 4, 6), doc="attention heads")

    @classmethod
    def check(cls, hyper: Mapping[str, Any]) -> dict[str, Value]:
        checked = super().check(hyper)
        dim, heads = int(checked["dim"]), int(checked["heads"])
        if dim % heads:
            below = max(heads, dim - dim % heads)
            raise ValueError(f"{cls.name}.dim must be a multiple of its {heads} heads, not {dim}; nearest: {below}")
        return checked

    def network(self, input_shape: InputShape, classes: int, branches: frozenset[str]) -> nn.Module:
        from timm.models.deit import VisionTransformerDistilled
        from timm.models.vision_transformer import VisionTransformer

        channels, height, width = input_shape
        patch = self.patch
        design = VisionTransformerDistilled if "distillation_token" in branches else VisionTransformer
        return design(
            # The padded image, so that the learnt positions need no interpolation at the resolution of the data.
            img_size=(-(-height // patch) * patch, -(-width // patch) * patch),
            patch_size=patch,
            in_chans=channels,
            num_classes=classes,
            embed_dim=self.dim,
            depth=self.depth,
            num_heads=self.heads,
            dynamic_img_size=True,
            dynamic_img_pad=True,
        )

    def thinned(self, keep: float) -> Self | None:
        return self.changed(dim=self._multiple(self.dim * keep))

    def widened(self, factor: float) -> Self | None:
        return self.changed(dim=self._multiple(self.dim * factor))

    def _multiple(self, dim: float) -> int:
        return self.heads * max(1, round(dim / self.heads))
