"""Networks of the NAS-Bench-201 benchmark."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Self

from kdsearch.parameters import Choice, Int
from kdsearch.search_space.students.family import InputShape, StudentFamily, register

if TYPE_CHECKING:
    from torch import nn

CONV, SKIP = "nor_conv_3x3", "skip_connect"
OPERATIONS = ("none", SKIP, "nor_conv_1x1", CONV, "avg_pool_3x3")
EXAMPLE = "|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|none~0|avg_pool_3x3~1|nor_conv_3x3~2|"
NODES = ((0,), (0, 1), (0, 1, 2))
"""For each node but the first, the nodes before it."""


@register
class NASBench201(StudentFamily):
    """A cell of four nodes, `cells` times in each of three stages of `channels`, 2 · `channels` and 4 · `channels`.

    `edge12` is the operation on the way from node 1 to node 2; node 0 is the cell's input, node 3 its output. The
    benchmark's 15,625 networks have `channels` 16 and `cells` 5; the default is the best of them on CIFAR-100. `arch`
    and `from_arch` translate the benchmark's own notation. Cells whose input does not reach their output learn nothing
    and are refused when the network is built.

    Source: Dong, Yang, NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture Search, ICLR 2020,
    section 2.1.
    """

    name = "nasbench201"
    title = "NAS-Bench-201 cells"
    paper = "arXiv 2001.00326"
    year = 2020

    edge01: str = Choice(CONV, OPERATIONS)
    edge02: str = Choice(CONV, OPERATIONS)
    edge12: str = Choice(CONV, OPERATIONS)
    edge03: str = Choice(SKIP, OPERATIONS)
    edge13: str = Choice(CONV, OPERATIONS)
    edge23: str = Choice(CONV, OPERATIONS)
    channels: int = Int(16, low=8, high=32, log=True, domain=(1, 4096), doc="channels of the first stage")
    cells: int = Int(5, low=1, high=5, domain=(1, 64), doc="cells in each stage")

    @property
    def edges(self) -> dict[str, str]:
        """Operations by edge, in the order of the benchmark's own strings."""
        return {f"edge{j}{k}": getattr(self, f"edge{j}{k}") for k, before in enumerate(NODES, 1) for j in before}

    @property
    def arch(self) -> str:
        """The cell as the benchmark writes it, `|nor_conv_3x3~0|+|skip_connect~0|nor_conv_3x3~1|+|...|`."""
        edges = self.edges
        nodes = ("|".join(f"{edges[f'edge{j}{k}']}~{j}" for j in before) for k, before in enumerate(NODES, 1))
        return "+".join(f"|{node}|" for node in nodes)

    @classmethod
    def from_arch(cls, arch: str, **hyper: Any) -> Self:
        """The network of a cell that is written as the benchmark writes it; `hyper` gives its channels and cells.

        Raises:
            ValueError: not of that form, or an unknown operation.
        """
        edges: dict[str, Any] = {}
        wanted = [[str(j) for j in before] for before in NODES]
        nodes = [re.findall(r"\|([^|~+]+)~(\d)(?=\|)", node) for node in arch.split("+")]
        if [[j for _, j in node] for node in nodes] != wanted:
            raise ValueError(f"{cls.name} takes a cell such as {EXAMPLE!r}, not {arch!r}")
        for k, node in enumerate(nodes, 1):
            edges |= {f"edge{j}{k}": operation for operation, j in node}
        return cls(**edges, **hyper)

    def network(self, input_shape: InputShape, classes: int, branches: frozenset[str]) -> nn.Module:
        from kdsearch.search_space.students.networks.nasbench201 import NASBench201 as Network

        if not self.connected:
            raise ValueError(f"nasbench201 has no way from the input to the output of its cell: {self.arch}")
        return Network(input_shape[0], classes, self.channels, self.cells, self.edges)

    @property
    def connected(self) -> bool:
        """Whether the cell's output depends on its input."""
        reached = {0}
        for k, before in enumerate(NODES, 1):
            if any(j in reached and self.edges[f"edge{j}{k}"] != "none" for j in before):
                reached.add(k)
        return len(NODES) in reached

    def thinned(self, keep: float) -> Self | None:
        return self.changed(channels=max(1, round(self.channels * keep)))

    def widened(self, factor: float) -> Self | None:
        return self.changed(channels=max(1, round(self.channels * factor)))
