"""Student families: published sizes, every family at small and large inputs, thinner and wider forms, lazy imports."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from kdsearch.kd_methods.probe import probe
from kdsearch.search_space import students
from kdsearch.search_space.students import StudentFamily, measure

CIFAR = (3, 32, 32)
DIGITS = (1, 8, 8)
SMALL: dict[str, dict[str, Any]] = {"timm": {"model": "mobilenetv2_050"}, "vit": {"depth": 3, "dim": 48}}

# 100 classes: parameters, millions of multiply-accumulates, stages (channels × side), embedding.
PUBLISHED = [
    ("resnet", 8, 1, 83_892, 12.5, [(16, 32), (32, 16), (64, 8)]),
    ("resnet", 14, 1, 181_108, 26.7, [(16, 32), (32, 16), (64, 8)]),
    ("resnet", 20, 1, 278_324, 40.8, [(16, 32), (32, 16), (64, 8)]),
    ("resnet", 32, 1, 472_756, 69.1, [(16, 32), (32, 16), (64, 8)]),
    ("resnet", 44, 1, 667_188, 97.4, [(16, 32), (32, 16), (64, 8)]),
    ("resnet", 56, 1, 861_620, 125.8, [(16, 32), (32, 16), (64, 8)]),
    ("resnet", 110, 1, 1_736_564, 253.2, [(16, 32), (32, 16), (64, 8)]),
    ("resnet", 8, 4, 1_233_540, 177.1, [(64, 32), (128, 16), (256, 8)]),
    ("resnet", 32, 4, 7_433_860, 1083.0, [(64, 32), (128, 16), (256, 8)]),
    ("wrn", 16, 1, 180_916, 26.7, [(16, 32), (32, 16), (64, 8)]),
    ("wrn", 16, 2, 703_284, 101.1, [(32, 32), (64, 16), (128, 8)]),
    ("wrn", 40, 1, 569_780, 83.3, [(16, 32), (32, 16), (64, 8)]),
    ("wrn", 40, 2, 2_255_156, 327.6, [(32, 32), (64, 16), (128, 8)]),
]


@pytest.mark.parametrize(("name", "depth", "width", "size", "mega", "stages"), PUBLISHED)
def test_published_sizes(
    name: str, depth: int, width: int, size: int, mega: float, stages: list[tuple[int, int]]
) -> None:
    model = students.create(name, depth=depth, width=width).build(CIFAR, 100)
    assert measure.parameters(model) == size
    assert round(measure.macs(model, CIFAR) / 1e6, 1) == mega


@pytest.mark.parametrize("row", [PUBLISHED[7], PUBLISHED[10]], ids=["resnet8x4", "wrn_16_2"])
def test_published_feature_shapes(row: tuple[str, int, int, int, float, list[tuple[int, int]]]) -> None:
    name, depth, width, size, _, stages = row
    spec = probe(students.create(name, depth=depth, width=width).build(CIFAR, 100), CIFAR)
    assert [(s.channels, s.size) for s in spec.stages] == [(channels, (side, side)) for channels, side in stages]
    assert (spec.embedding, spec.parameters) == (stages[-1][0], size)


@pytest.mark.parametrize("name", students.names())
@pytest.mark.parametrize(("shape", "classes"), [(DIGITS, 10), (CIFAR, 100)], ids=["digits", "cifar"])
def test_forward_and_backward(name: str, shape: tuple[int, int, int], classes: int) -> None:
    model = students.create(name, **SMALL.get(name, {})).build(shape, classes)
    logits = model(torch.randn(4, *shape))
    assert logits.shape == (4, classes)
    logits.square().mean().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    assert any(bool(g.any()) for g in gradients if g is not None)


@pytest.mark.parametrize("name", students.names())
def test_declares_itself(name: str) -> None:
    family = students.create(name)
    assert family.hyper == {key: parameter.default for key, parameter in family.parameters.items()}
    assert family.title
    assert family.year > 1990
    for parameter in family.parameters.values():
        parameter.distribution()
        assert parameter.check(parameter.default) == parameter.default


@pytest.mark.parametrize("name", [n for n in students.names() if n != "timm"])
def test_thinned_and_widened(name: str) -> None:
    family = students.create(name)
    thin, wide = family.thinned(0.5), family.widened(2.0)
    assert isinstance(thin, StudentFamily)
    assert isinstance(wide, StudentFamily)
    sizes = []
    for member in (thin, family, wide):
        sizes.append(measure.macs(member.build(CIFAR, 10), CIFAR))
    assert sizes[0] < 0.4 * sizes[1]
    assert sizes[2] > 2.5 * sizes[1]
    assert type(thin) is type(family)


def test_a_family_that_cannot_be_thinned_says_so() -> None:
    assert students.create("timm").thinned(0.5) is None
    assert students.create("resnet", width=0.0625).thinned(0.5) is None


def test_convolutional_families_expose_their_activations() -> None:
    for name in ("resnet", "wrn", "cnn"):
        model = students.create(name).build(CIFAR, 10)
        assert any(isinstance(m, nn.ReLU) for m in model.modules())
        assert isinstance(model.head, nn.Linear)


def test_distillation_token() -> None:
    family = students.create("vit", depth=3, dim=48)
    model: Any = family.build(CIFAR, 10, branches=frozenset({"distillation_token"}))
    model.set_distilled_training(True)
    logits, second = model(torch.randn(2, *CIFAR))
    assert logits.shape == second.shape == (2, 10)
    model.eval()
    assert model(torch.randn(2, *CIFAR)).shape == (2, 10)
    with pytest.raises(ValueError, match="resnet has no branch 'distillation_token'; it supports none"):
        students.create("resnet").build(CIFAR, 10, branches=frozenset({"distillation_token"}))


def test_vit_takes_other_resolutions_and_sides_that_are_no_multiple_of_the_patch() -> None:
    model = students.create("vit", patch=8, depth=3, dim=48).build((3, 30, 22), 10)
    for shape in ((3, 30, 22), (3, 15, 11), (3, 48, 48)):
        assert model(torch.randn(2, *shape)).shape == (2, 10)


def test_timm_transformers_are_built_for_the_data() -> None:
    model = students.create("timm", model="vit_tiny_patch16_224").build((1, 32, 32), 7)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert model(torch.randn(2, 1, 48, 48)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("resnt", {}, "did you mean 'resnet'"),
        ("resnet", {"depth": 21}, "resnet.depth must be 6n \\+ 2, not 21; nearest: 20 and 26"),
        ("wrn", {"depth": 20}, "wrn.depth must be 6n \\+ 4, not 20; nearest: 16 and 22"),
        ("resnet", {"width": 0}, "resnet.width must lie in"),
        ("vit", {"dim": 50, "heads": 3}, "vit.dim must be a multiple of its 3 heads, not 50; nearest: 48"),
        ("cnn", {"chanels": 4}, "did you mean 'channels'"),
        ("timm", {"model": ""}, "timm.model must be a text"),
    ],
)
def test_mistakes_get_one_clear_line(name: str, hyper: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        students.create(name, **hyper)


def test_unknown_timm_names_are_reported_when_built() -> None:
    with pytest.raises(ValueError, match="timm has no model 'resnet19'; did you mean 'resnet1"):
        students.create("timm", model="resnet19").build(CIFAR, 10)
    with pytest.raises(ValueError, match="timm has no model 'hf-hub:somebody/something'"):
        students.create("timm", model="hf-hub:somebody/something").build(CIFAR, 10)


def test_measuring_leaves_the_model_as_it_was() -> None:
    model: Any = students.create("resnet", depth=8).build(DIGITS, 10)
    model.stage2.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    measure.macs(model, DIGITS)
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_macs_count_convolutions_and_linear_layers() -> None:
    grouped = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 10))
    assert measure.macs(grouped, (4, 8, 8)) == 36 * 8 * 2 * 9 + 8 * 36 * 10
    with torch.device("meta"):
        assert measure.macs(nn.Conv2d(1, 4, 3), DIGITS) == 36 * 4 * 9


def test_declarations_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from kdsearch.search_space import students\n"
        "for cls in (*students.STUDENTS, *students.TRANSFORMS): cls()\n"
        "assert 'resnet' in students.names()\n"
        "print([m for m in ('torch', 'timm', 'optuna', 'torch_pruning') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
