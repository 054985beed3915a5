"""Fill a network from a smaller trained one so that both compute the same."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kdsearch.search_space.students.growth.matching import Match
from kdsearch.search_space.students.growth.moments import undo_norms
from kdsearch.search_space.students.growth.tracing import Layer, trace
from kdsearch.search_space.students.growth.widening import copied, copies, gaussian

TOLERANCE = 1e-8
"""Largest difference of outputs, in float64, relative to the largest output (or to 1 where that is less)."""


def grow(
    small: nn.Module,
    large: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    generator: torch.Generator,
    noise: float = 0.0,
) -> None:
    """Fill `large` from `small`, a narrower or shallower network of the same design, so that their outputs agree.

    Layers belong together by name. Channels that are added, concatenated, split or shuffled are followed through both
    networks, and each unit gets one source for all layers: weights of what reads it are divided by the number of its
    copies, normalisations copied. Blocks that only `large` has begin as identities: a residual branch's last layer is
    zero (the last normalisation's scale, or the last convolution where no normalisation comes after it), other layers
    hand on what they read, their normalisations undoing themselves. The equality is checked on random images.

    Layer normalisation and attention allow whole multiples of their width only, with the same number of heads.

    Args:
        input_shape: channels, height, width of the images.
        generator: what copies and noise are drawn from.
        noise: breaks the symmetry of copies: added to the weights that make all but the first copy of a unit, as a
            factor on the standard deviation of the layer's grown weights. At 0 outputs agree exactly.

    Raises:
        ValueError: `large` cannot be filled so; it is left as it was.

    Source: Chen, Goodfellow, Shlens, Net2Net, ICLR 2016, section 2; the zeroed residual branches are of later practice.
    """
    if not 0 <= noise < float("inf"):
        raise ValueError(f"noise must be finite and not negative, not {noise!r}")
    source, target = (copy.deepcopy(m).double().cpu().eval() for m in (small, large))
    with torch.no_grad():
        images = torch.randn(2, *input_shape, generator=generator, dtype=torch.float64)
        wanted = source(images)
        if not bool(wanted.isfinite().all()):
            raise ValueError("the outputs of the smaller network are not finite")
        growth = _Growth(source, target, input_shape, generator)
        growth.fill()
        found = target(images)
        if found.shape != wanted.shape:
            raise ValueError(f"{found.shape[1]} classes cannot be grown from {wanted.shape[1]}")
        error = float((found - wanted).abs().max())
        if not error <= TOLERANCE * max(1.0, float(wanted.abs().max())):
            reason = f": {growth.extra[0]} cannot begin as an identity" if growth.extra else ""
            raise ValueError(f"the larger network cannot compute what the smaller one does{reason}")
        if noise:
            growth.blur(noise, generator)
    large.load_state_dict(target.state_dict())


class _Growth:
    """Both networks, in float64 and evaluation mode, and how their units belong together."""

    def __init__(
        self, small: nn.Module, large: nn.Module, shape: tuple[int, int, int], generator: torch.Generator
    ) -> None:
        known = {path for path, _ in small.named_modules()}
        self.extra = [path for path, _ in large.named_modules() if path not in known]
        extra = frozenset(self.extra)
        self.large = large
        self.old, self.new = (dict((*m.named_parameters(), *m.named_buffers())) for m in (small, large))
        self.small_trace, self.trace = trace(small, shape), trace(large, shape, extra)
        added = [layer for layer in self.trace.layers if layer.path in extra and not self._in_branch(layer)]
        for layer in added:
            if layer.resizes:
                raise ValueError(f"{layer.path} is not in the smaller network and changes the resolution")
            if len(layer.made) < len(layer.given):
                raise ValueError(f"{layer.path} is not in the smaller network and has less outputs than inputs")
            if len(layer.made) == len(layer.given):
                self.trace.join(layer.given, layer.made)
        self.added = {id(layer) for layer in added}
        self.match = Match(self.small_trace, self.trace, [a for a in added if a.kind == "dense"], generator)
        self.copies: dict[str, Tensor] = {}

    def _in_branch(self, layer: Layer) -> bool:
        return any(layer.path.startswith(f"{block}.") for block in self.trace.residual)

    def fill(self) -> None:
        for name, value in self.new.items():
            if name in self.old:
                value.copy_(self._grown(name, value))
        for path in self.trace.silent:
            for name in (f"{path}.weight", f"{path}.bias"):
                if name in self.new:
                    self.new[name].zero_()
        for layer in self.trace.layers:
            if id(layer) in self.added and layer.kind != "norm":
                self._identity(layer)
        undo_norms(self.large, self.trace, lambda a: self.match.reads(a) if id(a) in self.added else None)

    def _grown(self, name: str, value: Tensor) -> Tensor:
        """The entry of the smaller network with each axis widened as its site says."""
        grown, axes = self.old[name], self.trace.axes.get(name, ())
        if len(axes) != len(self.small_trace.axes.get(name, ())) or grown.ndim != value.ndim:
            raise ValueError(f"{name} plays another part in the larger network")
        for axis, site in enumerate(axes):
            if site is None:
                continue
            places = self.match.places(site)
            grown = grown.index_select(axis, places)
            if site.endswith(":in"):
                grown = grown / copies(places).view([-1 if k == axis else 1 for k in range(grown.ndim)])
        if grown.shape != value.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)} and cannot be filled from {tuple(grown.shape)}")
        if axes and axes[0] is not None:
            if value.ndim > 1:
                self.copies[name] = copied(self.match.places(axes[0]))
            grown = grown * self._query_factor(axes[0]).view(-1, *[1] * (grown.ndim - 1))
        return grown

    def _query_factor(self, site: str) -> Tensor:
        """Attention divides by the root of a head's channels, and copies add up: queries make good for both."""
        labels = self.trace.sites[site].long().tolist()
        before = self.small_trace.sites[site].long()[self.match.places(site)].tolist()
        new, old = self.trace.queries, self.small_trace.queries
        factors = [
            (old[b] / new[a]) ** 0.5 if a in new and b in old else 1.0 for a, b in zip(labels, before, strict=True)
        ]
        return torch.tensor(factors, dtype=torch.float64)

    def _identity(self, layer: Layer) -> None:
        weight = self.new[f"{layer.path}.weight"]
        weight.copy_(self.match.identity(layer, weight.shape[2:]))
        if layer.kind == "dense":
            self.copies[f"{layer.path}.weight"] = copied(torch.tensor(self.match.reads(layer)))
        if f"{layer.path}.bias" in self.new:
            self.new[f"{layer.path}.bias"].zero_()

    def blur(self, noise: float, generator: torch.Generator) -> None:
        """Noise on the weights that make copies."""
        for name, again in self.copies.items():
            value = self.new[name]
            drawn = gaussian(value, value, noise, generator)
            value.add_(drawn * again.view(-1, *[1] * (value.ndim - 1)))
