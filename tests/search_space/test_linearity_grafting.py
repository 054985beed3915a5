"""Linearity grafting: plain ReLUs until the revision, lines for the chosen neurons after it, state that survives."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch import kd_methods
from kdsearch.kd_methods.optimizer._decay import groups
from kdsearch.runs.thinning import thin
from kdsearch.search_space import students
from kdsearch.search_space.students import TRANSFORMS, measure
from kdsearch.search_space.students.networks.grafted import Grafted, graft

from .transformed import CIFAR, DIGITS, FixedWidth, agrees_in_other_formats, built, exports, trained, trains

TRANSFORM: Any = TRANSFORMS["linearity_grafting"]


def layers(model: nn.Module) -> list[Grafted]:
    return [m for m in model.modules() if isinstance(m, Grafted)]


def grafted(name: str = "cnn", **hyper: Any) -> Any:
    transform = TRANSFORM(**hyper)
    model = built(students.create(name, **({"depth": 8} if name == "resnet" else {"channels": 4})), transform)
    transform.revise(model, torch.randn(300, *DIGITS))
    return model


@pytest.mark.parametrize(("name", "hyper"), [("cnn", {}), ("resnet", {"depth": 8}), ("wrn", {"depth": 10})])
def test_until_the_revision_it_is_the_student_it_was(name: str, hyper: dict[str, Any]) -> None:
    family = students.create(name, **hyper)
    model, plain = built(family, TRANSFORM()), built(family, TRANSFORMS["none"]())
    assert len(layers(model)) == sum(type(m) is nn.ReLU for m in plain.modules())
    assert not [m for m in model.modules() if type(m) is nn.ReLU]
    images = torch.randn(4, *DIGITS)
    for network in (model, plain):
        network(images).square().mean().backward()
    torch.testing.assert_close(model(images), plain(images))
    weights = dict(model.named_parameters())
    for key, p in plain.named_parameters():
        torch.testing.assert_close(weights[key].grad, p.grad)
    lines = [p for key, p in weights.items() if key.endswith(("slope", "offset"))]
    assert all(p.grad is not None and not p.grad.any() for p in lines)
    assert measure.macs(model, DIGITS) == measure.macs(plain, DIGITS)
    neurons = sum(layer.mask.numel() for layer in layers(model))
    assert measure.parameters(model) - measure.parameters(plain) == pytest.approx(neurons, abs=len(lines))


def test_chosen_neurons_are_lines_and_the_others_are_not() -> None:
    layer = Grafted((3, 2, 2), 0.25)
    order = torch.tensor([11, 0, 5, *(k for k in range(12) if k not in (0, 5, 11))])
    layer.graft(order)
    assert layer.mask.flatten().nonzero().flatten().tolist() == [0, 5, 11]
    with torch.no_grad():
        layer.slope.copy_(torch.tensor([0.5, -1.0, 2.0]))
        layer.offset.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.randn(7, 3, 2, 2)
    expected = x.relu().flatten(1)
    for neuron, a, b in ((0, 0.5, 1.0), (5, -1.0, 2.0), (11, 2.0, 3.0)):
        expected[:, neuron] = a * x.flatten(1)[:, neuron] + b
    torch.testing.assert_close(layer(x).flatten(1), expected)


def test_new_lines_start_as_the_authors_do_and_learn() -> None:
    model = grafted()
    for layer in layers(model):
        assert set(layer.slope.tolist()) == {torch.tensor(0.4).item()}
        assert not layer.offset.any()
        assert int(layer.mask.sum()) == round(0.5 * layer.mask.numel())
    trains(model)
    assert all(layer.slope.grad is not None and bool(layer.slope.grad.any()) for layer in layers(model))


def test_gradient() -> None:
    layer = Grafted((2, 2, 2), 0.5).double()
    layer.graft(torch.arange(7, -1, -1))
    x = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"slope": slope, "offset": offset}, (x,))

    assert torch.autograd.gradcheck(function, (x, layer.slope, layer.offset))


class Pixels(nn.Module):
    """Its one ReLU reads the pixels themselves."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.act = Grafted((1, 2, 2), share)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x).flatten(1)


def test_selection_by_magnitude_takes_the_smallest_inputs() -> None:
    model = Pixels(0.5)
    size = torch.tensor([[3.0, 0.5], [1.0, 9.0]])
    images = size * torch.randn(64, 1, 2, 2).sign()
    graft(model, images, eps=0.1, by_stability=False)
    assert model.act.neurons.tolist() == [1, 2]


def test_instability_makes_up_for_significance() -> None:
    """Large on the whole, but near zero on half of the images, beside one that is small and never near zero."""
    model = Pixels(0.25)
    images = torch.full((64, 1, 2, 2), 5.0)
    images[:, 0, 0, 0] = torch.where(torch.arange(64) % 2 == 0, 0.01, 1.5)
    images[:, 0, 0, 1] = 0.7
    images[0, 0, 1] = 0.01
    graft(model, images, eps=0.1, by_stability=False)
    assert model.act.neurons.tolist() == [1]
    graft(model, images, eps=0.1, by_stability=True)
    assert model.act.neurons.tolist() == [0]


def test_the_revision_is_a_function_of_the_images_alone() -> None:
    transform = TRANSFORM()
    model = built(students.create("cnn", channels=4), transform).train()
    other = copy.deepcopy(model)
    statistics = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    images = torch.randn(200, *DIGITS)
    state = torch.get_rng_state()
    transform.revise(model, images)
    transform.revise(other, images)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(layers(model), layers(other), strict=True))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in statistics.items())
    assert model.training


def test_a_state_dict_holds_everything() -> None:
    model = grafted("resnet").eval()
    with torch.no_grad():
        for layer in layers(model):
            layer.slope.uniform_(-1, 1)
    fresh = built(students.create("resnet", depth=8), TRANSFORM())
    fresh.load_state_dict(model.state_dict())
    images = torch.randn(4, *DIGITS)
    assert torch.equal(fresh.eval()(images), model(images))


def test_onnx(tmp_path: Path) -> None:
    exports(grafted(), tmp_path / "student.onnx", DIGITS)


def test_other_resolutions_take_the_nearest_lines() -> None:
    layer = Grafted((1, 2, 2), 0.5)
    layer.graft(torch.tensor([0, 3, 1, 2]))
    with torch.no_grad():
        layer.slope.copy_(torch.tensor([2.0, 3.0]))
    x = -torch.ones(1, 1, 4, 4)
    assert layer(x)[0, 0].tolist() == [[-2, -2, 0, 0], [-2, -2, 0, 0], [0, 0, -3, -3], [0, 0, -3, -3]]
    model = grafted()
    assert model(torch.randn(2, 1, 6, 6)).shape == (2, 10)
    TRANSFORM().revise(model, torch.randn(32, 1, 6, 6))
    assert all(int(layer.mask.sum()) == len(layer.neurons) for layer in layers(model))
    with pytest.raises(ValueError, match="grafted neurons of 1 channels cannot take 2"):
        layer(torch.ones(1, 2, 2, 2))


def test_other_formats_and_precisions() -> None:
    transform = TRANSFORM()
    model = built(students.create("resnet", depth=8), transform, CIFAR)
    transform.revise(model, torch.randn(32, *CIFAR))
    agrees_in_other_formats(model)


class ByFunction(nn.Module):
    """Holds one activation as a function and uses a module twice."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)
        self.function, self.module, self.twice = F.relu, nn.ReLU(), twice

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        maps = self.module(self.module(maps)) if self.twice else self.function(maps)
        return self.head(maps.mean((2, 3)))


def test_functions_that_modules_hold_and_modules_that_run_twice(caplog: pytest.LogCaptureFixture) -> None:
    model = ByFunction(twice=False)
    model.built_for = DIGITS  # type: ignore[assignment]
    assert isinstance(TRANSFORM().apply(model).function, Grafted)
    model = ByFunction(twice=True)
    model.built_for = DIGITS  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"can replace no ReLU of this student \(module: runs 2 times in a pass\)"):
        TRANSFORM().apply(model)
    with pytest.raises(ValueError, match=r"can replace no ReLU of this student \(none\)"):
        built(students.create("vit", depth=3, dim=48), TRANSFORM())
    with pytest.raises(ValueError, match=r"needs a student of StudentFamily\.build"):
        TRANSFORM().apply(ByFunction(twice=False))
    mixed = nn.Sequential(ByFunction(twice=True), nn.Linear(10, 10), nn.ReLU())
    mixed.built_for = DIGITS  # type: ignore[assignment]
    with caplog.at_level(logging.INFO):
        TRANSFORM().apply(mixed)
    assert "left 1 ReLUs as they are: 0.module: runs 2 times in a pass" in caplog.text


@pytest.mark.parametrize("name", ["sgd", "adamw", "dot", "lamb"])
def test_lines_take_no_weight_decay(name: str) -> None:
    model = built(students.create("cnn", channels=4), TRANSFORM()).to(memory_format=torch.channels_last)
    parameters = list(model.parameters())
    optimizer = kd_methods.create(name, lr=0.1, weight_decay=0.1).build(parameters)  # type: ignore[attr-defined]
    given = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(given, parameters, strict=True))
    model(torch.randn(4, *DIGITS)).square().mean().backward()
    weights = model.head.weight.detach().clone()
    optimizer.step()
    assert all(set(layer.slope.tolist()) == {torch.tensor(0.4).item()} for layer in layers(model))
    assert not torch.equal(model.head.weight, weights)


def test_ordinary_parameters_stay_one_group() -> None:
    parameters: list[Tensor] = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    assert groups(parameters) is parameters
    parameters[1].no_weight_decay = True  # type: ignore[attr-defined]
    assert groups(parameters) == [{"params": [parameters[0]]}, {"params": [parameters[1]], "weight_decay": 0.0}]


def test_thinning() -> None:
    model: Any
    model, note = thin(students.create("cnn", channels=8), TRANSFORM(), DIGITS, 10, 0.5, 0)
    assert note == ""
    assert layers(model)[0].mask.shape == (4, 8, 8)
    model, note = thin(FixedWidth(), TRANSFORM(), DIGITS, 10, 0.5, 0)
    assert note == "student fixed_width was not thinned: grafted neurons of 8 channels cannot take 4"
    assert model(torch.randn(2, *DIGITS)).shape == (2, 10)


def test_when_it_wants_to_be_called() -> None:
    assert TRANSFORM().revision == 0.5
    assert TRANSFORM(revision=0.25).revision == 0.25
    assert TRANSFORMS["none"]().revision is None


def test_a_training_through_the_public_interface(tmp_path_factory: pytest.TempPathFactory) -> None:
    student = trained({"method": "linearity_grafting", "share": 0.3}, tmp_path_factory.getbasetemp() / "cache")
    assert len(layers(student.module)) == 3
    assert student.test["accuracy"] > 0.2


def test_a_training_that_is_grafted_half_way() -> None:
    """By hand, as a run does it: lines move only after the revision, and the loss falls on."""
    torch.manual_seed(0)
    transform = TRANSFORM(share=0.5)
    model = built(students.create("cnn", channels=4), transform)
    optimizer = kd_methods.create("sgd", lr=0.1).build(list(model.parameters()))  # type: ignore[attr-defined]
    images = torch.randn(128, *DIGITS)
    labels = (images.mean((1, 2, 3)) > 0).long()
    losses = []
    for step in range(60):
        if step == 30:
            assert all(set(layer.slope.tolist()) == {torch.tensor(0.4).item()} for layer in layers(model))
            transform.revise(model, images)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(bool((layer.slope != 0.4).any()) for layer in layers(model))
