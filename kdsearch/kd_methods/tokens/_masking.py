"""Images of which only a part is shown: masks on a grid of equal cells, and what is hidden behind them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


class Shown(NamedTuple):
    """What a loss has to know of a masked view: `visible` [B, h, w], and the whole images.

    `kept` is the number of visible cells where that is the same in every image.
    """

    visible: Tensor
    images: Tensor
    kept: int | None = None


def random_cells(
    count: int, grid: tuple[int, int], ratio: float, generator: Generator | None, device: torch.device
) -> Tensor:
    """Visible cells [count, h, w]: of each image the same number, at random, at least one.

    Source: He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, section 3.
    """
    order = torch.rand(count, grid[0] * grid[1], generator=generator, device=device).argsort(1).argsort(1)
    return (order < visible_cells(grid, ratio)).view(count, *grid)


def visible_cells(grid: tuple[int, int], ratio: float) -> int:
    """How many cells of each image `random_cells` shows."""
    return max(1, round((1.0 - ratio) * grid[0] * grid[1]))


def one_block(
    count: int,
    grid: tuple[int, int],
    ratio: float,
    spread: float,
    share: float,
    generator: Generator | None,
    device: torch.device,
) -> Tensor:
    """Visible cells [count, h, w]: a rectangle of each image is hidden, of a random place, size and shape.

    Args:
        ratio, spread: the rectangle's share of the image lies within ratio ± spread.
        share: of the images that have a rectangle at all; the others are shown whole.

    Source: Zhou et al., iBOT: Image BERT Pre-training with Online Tokenizer, ICLR 2022, appendix E, with one block
    where they place several.
    """
    height, width = grid
    size, aspect, top, left, chosen = torch.rand(5, count, generator=generator, device=device)
    area = (ratio + spread * (2 * size - 1)).clamp(0, 1) * height * width
    stretch = (0.3 ** (2 * aspect - 1)).sqrt()  # heights to widths from 0.3 to 1 / 0.3, evenly in their logarithm
    h = (area.sqrt() * stretch).round().clamp(1, height)
    w = (area / h).round().clamp(1, width)
    first_row, first_column = (top * (height - h + 1)).floor(), (left * (width - w + 1)).floor()
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    in_rows = (rows >= first_row[:, None]) & (rows < (first_row + h)[:, None])
    in_columns = (columns >= first_column[:, None]) & (columns < (first_column + w)[:, None])
    hidden = in_rows[:, :, None] & in_columns[:, None, :] & (chosen < share)[:, None, None]
    return ~hidden


def hide(images: Tensor, visible: Tensor) -> Tensor:
    """The images [B, C, H, W] with their invisible cells in the mean colour of what is left."""
    shown = F.interpolate(visible[:, None].to(images.dtype), size=images.shape[-2:], mode="nearest")
    mean = (images * shown).sum((2, 3), keepdim=True) / shown.sum((2, 3), keepdim=True).clamp_min(1.0)
    return torch.where(shown > 0, images, mean)


def masked_at_random(
    images: Tensor, generator: Generator | None, *, grid: tuple[int, int], ratio: float
) -> tuple[Tensor, Shown]:
    """Images of which a share of the cells is hidden, and which."""
    visible = random_cells(len(images), grid, ratio, generator, images.device)
    return hide(images, visible), Shown(visible, images, visible_cells(grid, ratio))


def masked_by_a_block(
    images: Tensor, generator: Generator | None, *, grid: tuple[int, int], ratio: float, spread: float, share: float
) -> tuple[Tensor, Shown]:
    """Images of which some have a hidden rectangle, and where."""
    visible = one_block(len(images), grid, ratio, spread, share, generator, images.device)
    return hide(images, visible), Shown(visible, images)
