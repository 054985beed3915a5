"""Views: what a model is shown of a sample. A pure function of (sample id, view index, policy, seed).

Nothing depends on the batch a view stands in, on its order or on the device, so a teacher's answers can be stored
once and used by every trial. The randomness is counter-based: each decision hashes (seed, stream, view, id) to a
number in [0, 1).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.kd_methods import ViewPolicy


@dataclass(frozen=True)
class Augmentation:
    """How one image is varied: shifts of up to `shift` pixels (zero padding), mirroring, and random resized crops.

    `crop` is the smallest share of the area that a crop keeps; 1 switches resizing off.
    """

    shift: int = 0
    flip: bool = False
    crop: float = 1.0


@dataclass(frozen=True)
class ViewSpec:
    """Everything that determines a view but the sample and the view's index."""

    augmentation: Augmentation
    policy: ViewPolicy
    seed: int
    samples: int

    def describe(self) -> dict[str, object]:
        return asdict(self)


SHIFT_X, SHIFT_Y, FLIP, AREA, LEFT, TOP, PARTNER, RATIO, MIX, BOX_X, BOX_Y, KIND = range(12)
_GOLDEN, _MIX1, _MIX2 = -7046029254386353131, -4658895280553007687, -7723592293110705685  # splitmix64's constants


def uniform(ids: Tensor, view: int, seed: int, stream: int) -> Tensor:
    """float32 in [0, 1) for every id (int64), by splitmix64 over (seed, stream, view, id)."""
    salt = ((seed * 1_000_003 + stream) * 1_000_003 + view) & 0x7FFFFFFFFFFFFFFF
    x = ids * _GOLDEN + salt
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX2
    x = x ^ ((x >> 31) & 0x1FFFFFFFF)
    return ((x >> 40) & 0xFFFFFF).to(torch.float32) * (1.0 / 0x1000000)


@lru_cache(maxsize=32)
def _beta_quantiles(alpha: float, device: str) -> Tensor:
    """4096 quantiles of Beta(alpha, alpha): a table turns a uniform number into a mixing ratio."""
    from scipy.stats import beta

    grid = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    return torch.from_numpy(beta.ppf(grid.numpy(), alpha, alpha)).to(torch.float32).to(device)


def mixing(ids: Tensor, view: int, spec: ViewSpec) -> tuple[Tensor, Tensor, Tensor] | None:
    """Partner ids [B], own shares λ [B] and whether the mix is a box [B]; None where the policy does not mix.

    The partner is drawn from the whole training split, never from the batch.
    """
    policy = spec.policy
    if not (policy.mixup or policy.cutmix):
        return None
    partner = (uniform(ids, view, spec.seed, PARTNER) * spec.samples).long().clamp_(max=spec.samples - 1)
    slot = (uniform(ids, view, spec.seed, RATIO) * 4096).long()
    device = str(ids.device)
    boxed = torch.zeros_like(ids, dtype=torch.bool)
    if policy.mixup and policy.cutmix:
        boxed = uniform(ids, view, spec.seed, KIND) < 0.5
        own = torch.where(
            boxed, _beta_quantiles(policy.cutmix, device)[slot], _beta_quantiles(policy.mixup, device)[slot]
        )
    else:
        own = _beta_quantiles(policy.mixup or policy.cutmix, device)[slot]
        if policy.cutmix:
            boxed = ~boxed
    if policy.mix_probability < 1:
        own = torch.where(uniform(ids, view, spec.seed, MIX) < policy.mix_probability, own, 1.0)
    return partner, own, boxed


def augment(images: Tensor, ids: Tensor, view: int, spec: ViewSpec) -> Tensor:
    """One augmented view of each image, [B, C, H, W] in [0, 1]."""
    a = spec.augmentation
    if not spec.policy.augment:
        return images
    height, width = images.shape[-2:]
    if a.crop < 1:
        images = _resized_crop(images, ids, view, spec)
    elif a.shift:
        span = 2 * a.shift + 1
        dx = (uniform(ids, view, spec.seed, SHIFT_X) * span).long()
        dy = (uniform(ids, view, spec.seed, SHIFT_Y) * span).long()
        padded = F.pad(images, (a.shift,) * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        images = windows[torch.arange(len(ids), device=ids.device), :, dy, dx]
    if a.flip:
        mirrored = (uniform(ids, view, spec.seed, FLIP) < 0.5).view(-1, 1, 1, 1)
        images = torch.where(mirrored, images.flip(-1), images)
    return images


def _resized_crop(images: Tensor, ids: Tensor, view: int, spec: ViewSpec) -> Tensor:
    low = spec.augmentation.crop
    side = (low + (1 - low) * uniform(ids, view, spec.seed, AREA)).sqrt()
    x = (1 - side) * (2 * uniform(ids, view, spec.seed, LEFT) - 1)
    y = (1 - side) * (2 * uniform(ids, view, spec.seed, TOP) - 1)
    zero = torch.zeros_like(side)
    theta = torch.stack([torch.stack([side, zero, x], 1), torch.stack([zero, side, y], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def mix(images: Tensor, others: Tensor, own: Tensor, boxed: Tensor, ids: Tensor, view: int, spec: ViewSpec) -> Tensor:
    """λ of one image and 1 - λ of its partner, blended or pasted as a box."""
    share = own.view(-1, 1, 1, 1)
    blended = torch.lerp(others, images, share)
    if not spec.policy.cutmix:
        return blended
    height, width = images.shape[-2:]
    side = (1 - own).clamp(0, 1).sqrt()
    box_h, box_w = (side * height).round(), (side * width).round()
    top = (uniform(ids, view, spec.seed, BOX_Y) * (height + 1 - box_h)).floor()
    left = (uniform(ids, view, spec.seed, BOX_X) * (width + 1 - box_w)).floor()
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    in_rows = (rows >= top[:, None]) & (rows < (top + box_h)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + box_w)[:, None])
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    pasted = torch.where(inside, others, images)
    return torch.where(boxed.view(-1, 1, 1, 1), pasted, blended)


def box_share(own: Tensor, boxed: Tensor, height: int, width: int) -> Tensor:
    """λ after a box's sides are rounded to whole pixels, so that labels state what is shown."""
    side = (1 - own).clamp(0, 1).sqrt()
    true = 1 - (side * height).round() * (side * width).round() / (height * width)
    return torch.where(boxed, true, own)
