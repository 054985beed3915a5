"""NAS-Bench-201: published sizes and costs, the benchmark's notation, the cell by hand, cells that are cut through."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from kdsearch.kd_methods.probe import probe
from kdsearch.search_space import students
from kdsearch.search_space.students import measure
from kdsearch.search_space.students.families.nasbench201 import OPERATIONS
from kdsearch.search_space.students.networks.nasbench201 import Cell, Reduction
from kdsearch.search_space.students.networks.nasbench201 import NASBench201 as Network

CIFAR, DIGITS = (3, 32, 32), (1, 8, 8)
FAMILY: Any = students.STUDENTS["nasbench201"]
EDGES = list(FAMILY().edges)
KNOWN = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"


@pytest.mark.parametrize(
    ("operation", "classes", "size", "cost"),
    [
        ("none", 10, 73_306, 7_783_050),
        ("none", 100, 79_156, 7_788_900),
        ("nor_conv_3x3", 10, 1_531_546, 220_119_690),
        ("nor_conv_3x3", 100, 1_537_396, 220_125_540),
    ],
)
def test_the_least_and_the_most_of_the_benchmark(operation: str, classes: int, size: int, cost: int) -> None:
    model = Network(3, classes, 16, 5, dict.fromkeys(EDGES, operation))
    assert measure.parameters(model) == size
    assert measure.macs(model, CIFAR) + classes == cost  # the benchmark counts the classifier's bias as well


def test_a_published_network() -> None:
    """113.95 million multiply-accumulates and 0.802 million parameters on CIFAR-10; 113.96 and 0.808 on CIFAR-100."""
    for classes, size, mega in ((10, 0.802, 113.95), (100, 0.808, 113.96)):
        model = FAMILY.from_arch(KNOWN).build(CIFAR, classes)
        assert round(measure.parameters(model) / 1e6, 3) == size
        assert round((measure.macs(model, CIFAR) + classes) / 1e6, 2) == mega


def test_notation_round_trip() -> None:
    family = FAMILY.from_arch(KNOWN, channels=8, cells=2)
    assert family.arch == KNOWN
    assert (family.edge12, family.edge03, family.channels, family.cells) == ("avg_pool_3x3", "skip_connect", 8, 2)
    assert FAMILY.from_arch(FAMILY().arch).hyper == FAMILY().hyper


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet", "nasbench201 takes a cell such as"),
        (KNOWN.replace("~2", "~3"), "nasbench201 takes a cell such as"),
        (KNOWN.rsplit("+", 1)[0], "nasbench201 takes a cell such as"),
        (KNOWN.replace("avg_pool", "max_pool"), "nasbench201.edge12 cannot be 'max_pool_3x3'; did you mean"),
    ],
)
def test_other_notation_is_refused(arch: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FAMILY.from_arch(arch)


def by_hand(cell: Any, x: Tensor) -> Tensor:
    def along(edge: str, value: Tensor) -> Tensor:
        return cell.edges[edge](value) if edge in cell.edges else torch.zeros_like(value)

    one = along("edge01", x)
    two = along("edge02", x) + along("edge12", one)
    return along("edge03", x) + along("edge13", one) + along("edge23", two)


@pytest.mark.parametrize("shift", range(len(OPERATIONS)))
def test_a_cell_is_its_graph(shift: int) -> None:
    torch.manual_seed(shift)
    names = [OPERATIONS[(k + shift) % len(OPERATIONS)] for k in range(len(EDGES))]
    cell = Cell(dict(zip(EDGES, names, strict=True)), 4).double().eval()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    before = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(cell(x), by_hand(cell, x))
    assert torch.equal(x, before)  # no edge activates the others' input in place


def test_cells_without_a_way_through_are_refused_and_no_others_are() -> None:
    """A cell passes something on where one of its four paths is whole."""
    paths = (("edge03",), ("edge01", "edge13"), ("edge02", "edge23"), ("edge01", "edge12", "edge23"))
    for names in itertools.product(("none", "skip_connect"), repeat=6):
        edges: dict[str, Any] = dict(zip(EDGES, names, strict=True))
        whole = any(all(edges[edge] != "none" for edge in path) for path in paths)
        family = FAMILY(**edges, channels=4, cells=1)
        assert family.connected is whole
        if not whole:
            with pytest.raises(ValueError, match="nasbench201 has no way from the input to the output of its cell"):
                family.build(DIGITS, 10)


@pytest.mark.parametrize("operation", OPERATIONS[1:])
def test_a_cell_of_one_operation_learns(operation: str) -> None:
    family = FAMILY(**dict.fromkeys(EDGES, operation), channels=4, cells=2)
    model = family.build(DIGITS, 10)
    model(torch.randn(4, *DIGITS)).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    spec = probe(model, DIGITS)
    assert [(s.channels, s.size) for s in spec.stages] == [(4, (8, 8)), (8, (4, 4)), (16, (2, 2))]
    assert (spec.embedding, spec.classifier) == (16, "head")


def test_stages_are_the_benchmarks() -> None:
    spec = probe(students.create("nasbench201").build(CIFAR, 10), CIFAR)
    assert [(s.path, s.channels, s.size[0]) for s in spec.stages] == [
        (f"stages.stage{k}", c, side) for k, c, side in ((1, 16, 32), (2, 32, 16), (3, 64, 8))
    ]
    assert spec.map is not None
    assert (spec.map.path, spec.map.channels) == ("relu", 64)


def test_both_ways_of_a_reduction_end_at_the_same_size() -> None:
    for sides in ((8, 8), (7, 3), (1, 1), (2, 5)):
        half = tuple(-(-side // 2) for side in sides)
        assert Reduction(4, 8).eval()(torch.randn(1, 4, *sides)).shape == (1, 8, *half)


def test_thinned_and_widened_by_channels() -> None:
    family = FAMILY(channels=12, cells=3, edge02="none")
    thin, wide = family.thinned(0.25), family.widened(1.5)
    assert thin is not None
    assert wide is not None
    assert (thin.hyper, wide.hyper) == ({**family.hyper, "channels": 3}, {**family.hyper, "channels": 18})
