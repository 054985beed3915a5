"""Stand-alone self-attention: golden of the known code's variant, sizes, students that have it, where it cannot go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdsearch.runs.thinning import thin
from kdsearch.search_space import students
from kdsearch.search_space.students import TRANSFORMS, measure
from kdsearch.search_space.students.networks.local_attention import local_attention
from kdsearch.search_space.students.networks.sasa import SelfAttention2d
from tests.goldens.inputs import make_all
from tests.kd_methods import feature_golden, golden

from .transformed import CIFAR, DIGITS, SMALL, FixedWidth, agrees_in_other_formats, built, exports, trained, trains

GOLDEN = feature_golden.document("features/acmix_sasa")


def named(label: str) -> Any:
    return next(case for case in GOLDEN["cases"] if case["label"] == label)


def test_the_variant_of_the_known_code() -> None:
    """A softmax for each channel, zeros beyond the border, rows for the first half of all channels."""
    inputs = golden.tensors(make_all({"x_sasa": GOLDEN["inputs"]["x_sasa"]}), "x_sasa")
    rows = GOLDEN["modules"]["sasa_small"]["params"]
    parameters = {row["param"]: torch.empty(row["shape"], dtype=torch.float64) for row in rows}
    feature_golden.fill("features/acmix_sasa", "sasa_small", parameters)
    query, key, value = (
        F.conv2d(inputs["x_sasa"], parameters[f"{name}_conv.weight"]) for name in ("query", "key", "value")
    )
    halves = [parameters[name].expand(4, 1, 1, 3, 3) for name in ("rel_h", "rel_w")]
    position = torch.cat(halves).view(8, 3, 3)
    out = local_attention(query, key, value, heads=8, window=3, padding="zeros", position=position)
    case = named("sasa_small forward")
    golden.agrees(case, out.square().mean(), inputs)
    expected = case["values"]["out"]
    assert list(out.shape) == expected["shape"]
    torch.testing.assert_close(out.flatten()[:5].tolist(), expected["first5"], rtol=1e-9, atol=1e-12)
    assert float(out.detach().sum()) == pytest.approx(expected["sum"], rel=1e-9)


def test_size_of_a_layer() -> None:
    case = named("sasa_64_64_k7_g8")
    layer = SelfAttention2d(64, 64, window=7, heads=8)
    assert measure.parameters(layer) == case["params_total"] == 3 * 64 * 64 + 64 * 7
    assert list(layer(torch.randn(*case["in"])).shape) == case["out"]
    assert measure.macs(layer, (64, 16, 16)) == 3 * 64 * 64 * 256


def test_resnet50_loses_the_published_share_of_its_parameters() -> None:
    """29 % fewer, and a stem of attention besides, which is left a convolution here."""
    with torch.device("meta"):
        model = students.create("timm", model="resnet50").build((3, 224, 224), 1000)
        before = measure.parameters(model)
        after = measure.parameters(TRANSFORMS["sasa"]().apply(model))
    assert 1 - after / before == pytest.approx(0.29, abs=0.01)


def test_the_formula_of_the_paper() -> None:
    """At one place inside the map: the softmax of q · k + q · r, summed over the head's channels."""
    layer = SelfAttention2d(4, 8, window=3, heads=2).double()
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    query, key, value = (conv(x)[0] for conv in (layer.query, layer.key, layer.value))
    near = [(2 + u, 3 + v) for u in (-1, 0, 1) for v in (-1, 0, 1)]
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        q = query[part, 2, 3]
        r = [torch.cat([layer.rows[head, :, a - 1], layer.columns[head, :, b - 2]]) for a, b in near]
        weights = torch.stack([q @ (key[part, a, b] + r[k]) for k, (a, b) in enumerate(near)]).softmax(0)
        expected = sum(w * value[part, a, b] for w, (a, b) in zip(weights, near, strict=True))
        torch.testing.assert_close(layer(x)[0, part, 2, 3], expected)


def test_a_stride_is_an_average_pool() -> None:
    layer = SelfAttention2d(4, 8, heads=2, stride=(2, 2))
    x = torch.randn(2, 4, 5, 6)
    pooled = layer(x)
    layer.stride = (1, 1)
    torch.testing.assert_close(pooled[:, :, 0, 0], layer(x)[:, :, :2, :2].mean((2, 3)))
    torch.testing.assert_close(pooled[:, :, 2, 0], layer(x)[:, :, 4, :2].mean(2))


@pytest.mark.parametrize("side", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_small_and_odd_maps_come_out_as_the_convolution_s_do(side: int, stride: int) -> None:
    layer, conv = SelfAttention2d(4, 8, heads=2, stride=(stride, stride)), nn.Conv2d(4, 8, 3, stride, 1)
    x = torch.randn(2, 4, side, side)
    assert layer(x).shape == conv(x).shape


@pytest.mark.parametrize("name", ["cnn", "resnet", "wrn"])
@pytest.mark.parametrize("shape", [DIGITS, CIFAR], ids=["digits", "cifar"])
def test_students_train(name: str, shape: tuple[int, int, int]) -> None:
    model = built(students.create(name, **SMALL[name]), TRANSFORMS["sasa"](window=3), shape)
    trains(model, shape)
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules()) == 1


def test_heads_follow_the_channels_and_a_bias_stays() -> None:
    model = built(students.create("cnn", channels=5), TRANSFORMS["sasa"]())
    assert [m.heads for m in model.modules() if isinstance(m, SelfAttention2d)] == [5, 5]
    two = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Conv2d(7, 7, 3, padding=1))
    changed: Any = TRANSFORMS["sasa"](heads=2).apply(two)
    layer = changed[1]
    assert layer.heads == 1
    assert layer.value.bias is not None
    assert layer.columns.shape == (1, 3, 7)
    with pytest.raises(ValueError, match="1: 1 channels are too few for a head of 2"):
        TRANSFORMS["sasa"]().apply(nn.Sequential(nn.Conv2d(3, 7, 3), nn.Conv2d(7, 1, 3, padding=1)))
    with pytest.raises(ValueError, match="8 channels cannot be divided among 8 heads of at least two"):
        SelfAttention2d(8, 8, heads=8)


def test_only_the_deeper_half() -> None:
    model = built(students.create("resnet", depth=8), TRANSFORMS["sasa"](where="late"))
    assert [type(model.get_submodule(f"stage{k}.0.conv2")) for k in (1, 2, 3)] == [
        nn.Conv2d,
        SelfAttention2d,
        SelfAttention2d,
    ]


def test_other_formats_and_precisions() -> None:
    agrees_in_other_formats(built(students.create("cnn", channels=8), TRANSFORMS["sasa"](), CIFAR))


@pytest.mark.parametrize("side", [8, 24])
def test_onnx(side: int, tmp_path: Path) -> None:
    """Small maps are attended to as a whole, large ones by windows."""
    model = built(students.create("cnn", channels=4), TRANSFORMS["sasa"](window=5), (1, side, side))
    exports(model, tmp_path / "student.onnx", (1, side, side))


def test_nothing_to_replace() -> None:
    with pytest.raises(ValueError, match=r"sasa can replace no convolution of this student \(none\)"):
        TRANSFORMS["sasa"]().apply(students.create("vit", depth=3, dim=48).build((3, 16, 16), 10))


def test_thinning() -> None:
    transform, family = TRANSFORMS["sasa"](), students.create("cnn", channels=8)
    model: Any
    model, note = thin(family, transform, DIGITS, 10, 0.5, 0)
    assert note == ""
    assert measure.macs(model, DIGITS) < measure.macs(built(family, transform), DIGITS)
    model, note = thin(FixedWidth(), transform, DIGITS, 10, 0.5, 0, time_limit=0.3)
    assert "was not thinned" in note
    assert model(torch.randn(2, *DIGITS)).shape == (2, 10)


def test_a_training_through_the_public_interface(tmp_path_factory: pytest.TempPathFactory) -> None:
    student = trained("sasa", tmp_path_factory.getbasetemp() / "cache")
    assert sum(isinstance(m, SelfAttention2d) for m in student.module.modules()) == 2
    assert student.test["accuracy"] > 0.2
