"""MobileNetV2 and ShuffleNetV2: published sizes and costs, where they halve the resolution, their parts by hand."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from kdsearch.kd_methods.probe import probe
from kdsearch.search_space import students
from kdsearch.search_space.students import measure
from kdsearch.search_space.students.networks.mobilenetv2 import InvertedResidual
from kdsearch.search_space.students.networks.shufflenetv2 import FirstUnit, ShuffleUnit, shuffle

DIGITS, CIFAR, TINY, PHOTOS = (1, 8, 8), (3, 32, 32), (3, 64, 64), (3, 224, 224)
MOBILE, SHUFFLE = students.create("mobilenetv2"), students.create("shufflenetv2")


def test_defaults_are_the_networks_of_the_distillation_literature() -> None:
    """MobileNetV2 (T 6, W 0.5) and ShuffleV2 of CIFAR-100 tables: 0.81 and 1.36 million parameters."""
    assert measure.parameters(MOBILE.build(CIFAR, 100)) == 812_836
    assert measure.parameters(SHUFFLE.build(CIFAR, 100)) == 1_355_528


@pytest.mark.parametrize(("width", "last", "size", "mega"), [(0.5, 1024, "x0_5", 40.5), (2.0, 2048, "x2_0", 583.3)])
def test_shufflenets_for_photographs(width: float, last: int, size: str, mega: float) -> None:
    model = students.create("shufflenetv2", width=width, last=last, stem=3).build(PHOTOS, 1000)
    known = getattr(torchvision.models, f"shufflenet_v2_{size}")()
    assert measure.parameters(model) == measure.parameters(known)
    assert measure.macs(model, PHOTOS) == measure.macs(known, PHOTOS)
    assert round(measure.macs(model, PHOTOS) / 1e6, 1) == mega


@pytest.mark.parametrize(("width", "last", "size"), [(1.0, 1024, 2_278_604), (1.5, 1024, 3_503_624)])
def test_shufflenets_of_the_paper(width: float, last: int, size: int) -> None:
    model = students.create("shufflenetv2", width=width, last=last, stem=3).build(PHOTOS, 1000)
    assert measure.parameters(model) == size


def test_mobilenet_for_photographs() -> None:
    """The usual code leaves out the first stage's 1×1 convolution and its normalisation, which do not widen."""
    model, known = students.create("mobilenetv2", width=1.0).build(PHOTOS, 1000), timm.create_model("mobilenetv2_100")
    assert measure.parameters(model) - (32 * 32 + 2 * 32) == measure.parameters(known) == 3_504_872
    assert measure.macs(model, PHOTOS) - 32 * 32 * 112 * 112 == measure.macs(known, PHOTOS)


STAGES = [
    ("mobilenetv2", CIFAR, [(2, 12, 16), (3, 16, 8), (5, 48, 4), (7, 160, 2)], 1280),
    ("mobilenetv2", DIGITS, [(3, 16, 8), (5, 48, 4), (7, 160, 2)], 1280),
    ("mobilenetv2", TINY, [(2, 12, 32), (3, 16, 16), (5, 48, 8), (7, 160, 4)], 1280),
    ("mobilenetv2", PHOTOS, [(1, 8, 112), (2, 12, 56), (3, 16, 28), (5, 48, 14), (7, 160, 7)], 1280),
    ("shufflenetv2", CIFAR, [(0, 24, 32), (1, 116, 16), (2, 232, 8), (3, 464, 4)], 1024),
    ("shufflenetv2", DIGITS, [(1, 116, 8), (2, 232, 4), (3, 464, 2)], 1024),
]


@pytest.mark.parametrize(("name", "shape", "stages", "embedding"), STAGES)
def test_stages(name: str, shape: tuple[int, int, int], stages: list[tuple[int, int, int]], embedding: int) -> None:
    """Number, channels and side of each; 0 is the stem. On CIFAR they are those that the literature pairs."""
    spec = probe(students.create(name).build(shape, 10), shape)
    paths = [f"stages.stage{k}" if k else "stem" for k, _, _ in stages]
    assert [s.path for s in spec.stages] == paths
    assert [(s.channels, s.size) for s in spec.stages] == [(channels, (side, side)) for _, channels, side in stages]
    assert (spec.embedding, spec.classifier) == (embedding, "head")
    assert spec.map is not None
    assert (spec.map.path, spec.map.channels, spec.map.size) == ("last", embedding, spec.stages[-1].size)


@pytest.mark.parametrize("stem", [1, 3])
def test_large_images_are_reduced_in_the_stem(stem: int) -> None:
    spec = probe(students.create("shufflenetv2", width=0.5, stem=stem).build((3, 96, 96), 10), (3, 96, 96))
    assert [s.size[0] for s in spec.stages][-4:] == [24, 12, 6, 3]


@pytest.mark.parametrize("family", [MOBILE, SHUFFLE], ids=["mobilenetv2", "shufflenetv2"])
def test_depth_and_width(family: Any) -> None:
    def blocks(model: Any) -> list[int]:
        return [len(stage) for stage in model.stages]

    published = {"mobilenetv2": [1, 2, 3, 4, 3, 3, 1], "shufflenetv2": [4, 8, 4]}[family.name]
    assert blocks(family.build(CIFAR, 10)) == published
    for depth in (0.5, 2.0):
        found = blocks(family.changed(depth=depth).build(CIFAR, 10))
        assert all(abs(n - k * depth) <= 0.5 for n, k in zip(found, published, strict=True))
    sizes = [measure.parameters(family.changed(width=w).build(CIFAR, 10)) for w in (0.25, 0.4, 0.9, 1.3, 1.9, 2.5)]
    assert sizes == sorted(set(sizes))
    assert family.changed(depth=0.125).build(CIFAR, 10)(torch.randn(2, *CIFAR)).shape == (2, 10)


def test_expansion_leaves_the_first_stage_alone() -> None:
    model: Any = students.create("mobilenetv2", expansion=3).build(CIFAR, 10)
    convolutions = [block.depthwise.conv for stage in model.stages for block in stage]
    assert [c.in_channels for c in convolutions[:3]] == [16, 24, 36]
    assert all(c.groups == c.in_channels for c in convolutions)


def test_shufflenet_channels_at_published_and_other_sizes() -> None:
    def widths(width: float) -> list[int]:
        model: Any = students.create("shufflenetv2", width=width).build(CIFAR, 10)
        return [stage[0].branch[5].out_channels * 2 for stage in model.stages]

    assert [widths(w)[0] for w in (0.25, 0.5, 1.0, 1.25, 1.5, 2.0, 3.0)] == [24, 48, 116, 146, 176, 244, 380]
    assert widths(1.5) == [176, 352, 704]


def test_scaled_sizes_have_the_channels_that_were_asked_for() -> None:
    thin: Any = SHUFFLE.thinned(0.25)
    assert thin.hyper == pytest.approx({**SHUFFLE.hyper, "width": 29 / 96, "last": 256})
    model: Any = thin.build(CIFAR, 10)
    assert [stage[0].branch[5].out_channels * 2 for stage in model.stages] == [28, 56, 112]
    wide: Any = MOBILE.widened(1.5)
    assert (wide.width, wide.last) == (0.75, 1920)


def test_shuffling_takes_the_halves_by_turns() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1).expand(2, 6, 3, 2)
    for layout in (torch.contiguous_format, torch.channels_last):
        mixed = shuffle(x.contiguous(memory_format=layout))
        assert mixed[1, :, 2, 1].tolist() == [0, 3, 1, 4, 2, 5]
        assert mixed.is_contiguous(memory_format=layout)


def test_half_of_a_unit_passes_by() -> None:
    torch.manual_seed(0)
    unit, x = ShuffleUnit(8).eval(), torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        out = unit(x)
        assert torch.equal(out[:, ::2], x[:, :4])
        assert torch.equal(out[:, 1::2], unit.branch(x[:, 4:]))
        first = FirstUnit(8, 12, 2).eval()
        assert torch.equal(first(x), shuffle(torch.cat((first.shortcut(x), first.branch(x)), 1)))


def test_an_inverted_residual_adds_its_input_where_shapes_allow() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    for width, stride, adds in ((4, 1, True), (4, 2, False), (6, 1, False)):
        block = InvertedResidual(4, width, 3, stride).eval()
        with torch.no_grad():
            branch = block.project(block.depthwise(block.expand(x)))
            assert torch.equal(block(x), x + branch if adds else branch)
        assert not any(isinstance(m, nn.ReLU) for m in block.project)


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("mobilenetv2", {"width": 0.0}, "mobilenetv2.width must lie in"),
        ("mobilenetv2", {"expansion": 0}, "mobilenetv2.expansion must lie in"),
        ("mobilenetv2", {"T": 6}, "mobilenetv2 has no hyper-parameter 'T'"),
        ("shufflenetv2", {"stem": 2}, "shufflenetv2.stem cannot be 2"),
        ("shufflenet", {}, "did you mean 'shufflenetv2'"),
    ],
)
def test_mistakes_get_one_clear_line(name: str, hyper: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        students.create(name, **hyper)
