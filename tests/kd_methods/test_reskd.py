"""reskd: the sum of networks, the energy rule, and leaving networks out sample by sample."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdsearch import kd_methods
from kdsearch.kd_methods.strategy import TEACHER
from kdsearch.kd_methods.teaching._residual import Point, adaptive_curve, choose, energy, entropy

CLASSES = 5


def strategy(**hyper: Any) -> Any:
    return kd_methods.create("reskd", **hyper)


def network(seed: int, *, double: bool = False) -> nn.Module:
    """Small, with what differs between training and evaluation."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))
    return module.double() if double else module


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 2, 2, generator=torch.Generator().manual_seed(5))


def combined(count: int = 3, **hyper: Any) -> tuple[Any, list[nn.Module]]:
    networks = [network(k) for k in range(count)]
    return strategy(**hyper).combine(networks[:-1], networks[-1]), networks


def test_plan() -> None:
    plan = strategy().plan()
    assert (plan.teachers, plan.residuals, plan.residual_size) == ((TEACHER,), 3, 0.5)
    assert strategy(residuals=1, size=1.0).plan().residual_size == 1.0


def test_the_sum_of_all() -> None:
    module, networks = combined()
    module.eval()
    x = images()
    torch.testing.assert_close(module(x), sum(net(x) for net in networks))
    parts = module.cumulative(x)
    torch.testing.assert_close(parts[0], networks[0](x))
    torch.testing.assert_close(parts[1], networks[0](x) + networks[1](x))
    assert torch.equal(parts[2], module(x))


def test_only_the_last_network_is_trained() -> None:
    module, networks = combined()
    module.train()
    assert networks[-1].training
    assert not any(m.training for net in networks[:-1] for m in net.modules())
    before = [copy.deepcopy(net.state_dict()) for net in networks]
    trained = [p for p in module.parameters() if p.requires_grad]
    assert [id(p) for p in trained] == [id(p) for p in networks[-1].parameters()]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    x = images()
    assert not module.cumulative(x)[1].requires_grad, "frozen members record no graph"
    module(x).square().sum().backward()
    optimizer.step()
    for net, state in zip(networks[:-1], before, strict=False):
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    moved = networks[-1].state_dict()
    assert any(not torch.equal(value, before[-1][name]) for name, value in moved.items())


def test_gradients_by_the_images_are_the_sums() -> None:
    networks = [network(k, double=True).eval() for k in range(2)]
    module = strategy().combine(networks[:-1], networks[-1])
    x = images(2).double().requires_grad_()
    (found,) = torch.autograd.grad(module(x).sum(), x)
    parts = [torch.autograd.grad(net(x).sum(), x)[0] for net in networks]
    torch.testing.assert_close(found, parts[0] + parts[1])


def test_the_sum_is_saved_and_loaded_whole() -> None:
    module, _ = combined()
    file = io.BytesIO()
    torch.save(module.eval().state_dict(), file)
    file.seek(0)
    fresh = strategy().combine([network(7), network(8)], network(9)).eval()
    fresh.load_state_dict(torch.load(file))
    assert torch.equal(fresh(images()), module(images()))


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1)[:, :CLASSES], x


def test_of_several_outputs_the_first_counts() -> None:
    module = strategy().combine([Two()], Two())
    torch.testing.assert_close(module(images()), 2 * images().flatten(1)[:, :CLASSES])
    assert module.adaptive(images(), 0.0)[0].shape == (16, CLASSES)


def test_energy() -> None:
    generator = torch.Generator().manual_seed(0)
    gap = torch.randn(6, CLASSES, generator=generator, dtype=torch.float64)
    centred = gap - gap.mean(1, keepdim=True)
    torch.testing.assert_close(energy(gap), (centred**2).sum() / 6)
    torch.testing.assert_close(energy(gap + torch.randn(6, 1, dtype=torch.float64)), energy(gap))
    torch.testing.assert_close(energy(3 * gap), 9 * energy(gap))
    assert energy(torch.full((4, 3), 2.5)) == 0
    assert torch.autograd.gradcheck(energy, (gap.requires_grad_(),))


@pytest.mark.parametrize(
    ("energies", "enough"),
    [
        ([10.0], False),
        ([0.0], True),
        ([10.0, 5.0], False),
        ([10.0, 0.4], True),  # below 0.05 of the first
        ([10.0, 9.6], True),  # stalled
        ([10.0, 9.5], False),
        ([10.0, 12.0], True),  # worse than before
        ([10.0, 5.0, 4.8], True),
        ([10.0, 5.0, 4.0], False),
        ([10.0, 5.0, 0.0], True),
    ],
)
def test_enough(energies: list[float], enough: bool) -> None:
    assert strategy().enough(energies) is enough


def test_hyper_parameters_of_the_rule() -> None:
    assert strategy(floor=0.6).enough([10.0, 5.0])
    assert strategy(stall=0.4).enough([10.0, 5.0])
    assert not strategy(stall=1.0).enough([10.0, 9.9])


def test_adaptive_uses_all_networks_or_one() -> None:
    module, networks = combined()
    module.eval()
    x = images()
    logits, used = module.adaptive(x, 0.0)
    torch.testing.assert_close(logits, module(x))
    assert used.tolist() == [3] * len(x)
    logits, used = module.adaptive(x, math.log(CLASSES) + 1e-3)
    torch.testing.assert_close(logits, networks[0](x))
    assert used.tolist() == [1] * len(x)
    assert not logits.requires_grad


def test_adaptive_stops_each_sample_where_it_is_sure() -> None:
    module, _ = combined()
    module.eval()
    x = images(64)
    steps = torch.stack(module.cumulative(x)).detach()
    entropies = entropy(steps)
    threshold = float(entropies[:2].median())
    logits, used = module.adaptive(x, threshold)
    assert len(used.unique()) == 3
    for b in range(len(x)):
        expected = next((k for k in range(2) if entropies[k, b] < threshold), 2)
        assert used[b] == expected + 1
        torch.testing.assert_close(logits[b], steps[expected, b])


def test_entropy() -> None:
    assert entropy(torch.zeros(2, 8)).tolist() == pytest.approx([math.log(8)] * 2)
    assert entropy(torch.tensor([1000.0, 0.0, -1000.0])) == 0


def stored(samples: int, networks: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(CLASSES, (samples,), generator=generator)
    steps = torch.randn(networks, samples, CLASSES, generator=generator).cumsum(0)
    return [z + torch.nn.functional.one_hot(target, CLASSES) for z in steps], target


@pytest.mark.parametrize("networks", [2, 3, 4])
def test_curve_is_what_stopping_sample_by_sample_gives(networks: int) -> None:
    logits, target = stored(30, networks)
    costs = [1.0, 0.5, 0.25, 0.125][:networks]
    curve = adaptive_curve(logits, target, costs)
    assert curve.shape[1] == 3
    entropies = entropy(torch.stack(logits).double())
    for threshold, accuracy, cost in curve.tolist():
        last = [
            next((k for k in range(networks - 1) if entropies[k, b] < threshold), networks - 1)
            for b in range(len(target))
        ]
        right = [int(logits[k][b].argmax()) == int(target[b]) for b, k in enumerate(last)]
        assert accuracy == pytest.approx(sum(right) / len(right))
        assert cost == pytest.approx(sum(sum(costs[: k + 1]) for k in last) / len(last))
    # Every threshold between two rows gives one of the rows' results: no step is left out.
    assert len(curve) == 1 + len(entropies[:-1].cummin(0).values.unique())


def test_ends_of_the_curve() -> None:
    logits, target = stored(200, 3)
    curve = adaptive_curve(logits, target, [4.0, 2.0, 1.0])
    first, last = curve[0].tolist(), curve[-1].tolist()
    assert first == pytest.approx([0.0, float((logits[-1].argmax(1) == target).double().mean()), 7.0])
    assert last[1:] == pytest.approx([float((logits[0].argmax(1) == target).double().mean()), 4.0])
    assert (curve[1:, 0] > curve[:-1, 0]).all()
    assert (curve[1:, 2] < curve[:-1, 2]).all()


def test_curve_of_equal_samples_and_of_one_network() -> None:
    logits, target = stored(1, 2)
    repeated = [z.repeat(6, 1) for z in logits]
    curve = adaptive_curve(repeated, target.repeat(6), [1.0, 1.0])
    assert curve[:, 2].tolist() == [2.0, 1.0]
    alone = adaptive_curve(logits[:1], target, [3.0])
    assert alone.shape == (1, 3)
    assert alone[0, 2] == 3.0


def test_choose() -> None:
    curve = torch.tensor([[0.0, 0.9, 3.0], [0.1, 0.91, 2.5], [0.2, 0.8995, 2.0], [0.3, 0.85, 1.0]], dtype=torch.float64)
    assert choose(curve) == Point(0.2, 0.8995, 2.0)
    assert choose(curve, 0.0) == Point(0.1, 0.91, 2.5)
    assert choose(curve, 0.05).cost == 1.0
    assert choose(curve[:1]) == Point(0.0, 0.9, 3.0)


def test_the_chosen_threshold_does_what_the_curve_says() -> None:
    module, _ = combined()
    module.eval()
    x = images(200)
    target = module(x).argmax(1)
    costs = [4.0, 2.0, 1.0]
    point = choose(adaptive_curve(module.cumulative(x), target, costs), tolerance=0.1)
    assert 4.0 < point.cost < 7.0
    logits, used = module.adaptive(x, point.threshold)
    # Entropies are measured in float64 for the curve and in float32 here: one sample may fall on the other side.
    assert float((logits.argmax(1) == target).float().mean()) == pytest.approx(point.accuracy, abs=1.5 / len(x))
    spent = torch.tensor(costs).cumsum(0)[used - 1].mean()
    assert float(spent) == pytest.approx(point.cost, abs=7 / len(x))
