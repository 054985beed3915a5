"""The tap: signals are the true ones, gradients flow through them, and it leaves no trace."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.kd_methods import Need
from kdsearch.kd_methods.tap import Tap, probe
from kdsearch.search_space import students

from .architectures import ALL_FEATURES, CIFAR, build, measured


class SharedReLU(nn.Module):
    """One in-place activation for everything."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.stage = nn.ModuleDict({"conv": nn.Conv2d(6, 6, 3, 2, 1)})
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        x = self.relu(self.stage["conv"](x))
        return self.head(self.relu(x - 0.1).mean((2, 3)))


def test_the_probe_leaves_no_trace() -> None:
    model: Any = students.create("resnet", depth=8).build(CIFAR, 10)
    model.stage2.eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes, seed = [m.training for m in model.modules()], torch.get_rng_state()
    probe(model, CIFAR)
    with Tap(model, probe(model, CIFAR), frozenset({Need.PREACT})):
        pass
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(seed, torch.get_rng_state())
    assert hooks(model) == 0
    assert all(m.inplace for m in model.modules() if isinstance(m, nn.ReLU))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("training", [True, False])
def test_signals_equal_a_manual_forward(training: bool) -> None:
    torch.manual_seed(1)
    model: Any = students.create("resnet", depth=8).build(CIFAR, 10).train(training)
    images = torch.randn(4, *CIFAR)
    manual = copy.deepcopy(model)

    def stage(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        inner = F.relu(block.bn1(block.conv1(x)))
        before = block.bn2(block.conv2(inner)) + block.shortcut(x)
        return before, F.relu(before)

    x = F.relu(manual.stem.bn(manual.stem.conv(images)))
    befores, afters = [], []
    for part in (manual.stage1, manual.stage2, manual.stage3):
        before, x = stage(part[0], x)
        befores.append(before)
        afters.append(x)
    with Tap(model, probe(model, CIFAR), ALL_FEATURES) as tap:
        signals = tap(images)
    assert model.training is training
    for expected, found in zip((*befores, *afters), (*signals.preact, *signals.features), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(signals.embedding, x.mean((2, 3)))
    torch.testing.assert_close(signals.logits, manual.head(x.mean((2, 3))))
    assert any(bool((p < 0).any()) for p in signals.preact)


@pytest.mark.parametrize("name", ["resnet18", "torchvision", "cnn"])
def test_activation_of_the_preactivation_is_the_feature(name: str) -> None:
    """In-place activations, and torchvision's blocks that use one module twice."""
    model = build(name).eval()
    with Tap(model, measured(name), ALL_FEATURES) as tap:
        signals = tap(torch.randn(2, *CIFAR))
    for before, after in zip(signals.preact, signals.features, strict=True):
        assert bool((before < 0).any())
        torch.testing.assert_close(F.relu(before), after)


def test_an_activation_that_serves_several_stages() -> None:
    model = SharedReLU()
    spec = probe(model, CIFAR)
    # The activation's last call is at 16 pixels, so the first resolution ends in what has a call of its own.
    assert [(s.path, s.size) for s in spec.stages] == [("conv1", (32, 32)), ("relu", (16, 16))]
    images = torch.randn(2, *CIFAR)
    with Tap(model, spec, ALL_FEATURES) as tap:
        signals = tap(images)
    inner = F.relu(model.stage["conv"](F.relu(model.conv1(images))))
    torch.testing.assert_close(signals.preact[1], inner - 0.1)
    torch.testing.assert_close(signals.features[1], F.relu(inner - 0.1))
    assert model.relu.inplace


def test_a_stage_without_a_final_activation_gives_its_output() -> None:
    with Tap(build("wrn"), measured("wrn"), ALL_FEATURES) as tap:
        signals = tap(torch.randn(2, *CIFAR))
    for before, after in zip(signals.preact, signals.features, strict=True):
        assert before is after


class AddsAfterwards(nn.Module):
    """Returns the activation's own tensor, but with something added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.conv(x))
        out += x
        return out


def test_what_is_changed_after_its_activation_has_no_final_activation() -> None:
    body = (nn.Conv2d(3, 4, 3, padding=1), AddsAfterwards(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(*body, nn.Linear(4, 10))
    spec = probe(model, CIFAR)
    assert [s.path for s in spec.stages] == ["1"]
    with Tap(model, spec, ALL_FEATURES) as tap:
        signals = tap(torch.randn(2, *CIFAR))
    assert signals.preact[0] is signals.features[0]


def test_stages_come_in_the_order_asked_for() -> None:
    model, spec = build("resnet").eval(), measured("resnet")
    images = torch.randn(2, *CIFAR)
    with Tap(model, spec, ALL_FEATURES) as whole, Tap(model, spec, ALL_FEATURES, [2, 0]) as some:
        every, chosen = whole(images), some(images)
    assert len(every.features) == 3
    for name in ("features", "preact"):
        assert torch.equal(getattr(chosen, name)[0], getattr(every, name)[2])
        assert torch.equal(getattr(chosen, name)[1], getattr(every, name)[0])
    with pytest.raises(ValueError, match="stages 0 to 2, not 3"):
        Tap(model, spec, ALL_FEATURES, [3])
    with pytest.raises(ValueError, match="no module 'stage9'"):
        Tap(model, replace(spec, stages=(replace(spec.stages[0], path="stage9"),)), ALL_FEATURES)


def test_hooks_are_those_asked_for() -> None:
    model, spec = build("resnet"), measured("resnet")
    for needs, count in (
        ({Need.LOGITS}, 0),
        ({Need.LOGITS, Need.CLASSIFIER}, 0),
        ({Need.INPUT_GRADIENT}, 0),
        ({Need.EMBEDDING}, 1),
        ({Need.FEATURES}, 3),
        ({Need.PREACT}, 6),
    ):
        with Tap(model, spec, frozenset(needs)):
            assert hooks(model) == count
        assert hooks(model) == 0
    with Tap(model, spec, frozenset({Need.LOGITS})) as tap:
        signals = tap(torch.randn(2, *CIFAR))
    assert signals.features == []
    assert signals.preact == []
    assert (signals.embedding, signals.classifier, signals.input_gradient) == (None, None, None)


def test_nothing_stays_alive() -> None:
    model, spec = build("torchvision").eval(), measured("torchvision")
    with Tap(model, spec, ALL_FEATURES) as tap:
        signals = tap(torch.randn(2, *CIFAR))
        alive = [weakref.ref(t) for t in (*signals.features, *signals.preact, signals.embedding)]
        del signals
        gc.collect()
        assert [ref() for ref in alive] == [None] * len(alive)
        model(torch.randn(2, *CIFAR))
        copy.deepcopy(model)(torch.randn(2, *CIFAR))
        slots = (*tap._features, *tap._preact, *tap._entering, *tap._embedding)
        assert all(slot is None for slot in slots)
        with pytest.raises(RuntimeError):
            tap(torch.randn(2, 4, 32, 32))
        slots = (*tap._features, *tap._preact, *tap._entering, *tap._embedding)
        assert all(slot is None for slot in slots)


def test_in_place_activations_wait_for_the_last_tap() -> None:
    model: Any = students.create("resnet", depth=8).build(CIFAR, 10)
    spec = probe(model, CIFAR)
    first = Tap(model, spec, frozenset({Need.PREACT}))
    second = Tap(model, spec, frozenset({Need.PREACT}))
    assert not model.stage1[0].relu2.inplace
    assert model.stage1[0].relu1.inplace
    first.close()
    first.close()
    signals = second(torch.randn(2, *CIFAR))
    assert all(bool((p < 0).any()) for p in signals.preact)
    second.close()
    assert model.stage1[0].relu2.inplace


def test_gradients_flow_through_every_signal() -> None:
    model = students.create("resnet", depth=8).build(CIFAR, 10)
    with Tap(model, probe(model, CIFAR), ALL_FEATURES) as tap:
        signals = tap(torch.randn(4, *CIFAR))
        parts = [signals.logits, *signals.features, *signals.preact, signals.embedding]
        torch.stack([part.square().mean() for part in parts if part is not None]).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_autocast_and_channels_last() -> None:
    model = students.create("resnet", depth=8).build(CIFAR, 10).eval()
    spec, images = probe(model, CIFAR), torch.randn(4, *CIFAR)
    with torch.no_grad(), Tap(model, spec, ALL_FEATURES) as tap:
        plain = tap(images)
        with torch.autocast("cpu", torch.bfloat16):
            half = tap(images)
        model.to(memory_format=torch.channels_last)
        last = tap(images.contiguous(memory_format=torch.channels_last))
    assert half.features[0].dtype is torch.bfloat16
    assert last.features[0].is_contiguous(memory_format=torch.channels_last)
    for a, b, c in zip(plain.features, half.features, last.features, strict=True):
        torch.testing.assert_close(b.float(), a, rtol=0.1, atol=0.1)
        torch.testing.assert_close(c, a, rtol=1e-4, atol=1e-4)


def test_a_second_head_in_training() -> None:
    name = "deit_tiny_distilled_patch16_224"
    model: Any = build(name)
    needs = frozenset({Need.DISTILLATION_HEAD, Need.EMBEDDING, Need.CLASSIFIER})
    with Tap(model.train(), measured(name), needs) as tap:
        signals = tap(torch.randn(2, *CIFAR))
        assert signals.distillation_head is not None
        assert signals.embedding is not None
        assert signals.classifier is not None
        torch.testing.assert_close(F.linear(signals.embedding, *signals.classifier), signals.logits)
        assert not torch.equal(signals.distillation_head, signals.logits)
        assert tap.model.eval()(torch.randn(2, *CIFAR)).shape == (2, 10)
        assert tap(torch.randn(2, *CIFAR)).distillation_head is None
    assert model.distilled_training is False
    with (
        Tap(build("resnet").train(), measured("resnet"), needs) as plain,
        pytest.raises(ValueError, match="gives no second head"),
    ):
        plain(torch.randn(2, *CIFAR))


def smooth() -> Iterator[Any]:
    """Small networks in double precision: attention with GELU, and convolutions with ReLU."""
    torch.manual_seed(3)
    yield pytest.param(students.create("vit", depth=1, dim=8, heads=2).build((1, 8, 8), 3), id="vit")
    yield pytest.param(students.create("cnn", channels=4, stages=2).build((1, 8, 8), 3), id="cnn")
    swin: dict[str, Any] = {"depths": (2,), "embed_dim": 8, "num_heads": (2,), "in_chans": 1, "num_classes": 3}
    swin |= {"img_size": 8, "patch_size": 2, "window_size": 2}
    yield pytest.param(timm.create_model("swin_tiny_patch4_window7_224", **swin), id="swin")
    yield pytest.param(Torchlike(), id="multihead")


class Torchlike(nn.Module):
    """torch's own attention module."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 4, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).mT
        return self.head((tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]).mean(1))


@pytest.mark.parametrize("model", list(smooth()))
def test_input_gradient_and_its_own_gradient_match_finite_differences(model: nn.Module) -> None:
    model.double().eval()
    torch.manual_seed(4)
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    target = torch.tensor([0, 2, 1])
    direction = torch.randn_like(images)
    with Tap(model, probe(model, (1, 8, 8)), frozenset({Need.INPUT_GRADIENT})) as tap:
        signals = tap(images, target, create_graph=True)
        gradient = signals.input_gradient
        assert gradient is not None

        def score(x: Tensor) -> Tensor:
            return model(x).gather(1, target[:, None]).sum().detach()

        step = 1e-6
        slope = (score(images + step * direction) - score(images - step * direction)) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-8)

        weight = next(p for p in model.parameters() if p.ndim == 4)
        loss = (gradient * direction).square().sum()
        (second,) = torch.autograd.grad(loss, weight)
        push = torch.randn_like(weight)

        def moved(size: float) -> Tensor:
            with torch.no_grad():
                weight.add_(push, alpha=size)
            found = tap(images, target).input_gradient
            with torch.no_grad():
                weight.sub_(push, alpha=size)
            assert found is not None
            assert not found.requires_grad
            return (found * direction).square().sum()

        curve = (moved(step) - moved(-step)) / (2 * step)
        torch.testing.assert_close((second * push).sum(), curve, rtol=1e-4, atol=1e-7)


def test_input_gradient_for_a_caller_without_gradients() -> None:
    model, spec = build("resnet").eval(), measured("resnet")
    images, target = torch.randn(2, *CIFAR), torch.tensor([1, 2])
    with Tap(model, spec, ALL_FEATURES | {Need.INPUT_GRADIENT}) as tap:
        with torch.no_grad():
            quiet = tap(images, target)
            with pytest.raises(ValueError, match="create_graph has no meaning"):
                tap(images, target, create_graph=True)
        loud = tap(images, target)
        with pytest.raises(ValueError, match="pass the target"):
            tap(images)
    assert not images.requires_grad
    assert quiet.input_gradient is not None
    assert loud.input_gradient is not None
    torch.testing.assert_close(quiet.input_gradient, loud.input_gradient)
    tensors = [quiet.logits, quiet.input_gradient, quiet.embedding, *quiet.features, *quiet.preact]
    assert not any(t.requires_grad for t in tensors if t is not None)
    loud.logits.sum().backward()  # the graph of the logits outlives the gradient that was taken
    assert any(p.grad is not None for p in model.parameters())
    model.zero_grad(set_to_none=True)
