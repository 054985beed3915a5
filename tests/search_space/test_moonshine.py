"""Moonshine: block and network sizes of the authors' code, shapes, and what is left alone."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdsearch.parameters import Choices
from kdsearch.search_space import students
from kdsearch.search_space.students import TRANSFORMS, measure
from kdsearch.search_space.students.networks.cheap import ChannelSlide, cheap, replace_convolutions
from kdsearch.search_space.students.networks.wrn import PreActivationBlock

GOLDEN = json.loads((Path(__file__).parent.parent / "goldens/features/moonshine.json").read_text())
CONVOLUTIONS = [c for c in GOLDEN["cases"] if "macs_32x32" in c and c["label"] != "Conv"]
BLOCKS = [c for c in GOLDEN["cases"] if c["label"].startswith("BasicBlock") and "(Conv," not in c["label"]]

DECLARED = TRANSFORMS["moonshine"].parameters["block"]
BLOCK_NAMES = DECLARED.options if isinstance(DECLARED, Choices) else ()

# WRN-40-2 at 100 classes: parameters, and millions of multiply-accumulates at 32 px, of the authors' code.
WRN_40_2 = {
    "Conv": (2_255_156, 327.6),
    "G2B2": (311_732, 46.8),
    "Conv2x2": (1_018_676, 146.7),
    "G4B2": (335_924, 52.9),
    "DConv": (305_124, 44.1),
    "G8B2": (384_308, 65.3),
    "DConvG2": (328_308, 50.1),
    "G16B2": (481_076, 90.1),
    "DConvG4": (374_676, 61.9),
    "A2B2": (577_844, 83.0),
    "DConvG8": (467_412, 85.7),
    "A4B2": (432_692, 61.8),
    "DConvG16": (652_884, 133.2),
    "A8B2": (360_116, 51.2),
    "DConvA2": (1_370_580, 197.5),
    "A16B2": (323_828, 45.9),
    "DConvA4": (826_260, 117.8),
    "G2B4": (170_612, 24.4),
    "DConvA8": (554_100, 78.0),
    "G4B4": (182_708, 27.5),
    "DConvA16": (418_020, 58.1),
    "G8B4": (206_900, 33.7),
    "ConvB2": (868_148, 125.5),
    "DConvB2": (299_636, 43.7),
    "ConvB4": (303_668, 42.5),
    "DConvB4": (164_564, 22.8),
    "ConvB8": (130_292, 17.0),
    "DConvB8": (97_028, 12.4),
    "ConvB16": (70_820, 8.2),
    "DConvB16": (63_260, 7.2),
}


def parse(label: str) -> dict[str, Any]:
    """The authors' names, such as G4B2 or DConvA8, as hyper-parameters."""
    both = re.fullmatch(r"([GA])(\d+)B(\d+)", label)
    if both:
        return {"block": both[1] + "B", "group": int(both[2]), "bottleneck": int(both[3])}
    one = re.fullmatch(r"(DConvG|DConvA|ConvB|DConvB)(\d+)", label)
    if one:
        return {"block": one[1], "bottleneck" if one[1].endswith("B") else "group": int(one[2])}
    return {"block": label}


def substitute(label: str, width: int = 64, stride: int = 1) -> nn.Module:
    hyper = {"group": 4, "bottleneck": 2, **parse(label)}
    return cheap(nn.Conv2d(64, width, 3, stride, 1, bias=False), **hyper)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=lambda case: case["label"])
def test_blocks_cost_what_the_authors_do(case: dict[str, Any]) -> None:
    block = substitute(case["label"])
    assert measure.parameters(block) == case["params_total"]
    assert sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Conv2d)) == case["params_conv_only"]
    assert measure.macs(block, (64, 32, 32)) == case["macs_32x32"]
    assert measure.macs(block, (64, 8, 8)) == case["macs_8x8"]
    assert list(block(torch.randn(1, 64, 32, 32)).shape) == case["out_shape_32"]
    wide = substitute(case["label"], 128, 2)
    assert measure.parameters(wide) == case["in64_out128_stride2"]["params_total"]
    assert measure.macs(wide, (64, 32, 32)) == case["in64_out128_stride2"]["macs_32x32_input"]
    assert list(wide(torch.randn(1, 64, 32, 32)).shape) == case["in64_out128_stride2"]["out_shape"]


@pytest.mark.parametrize("case", BLOCKS, ids=lambda case: case["label"])
def test_residual_blocks_cost_what_the_authors_do(case: dict[str, Any]) -> None:
    label = re.search(r"\((\w+),", case["label"])
    assert label is not None
    model = nn.Sequential(nn.Conv2d(3, 64, 3), PreActivationBlock(64, 64, 1))
    done, kept = replace_convolutions(model, **{"group": 4, "bottleneck": 2, **parse(label[1])})
    assert (done, kept) == (2, {})
    assert measure.parameters(model[1]) == case["params_total"]


@pytest.fixture
def uninitialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights as memory has them: sizes do not depend on them, and drawing takes most of the time."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


def wide_resnet(label: str, depth: int, classes: int) -> nn.Module:
    transform = TRANSFORMS["none"]() if label == "Conv" else TRANSFORMS["moonshine"](**parse(label))
    return transform.apply(students.create("wrn", depth=depth, width=2).build((3, 32, 32), classes))


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize("label", GOLDEN["wrn_40_2_cifar10_total_params"])
def test_whole_network_at_ten_classes(label: str) -> None:
    assert measure.parameters(wide_resnet(label, 40, 10)) == GOLDEN["wrn_40_2_cifar10_total_params"][label]


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize("label", WRN_40_2)
def test_whole_network_at_a_hundred_classes(label: str) -> None:
    """Depth 16 has one block a stage more than depth 10, and depth 40 has five more."""
    ten, sixteen = (wide_resnet(label, depth, 100) for depth in (10, 16))
    size = measure.parameters(ten) + 5 * (measure.parameters(sixteen) - measure.parameters(ten))
    assert size == WRN_40_2[label][0]
    less, more = (measure.macs(model, (3, 32, 32)) for model in (ten, sixteen))
    assert round((less + 5 * (more - less)) / 1e6, 1) == WRN_40_2[label][1]


@pytest.mark.usefixtures("uninitialised")
def test_a_combination_that_leaves_fewer_channels_than_a_group_has() -> None:
    """G16B4 on the first stage: 32 / 4 = 8 channels, no group of 16. The stage stays as it is, and is named."""
    model = students.create("wrn", depth=40, width=2).build((3, 32, 32), 100)
    done, kept = replace_convolutions(model, "GB", 16, 4)
    assert done == 24
    assert len(kept) == 12
    assert all(path.startswith("stage1.") and "cannot be divided by 16" in why for path, why in kept.items())


def test_sliding_over_channels_is_the_convolution_it_stands_for() -> None:
    part = ChannelSlide(7, bias=True).double()
    x = torch.randn(2, 5, 4, 4, dtype=torch.float64)
    kernel = part.weights.weight.view(7, 1, 3, 1, 1)
    expected = F.conv3d(x.unsqueeze(1), kernel, part.weights.bias, padding=(1, 0, 0)).mean(2)
    torch.testing.assert_close(part(x), expected)


@pytest.mark.parametrize("block", BLOCK_NAMES)
def test_every_block_trains(block: str) -> None:
    model: Any = TRANSFORMS["moonshine"](block=block).apply(students.create("resnet", depth=8).build((3, 8, 8), 10))
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert type(model.stem.conv) is nn.Conv2d
    assert type(model.stage2[0].shortcut[0]) is nn.Conv2d
    assert type(model.stage1[0].conv1) is nn.Sequential


def test_a_bias_and_larger_kernels_carry_over() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 5, 2, 2), nn.Conv2d(16, 8, 7, padding=3))
    x = torch.randn(1, 3, 18, 18)
    shape = model(x).shape
    for block in BLOCK_NAMES:
        changed: Any = TRANSFORMS["moonshine"](block=block, group=2).apply(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 5, 2, 2), nn.Conv2d(16, 8, 7, padding=3))
        )
        assert changed(x).shape == shape
        assert changed[0].bias is not None


def test_what_cannot_be_divided_stays_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 32, 3, padding=1))
    with caplog.at_level(logging.INFO):
        TRANSFORMS["moonshine"](block="GB", group=8, bottleneck=2).apply(model)
    assert "moonshine GB left 1 of 2 convolutions as they are: 1: 4 channels cannot be divided by 8" in caplog.text
    assert [type(part) for part in model] == [nn.Conv2d, nn.Conv2d, nn.Sequential]
    assert model(torch.randn(1, 3, 8, 8)).shape == (1, 32, 6, 6)
    with pytest.raises(ValueError, match="can replace no convolution"):
        TRANSFORMS["moonshine"](block="GB", group=16, bottleneck=16).apply(
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
        )


def test_a_transformer_has_nothing_to_replace() -> None:
    vit = students.create("vit", depth=3, dim=48).build((3, 16, 16), 10)
    with pytest.raises(ValueError, match="can replace no convolution of this student"):
        TRANSFORMS["moonshine"]().apply(vit)


def test_timm_networks_keep_what_is_grouped_already() -> None:
    model = students.create("timm", model="resnext50_32x4d").build((3, 32, 32), 10)
    with pytest.raises(ValueError, match="is grouped already"):
        TRANSFORMS["moonshine"]().apply(model)
    plain = students.create("timm", model="resnet18").build((3, 32, 32), 10)
    before = measure.parameters(plain)
    cheaper = TRANSFORMS["moonshine"]().apply(plain)
    assert cheaper(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert measure.parameters(cheaper) < before / 4


def test_channel_numbers_that_no_bottleneck_divides() -> None:
    with pytest.raises(ValueError, match="9 channels have no bottleneck of 1/2"):
        cheap(nn.Conv2d(8, 9, 3), "GB", 2, 2)
    with pytest.raises(ValueError, match="8 channels cannot be divided by 16"):
        cheap(nn.Conv2d(8, 8, 3), "DConvG", 16, 2)
