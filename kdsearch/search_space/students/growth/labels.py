"""Labels of channels: which are one and the same unit, and where they occur."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

LIMIT = 2**26
"""More labels than a network can have; two of them fit into one float64."""


class Labels:
    """Labels, of which one stands for one output channel of one layer, and the sites where they occur.

    Labels that are added, or that one parameter belongs to, are the same unit. A site is a place where channels can be
    counted, such as "stage1.0.conv1:in".

    Attributes:
        sites: labels at each site, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, Tensor] = {}
        self._pairs: list[Tensor] = []
        self._count = 0

    def fresh(self, shape: Iterable[int], dim: int) -> Tensor:
        """Labels that were never used, one for each index of `dim`, float64."""
        shape = list(shape)
        made = torch.arange(self._count, self._count + shape[dim], dtype=torch.float64)
        self._count += shape[dim]
        return along(made, shape, dim)

    def join(self, a: Tensor, b: Tensor) -> None:
        """These labels are the same units, entry by entry."""
        for d in range(a.ndim):
            if a.stride(d) == b.stride(d) == 0:  # expanded on both sides: the same pairs again
                a, b = a.narrow(d, 0, 1), b.narrow(d, 0, 1)
        a, b = a.reshape(-1), b.reshape(-1)
        differ = a != b
        if bool(differ.any()):
            pairs = (a[differ] * LIMIT + b[differ]).unique()
            self._pairs.append(torch.stack((pairs.div(LIMIT, rounding_mode="floor"), pairs % LIMIT)))

    def record(self, site: str, x: Tensor, dim: int) -> Tensor:
        """Note the labels along one dimension; at all other indices they are the same units.

        Raises:
            ValueError: another number of them than the last time.
        """
        channels = x.movedim(dim, 0).reshape(x.shape[dim], -1)
        labels = channels[:, 0].clone()
        self.join(labels[:, None].expand_as(channels), channels)
        if site in self.sites:
            if len(self.sites[site]) != len(labels):
                raise ValueError(f"{site} has different numbers of channels at different times")
            self.join(self.sites[site], labels)
        self.sites[site] = labels
        return labels

    def units(self) -> list[int]:
        """The unit of each label."""
        assert self._count < LIMIT
        pairs = torch.cat([torch.zeros(2, 0, dtype=torch.float64), *self._pairs], 1).long().numpy()
        graph = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(self._count, self._count))
        return connected_components(graph, directed=False)[1].tolist()


def along(labels: Tensor, shape: Iterable[int], dim: int) -> Tensor:
    """Labels [C] along dimension `dim` of a tensor of this shape, the same at all other indices."""
    shape = list(shape)
    return labels.view([-1 if d == dim else 1 for d in range(len(shape))]).expand(shape)
