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
    """timm's vision transformer with a class token, and further tokens where a method asks for them.

    Branches: "distillation_token", a second token and head; with "patch_head" beside it, that head reads the mean of
    the patches as well when the network is used. "advice_tokens": two stems, of convolutions and of involutions, and a
    token and head for each. "attention" changes nothing: the blocks show queries, keys and values as they are.

    Images whose sides are no multiple of the patch are padded with zeros at the right and the bottom; positions are
    interpolated where the network is shown another resolution than it was built for.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; the distillation token from Touvron et al.,
    ICML 2021.
    """

    name = "vit"
    title = "Vision transformer"
    paper = "arXiv 2010.11929"
    year = 2021
    supports = frozenset({"distillation_token", "patch_head", "advice_tokens", "attention"})

    patch: int = Choice(4, (2, 4, 8, 16), searched=(2, 4, 8), doc="side of a patch in pixels")
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
        channels, height, width = input_shape
        patch = self.patch
        return _design(branches)(
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


def _design(branches: frozenset[str]) -> Any:
    """The class of network that has these branches.

    Raises:
        ValueError: they exclude one another.
    """
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    from kdsearch.search_space.students.networks.vit import AdvisedTransformer, PatchHeadTransformer

    edits = branches - {"attention"}
    if not edits:
        return VisionTransformer
    if edits == {"distillation_token"}:
        return VisionTransformerDistilled
    if edits == {"distillation_token", "patch_head"}:
        return PatchHeadTransformer
    if edits == {"advice_tokens"}:
        return AdvisedTransformer
    raise ValueError(f"vit cannot have these branches at once: {', '.join(sorted(edits))}")
