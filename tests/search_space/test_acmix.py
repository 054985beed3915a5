"""ACmix: the authors' module value by value, sizes, students that have it, and where it cannot go."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kdsearch.runs.thinning import thin
from kdsearch.search_space import students
from kdsearch.search_space.students import TRANSFORMS, measure
from kdsearch.search_space.students.networks.acmix import ACmix
from tests.kd_methods import feature_golden, golden

from .transformed import CIFAR, DIGITS, SMALL, FixedWidth, agrees_in_other_formats, built, exports, trained, trains

SIZES = feature_golden.document("features/acmix_sasa")["cases"]


def authors_names(module: ACmix) -> dict[str, torch.Tensor]:
    """The module's parameters under the authors' names, in their shapes."""
    names = {"conv1": module.query, "conv2": module.key, "conv3": module.value}
    parameters: dict[str, torch.Tensor] = {"rate1": module.attention_rate, "rate2": module.convolution_rate}
    for name, conv in names.items():
        assert conv.bias is not None
        parameters |= {f"{name}.weight": conv.weight, f"{name}.bias": conv.bias}
    return {
        **parameters,
        "conv_p.weight": module.position_weight[..., None, None],
        "conv_p.bias": module.position_bias,
        "fc.weight": module.taps.weight,
        "dep_conv.weight": module.shifts.weight,
    }


@pytest.mark.parametrize(("case", "arrays"), golden.cases("features/acmix"))
def test_the_authors_module(case: dict[str, Any], arrays: dict[str, Any]) -> None:
    stride = case["hyper"]["stride"]
    module = ACmix(8, 8, window=3, heads=2, stride=(stride, stride)).double()
    feature_golden.fill("features/acmix", "acmix_small", authors_names(module))
    inputs = golden.tensors(arrays, "x_acmix")
    out = module(inputs["x_acmix"])
    expected = case["values"]["out"]
    assert list(out.shape) == expected["shape"]
    torch.testing.assert_close(out.flatten()[:5].tolist(), expected["first5"], rtol=1e-9, atol=1e-12)
    loss = out.square().mean()
    golden.agrees(case, loss, inputs)
    learned = {name: p for name, p in authors_names(module).items() if name != "conv_p.weight"}
    # This one is a reshaped view, which the loss does not depend on: compared through the parameter itself.
    learned["conv_p.weight"] = module.position_weight
    feature_golden.module_gradients_agree(case, "acmix_small", loss, learned)


@pytest.mark.parametrize("case", [c for c in SIZES if c["label"].startswith("acmix")], ids=lambda c: c["label"])
def test_sizes_of_the_authors_module(case: dict[str, Any]) -> None:
    stride = case["kwargs"].get("stride", 1)
    module = ACmix(*case["args"], stride=(stride, stride))
    assert measure.parameters(module) == case["params_total"]
    assert sorted(list(p.shape) for p in authors_names(module).values()) == sorted(case["param_shapes"].values())
    assert list(module(torch.randn(*case["in"])).shape) == case["out"]


@pytest.mark.parametrize(("channels", "width", "heads"), [(3, 8, 2), (16, 32, 4), (20, 6, 3)])
def test_the_stated_number_of_parameters_and_products(channels: int, width: int, heads: int) -> None:
    module = ACmix(channels, width, heads=heads, window=5, stride=(2, 2))
    stated = 3 * (channels + 1) * width + 3 * width // heads + 27 * heads + 81 * width + 2
    assert measure.parameters(module) == stated
    projections, taps, shifts = 3 * channels * width * 64, 27 * heads * width // heads * 64, 81 * width * 16
    assert measure.macs(module, (channels, 8, 8)) == projections + taps + shifts


def test_the_convolution_path_starts_as_shifts() -> None:
    """With the attention off, the output is the sum of the nine maps, each moved by its place in the kernel."""
    module = ACmix(4, 4, heads=2)
    with torch.no_grad():
        module.attention_rate.zero_()
        module.convolution_rate.fill_(1)
    x = torch.randn(1, 4, 6, 6)
    maps = torch.cat([module.query(x), module.key(x), module.value(x)], 1).view(1, 6, 2, 36)
    taps = module.taps(maps).view(1, 9, 2, 6, 6)
    padded = nn.functional.pad(taps, (1, 1, 1, 1))
    moved = sum(padded[:, 3 * u + v, :, u : u + 6, v : v + 6] for u in range(3) for v in range(3))
    assert isinstance(moved, torch.Tensor)
    torch.testing.assert_close(module(x), moved.repeat_interleave(2, 1))


@pytest.mark.parametrize("side", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_small_and_odd_maps_come_out_as_the_convolution_s_do(side: int, stride: int) -> None:
    module = ACmix(4, 8, window=7, heads=2, stride=(stride, stride))
    conv = nn.Conv2d(4, 8, 3, stride, 1)
    x = torch.randn(2, 4, side, side)
    assert module(x).shape == conv(x).shape


@pytest.mark.parametrize("name", ["cnn", "resnet", "wrn"])
@pytest.mark.parametrize("shape", [DIGITS, CIFAR], ids=["digits", "cifar"])
def test_students_train(name: str, shape: tuple[int, int, int]) -> None:
    model = built(students.create(name, **SMALL[name]), TRANSFORMS["acmix"](), shape)
    trains(model, shape)
    assert not [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and m.groups == 1][
        2:
    ]


def test_only_the_deeper_half() -> None:
    model = built(students.create("resnet", depth=8), TRANSFORMS["acmix"](where="late"))
    kinds = [type(block.conv2) for block in (model.stage1[0], model.stage2[0], model.stage3[0])]
    assert kinds == [nn.Conv2d, ACmix, ACmix]
    assert type(model.stage2[0].conv1) is nn.Conv2d
    assert model.stage3[0].conv1.stride == (2, 2)


def test_heads_follow_the_channels() -> None:
    model = built(students.create("cnn", channels=3), TRANSFORMS["acmix"](heads=4))
    assert [m.heads for m in model.modules() if isinstance(m, ACmix)] == [3, 4]
    with pytest.raises(ValueError, match="9 channels cannot be divided among 4 heads"):
        ACmix(9, 9, heads=4)


def test_other_formats_and_precisions() -> None:
    agrees_in_other_formats(built(students.create("cnn", channels=8), TRANSFORMS["acmix"](), CIFAR))


def test_neighbours_keep_their_positions_under_autocast() -> None:
    """Coordinates of a large map lie closer together than bfloat16 resolves near one."""
    module = ACmix(4, 4, heads=1)
    exact = module._position([2, 224], torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module._position([2, 224], torch.device("cpu")), exact, rtol=0, atol=0)


@pytest.mark.parametrize("side", [8, 24])
def test_onnx(side: int, tmp_path: Path) -> None:
    """Small maps are attended to as a whole, large ones by windows."""
    model = built(students.create("cnn", channels=4), TRANSFORMS["acmix"](window=5), (1, side, side))
    exports(model, tmp_path / "student.onnx", (1, side, side))


def test_nothing_to_replace(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"acmix can replace no convolution of this student \(none\)"):
        TRANSFORMS["acmix"]().apply(students.create("vit", depth=3, dim=48).build((3, 16, 16), 10))
    odd = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 5, padding=2))
    with pytest.raises(ValueError, match=r"1: is grouped already .8 groups.; 2: is not 3×3 under padding 1, but 5×5"):
        TRANSFORMS["acmix"]().apply(odd)
    odd.append(nn.Conv2d(8, 8, 3, padding=1))
    with caplog.at_level(logging.INFO):
        TRANSFORMS["acmix"]().apply(odd)
    assert "acmix left 2 convolutions as they are: 1: is grouped already" in caplog.text


def test_timm_networks() -> None:
    model = built(students.create("timm", model="resnet10t"), TRANSFORMS["acmix"](), CIFAR)
    trains(model, CIFAR)
    assert sum(isinstance(m, ACmix) for m in model.modules()) == 10


def test_thinning() -> None:
    transform, family = TRANSFORMS["acmix"](), students.create("resnet", depth=8)
    model: Any
    model, note = thin(family, transform, CIFAR, 10, 0.5, 0)
    assert note == ""
    assert isinstance(model.stage3[0].conv1, ACmix)
    assert measure.macs(model, CIFAR) < measure.macs(built(family, transform, CIFAR), CIFAR)
    model, note = thin(FixedWidth(), transform, DIGITS, 10, 0.5, 0, time_limit=0.3)
    assert "was not thinned" in note
    assert model(torch.randn(2, *DIGITS)).shape == (2, 10)


def test_a_training_through_the_public_interface(tmp_path_factory: pytest.TempPathFactory) -> None:
    student = trained("acmix", tmp_path_factory.getbasetemp() / "cache")
    assert sum(isinstance(m, ACmix) for m in student.module.modules()) == 2
    assert student.test["accuracy"] > 0.2
