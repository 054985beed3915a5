"""Net2Net's wider layer: further units are copies of old ones, and what reads them is divided among the copies."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(units: int, wanted: int, generator: torch.Generator, *, even: bool = False) -> Tensor:
    """The old unit of each of `wanted` units, [wanted]: itself for the first `units`, then random ones.

    Args:
        even: every unit is drawn equally often, as layer normalisation asks for.

    Raises:
        ValueError: fewer units than there are, or for `even` no multiple of them.
    """
    if wanted < units:
        raise ValueError(f"{units} units cannot be widened to {wanted}")
    if not even:
        further = torch.randint(units, (wanted - units,), generator=generator)
        return torch.cat((torch.arange(units), further))
    if wanted % units:
        raise ValueError(f"{units} units can be copied equally often into a multiple of them only, not into {wanted}")
    rounds = [torch.randperm(units, generator=generator) for _ in range(wanted // units - 1)]
    return torch.cat((torch.arange(units), *rounds))


def wider(
    weight: Tensor,
    bias: Tensor | None,
    following: Tensor,
    sources: Tensor,
    *,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """A linear or convolutional layer widened to units that copy `sources`, and the layer after it.

    What the pair computes is unchanged for any activation between them, as copies are equal. `noise` breaks their
    symmetry: it is added to the weights of all but the first copy of a unit, with this factor times the standard
    deviation of `weight`.

    Args:
        weight: [U, I, ...], a layer with U units.
        bias: [U], or None.
        following: [O, U, ...], the layer that reads them.
        sources: the old unit of each new one, [W]; each of the U at least once. `draw` makes one.
        noise: 0 for none; 0.01 is enough.
        generator: what noise is drawn from.

    Returns:
        [W, I, ...], [W] or None, [O, W, ...].

    Raises:
        ValueError: `sources` leave a unit out or name one that is not there, or a negative noise.

    Source: Chen, Goodfellow, Shlens, Net2Net, ICLR 2016, section 2.2. The authors give no figure for the noise.
    """
    units = len(weight)
    if noise < 0:
        raise ValueError(f"noise must not be negative, not {noise!r}")
    if not torch.equal(sources.unique(), torch.arange(units, device=sources.device)):
        raise ValueError(f"sources must name each of the {units} units and no other")
    if following.shape[1] != units:
        raise ValueError(f"the following layer must read {units} units, not {following.shape[1]}")
    wide = weight[sources]
    if noise:
        wide = wide + copied(sources).to(wide).view(-1, *[1] * (wide.ndim - 1)) * gaussian(
            weight, wide, noise, generator
        )
    shape = [1, -1, *[1] * (following.ndim - 2)]
    after = following[:, sources] / copies(sources).to(following).view(shape)
    return wide, None if bias is None else bias[sources], after


def copies(sources: Tensor) -> Tensor:
    """How often each entry's value occurs in `sources`, [W]."""
    _, which, counts = sources.unique(return_inverse=True, return_counts=True)
    return counts[which]


def copied(sources: Tensor) -> Tensor:
    """Whether an entry's value has occurred before it, [W]."""
    earlier = (sources[:, None] == sources[None]).tril(-1)
    return earlier.any(1)


def gaussian(weight: Tensor, like: Tensor, noise: float, generator: torch.Generator | None) -> Tensor:
    """Noise of the shape of `like`, with `noise` times the standard deviation of `weight`."""
    drawn = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
    return noise * weight.std(correction=0) * drawn
