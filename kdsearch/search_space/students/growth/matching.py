"""One map from the units of a large network to those of a small one, for all layers at once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from kdsearch.search_space.students.growth.deepening import deeper
from kdsearch.search_space.students.growth.tracing import Layer, Trace
from kdsearch.search_space.students.growth.widening import draw

Signature = frozenset[tuple[str, int]]
"""Where a unit occurs among the layers that both networks have, and how often."""


class Match:
    """Which unit of the small network each unit of the large one computes.

    Units are exchangeable where they occur at the same sites; there the first ones stay themselves and further ones are
    random copies. The units that an identity layer makes follow from those it reads.

    Raises:
        ValueError: the two do not fit; the message says where.
    """

    def __init__(self, small: Trace, large: Trace, identities: list[Layer], generator: torch.Generator) -> None:
        self.small, self.large = small, large
        self._old, self._new = small.units(), large.units()
        self._places: dict[str, Tensor] = {}
        common = small.sites.keys() & large.sites.keys()
        _check_sites(small, large)
        old, new = _signatures(small, self._old, common), _signatures(large, self._new, common)
        classes: dict[Signature, list[int]] = defaultdict(list)
        wanted: dict[Signature, list[int]] = defaultdict(list)
        for unit, signature in old.items():
            classes[signature].append(unit)
        for unit, signature in new.items():
            wanted[signature].append(unit)
        even = {site for site in large.even if site in common}
        self.unit: dict[int, int] = {}
        for signature, members in wanted.items():
            # Identity layers part what was one unit: the one before is read by fewer layers than in the small network.
            units = classes.get(signature) or [u for s in classes if signature <= s for u in classes[s]]
            where = min(site for site, _ in signature)
            if not units:
                raise ValueError(f"channels at {where} have no counterpart in the smaller network")
            balanced = any(site in even for site, _ in signature)
            try:
                sources = draw(len(units), len(members), generator, even=balanced)
            except ValueError as error:
                raise ValueError(f"channels at {where}: {error}") from None
            self.unit.update((member, units[k]) for member, k in zip(members, sources.tolist(), strict=True))
        for layer in identities:
            self._pass_on(layer, generator)

    def sources(self, labels: Tensor) -> list[int]:
        """The small network's units that these labels compute.

        Raises:
            ValueError: one that computes none of them.
        """
        try:
            return [self.unit[self._new[label]] for label in labels.long().tolist()]
        except KeyError:
            raise ValueError("an added layer reads channels that the smaller network has not") from None

    def _pass_on(self, layer: Layer, generator: torch.Generator) -> None:
        read = sorted(set(self.sources(layer.given)))
        made = [self._new[label] for label in layer.made.long().tolist()]
        free = [unit for unit in made if unit not in self.unit]
        if len(free) == len(made):
            sources = draw(len(read), len(made), generator).tolist()
            self.unit.update((unit, read[k]) for unit, k in zip(made, sources, strict=True))
        elif not set(self.sources(layer.made)) <= set(read):
            raise ValueError(f"{layer.path} would have to make channels that it does not read")

    def places(self, site: str) -> Tensor:
        """For each channel at a site of the large network, the channel of the small one that it copies."""
        if site not in self._places:
            old = dict(zip(_ranked(self.small.sites[site], self._old), range(10**9), strict=False))
            ranked = _ranked(self.large.sites[site], self._new)
            try:
                self._places[site] = torch.tensor([old[self.unit[unit], rank] for unit, rank in ranked])
            except KeyError:
                raise ValueError(f"channels at {site} have no counterpart in the smaller network") from None
            counts = torch.bincount(self._places[site], minlength=len(old))
            if not bool(counts.all()):
                raise ValueError(f"not all channels at {site} of the smaller network are there in the larger one")
            if site in self.large.even and counts.unique().numel() > 1:
                raise ValueError(f"channels at {site} must have equally many copies")
        return self._places[site]

    def reads(self, layer: Layer) -> list[int]:
        """For each output of an identity layer, the first input that computes the same."""
        if len(layer.given) == len(layer.made):
            return list(range(len(layer.made)))
        given = self.sources(layer.given)
        return [given.index(unit) for unit in self.sources(layer.made)]

    def identity(self, layer: Layer, kernel: Iterable[int]) -> Tensor:
        """The weight of a layer each of whose outputs is one input, or the mean of that input's copies."""
        width, kernel = len(layer.given), tuple(kernel)
        if layer.kind == "depthwise":
            return deeper(width, kernel, groups=width, dtype=torch.float64)[0]
        weight = deeper(width, kernel, dtype=torch.float64)[0]
        if width == len(layer.made):
            return weight
        given, made = torch.tensor(self.sources(layer.given)), torch.tensor(self.sources(layer.made))
        share = (made[:, None] == given[None]).double()
        return torch.einsum("oi,ij...->oj...", share / share.sum(1, keepdim=True), weight)


def _signatures(trace: Trace, units: list[int], common: Iterable[str]) -> dict[int, Signature]:
    """The signature of each unit that occurs at a common site, in order of first occurrence."""
    found: dict[int, Counter[str]] = defaultdict(Counter)
    allowed = set(common)
    for site, labels in trace.sites.items():
        if site in allowed:
            for label in labels.long().tolist():
                found[units[label]][site] += 1
    return {unit: frozenset(counts.items()) for unit, counts in found.items()}


def _ranked(labels: Tensor, units: list[int]) -> list[tuple[int, int]]:
    """The unit of each label, with how often it has occurred before."""
    seen: Counter[int] = Counter()
    ranked = []
    for label in labels.long().tolist():
        ranked.append((units[label], seen[units[label]]))
        seen[units[label]] += 1
    return ranked


def _check_sites(small: Trace, large: Trace) -> None:
    """Layers of the same name read, make and attend to the same things."""
    for site in small.sites:
        if site not in large.sites:
            raise ValueError(f"the larger network has no {site}, which the smaller one has")
    layers = {site.split(":")[0] for site in small.sites}
    for site in large.sites:
        path = site.split(":")[0]
        if site not in small.sites and path in layers:
            raise ValueError(f"{path} is another kind of layer, or has more heads, in the larger network")
