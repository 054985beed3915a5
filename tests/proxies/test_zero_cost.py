"""The zero-cost family: values of the authors' code, and what each formula says of cases that can be told by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import LayerNorm2d, RmsNorm2d
from torch import Tensor, nn

from kdsearch import proxies
from kdsearch.kd_methods.signals import UNLABELLED
from kdsearch.proxies._weights import gradients, weights
from kdsearch.proxies.autodas import autodas
from kdsearch.proxies.fisher import fisher
from kdsearch.proxies.jacobian import epe_nas, input_jacobian, jacov
from kdsearch.proxies.meco import least_eigenvalue
from kdsearch.proxies.naswot import naswot
from kdsearch.proxies.norms import summed_norms
from kdsearch.proxies.saliency import grasp, plain, snip
from kdsearch.proxies.synflow import synflow
from kdsearch.proxies.zen import log_change, log_scaling, running_variances, variances_of
from kdsearch.proxies.zico import zico
from kdsearch.search_space.students.family import create
from tests.kd_methods.golden import agrees
from tests.proxies.test_proxies import golden, network


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def on_weights(model: nn.Module, images: Tensor, target: Tensor) -> tuple[list[nn.Parameter], list[Tensor]]:
    on = weights(model)
    return on, gradients(model, images, target, on)


MEASURES = {
    "snip": lambda m, x, y: snip(*on_weights(m, x, y)),
    "plain": lambda m, x, y: plain(*on_weights(m, x, y)),
    "grad_norm": lambda m, x, y: summed_norms(on_weights(m, x, y)[1]),
    "grasp": grasp,
    "fisher": lambda m, x, y: fisher(m, x, y, weighting="weights"),
    "jacov": lambda m, x, y: jacov(input_jacobian(m, x)),
    "jacob_cov": lambda m, x, y: jacov(input_jacobian(m, x)),
    "epe_nas": lambda m, x, y: epe_nas(input_jacobian(m, x), y, 10),
    "nwot": lambda m, x, y: naswot(m, x),
    "synflow": lambda m, x, y: synflow(m, (3, 8, 8)),
    "synflow_bn": lambda m, x, y: synflow(m, (3, 8, 8), normalised=True),
}


@pytest.mark.parametrize("name", MEASURES)
def test_measures_match_the_goldens(name: str) -> None:
    document, inputs = golden("zero_cost")
    recorded = {case["label"]: case["loss"] for case in document["cases"]} | document["samsung_zero_cost_nas_values"]
    model = network(document["modules"]["net"]).train()
    value = MEASURES[name](model, inputs["inputs"], inputs["labels"])
    agrees({"loss": recorded[name]}, value.detach(), {})


def test_norms_of_layers_match_the_golden() -> None:
    document, inputs = golden("zero_cost")
    model = network(document["modules"]["net"]).train()
    on, found = on_weights(model, inputs["inputs"], inputs["labels"])
    cases = {case["label"]: case for case in document["cases"]}
    each = [float(g.norm()) for g in found]
    assert each == pytest.approx(cases["grad_norm"]["per_layer"], rel=1e-9)
    each = [float(snip([w], [g])) for w, g in zip(on, found, strict=True)]
    assert each == pytest.approx(cases["snip"]["per_layer"], rel=1e-9)


def test_scaling_of_normalisation_matches_the_golden() -> None:
    """The published measure called diswot is Zen's scaling term alone, after one pass of Gaussian weights."""
    document, _ = golden("zero_cost")
    case = next(case for case in document["cases"] if case["label"] == "diswot")
    model: Any = network(document["modules"]["net"]).train()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for k, layer in enumerate(layers):
        values = np.random.default_rng(37200 + k).standard_normal(tuple(layer.weight.shape))
        layer.weight.data = torch.from_numpy(values)
    model.bn1.reset_parameters()
    model.bn2.reset_parameters()
    images = torch.from_numpy(np.random.default_rng(37300).standard_normal((12, 3, 8, 8)))
    with torch.no_grad(), variances_of(model, unbiased=True) as found:
        model(images)
    agrees(case, log_scaling(running_variances([found])), {})
    torch.testing.assert_close(running_variances([found])[0], model.bn1.running_var)


def test_grasp_is_the_hessian_of_a_quadratic() -> None:
    """Of a linear model, by finite differences of the gradient along itself."""
    model, images, target = nn.Linear(5, 4).double(), draw(6, 5), torch.tensor([0, 1, 2, 3, 0, 1])
    weight = model.weight.detach().clone()

    def gradient(at: Tensor) -> Tensor:
        model.weight.data = at
        return gradients(model, images, target, [model.weight])[0]

    along, step = gradient(weight), 1e-5
    product = (gradient(weight + step * along) - gradient(weight - step * along)) / (2 * step)
    model.weight.data = weight
    assert float(grasp(model, images, target)) == pytest.approx(-float((weight * product).sum()), rel=1e-6)


def test_fisher_of_a_linear_layer_by_hand() -> None:
    model, images, target = nn.Linear(3, 2, bias=False).double(), draw(4, 3), torch.tensor([0, 1, 1, 0])
    logits = (images @ model.weight.T).detach()
    flow = logits * (logits.softmax(1) - nn.functional.one_hot(target, 2)) / 4
    expected = float(flow.square().mean(0).sum() / 2)
    assert float(fisher(model, images, target)) == pytest.approx(expected, rel=1e-12)
    assert float(fisher(model, images, target, weighting="weights")) == pytest.approx(3 * expected, rel=1e-12)


def test_jacov_is_best_where_images_move_the_output_differently() -> None:
    apart = torch.eye(6, dtype=torch.float64) @ torch.linalg.qr(draw(40, 6))[0].T
    alike = draw(1, 40) + 0.1 * draw(6, 40, seed=1)
    assert float(jacov(apart)) > float(jacov(alike))
    assert math.isnan(float(jacov(torch.zeros(3, 4))))  # constant rows have no correlation


def test_epe_nas_of_many_classes_compares_them() -> None:
    jacobian, target = draw(9, 30), torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 7])
    logs = torch.from_numpy(np.log(np.abs(np.corrcoef(jacobian.numpy())) + 1e-5))
    masks = [target == c for c in (0, 1, 2, 7)]
    sums = [float(logs[m][:, m].sum()) for m in masks]
    assert float(epe_nas(jacobian, target, 10)) == pytest.approx(sum(map(abs, sums)), rel=1e-9)
    means = [s / int(m.sum()) for s, m in zip(sums, masks, strict=True)]
    expected = sum(abs(a - b) for a in means for b in means) / 4
    assert float(epe_nas(jacobian, target, 1000)) == pytest.approx(expected, rel=1e-9)
    more = torch.cat([jacobian, draw(5, 30, seed=1)]), torch.cat([target, torch.full((5,), UNLABELLED)])
    assert float(epe_nas(*more, 10)) == pytest.approx(sum(map(abs, sums)), rel=1e-9)


class Functional(nn.Module):
    """Calls its nonlinearity as a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.second, self.function = nn.Linear(5, 8), nn.Linear(8, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))


@pytest.mark.parametrize("function", [torch.relu, nn.functional.relu, nn.functional.gelu, nn.SiLU(), Tensor.relu_])
def test_naswot_counts_agreeing_units(function: Any) -> None:
    model, images = Functional(function).double(), draw(4, 5)
    codes = model.first(images) > 0
    kernel = (codes[:, None] == codes[None, :]).sum(-1).double()
    assert float(naswot(model, images)) == pytest.approx(float(torch.logdet(kernel)), rel=1e-9)
    assert float(naswot(model, images[[0, 0, 1]])) == -math.inf
    with pytest.raises(ValueError, match="no rectifier"):
        naswot(model.first, images)


def test_zico_by_hand() -> None:
    two = torch.tensor([[1.0, -2.0, 5.0], [3.0, 4.0, 5.0]])  # the last one never changes
    assert float(zico([two])) == pytest.approx(math.log(2 / 1 + 3 / 1), rel=1e-6)
    assert float(zico([two], spread="signed")) == pytest.approx(math.log(2 / 1 + 3 / 3), rel=1e-6)
    assert float(zico([two, torch.ones(2, 4)])) == pytest.approx(math.log(5), rel=1e-6)
    assert float(zico([torch.ones(2, 4)])) == -math.inf
    assert math.isnan(float(zico([two, torch.full((2, 2), math.nan)])))
    steady = [torch.stack([g, 1.1 * g]) for g in (draw(20), draw(30, seed=1))]
    noisy = [torch.stack([g, 3.0 * g]) for g in (draw(20), draw(30, seed=1))]
    assert float(zico(steady)) > float(zico(noisy))


def test_meco_by_hand() -> None:
    rows = draw(4, 50)
    expected = np.linalg.eigvalsh(np.corrcoef(rows.numpy()))[0]
    assert float(least_eigenvalue(rows)) == pytest.approx(expected, rel=1e-9)
    assert float(least_eigenvalue(torch.cat([rows, rows[:1]]))) == pytest.approx(0, abs=1e-12)
    assert float(least_eigenvalue(draw(6, 6))) == 0
    assert float(least_eigenvalue(torch.cat([rows, torch.ones(1, 50, dtype=torch.float64)]))) == 0
    assert math.isnan(float(least_eigenvalue(rows.masked_fill(rows > 1, math.nan))))


def test_zen_is_blind_to_what_normalisation_divides_by() -> None:
    """Weights before batch normalisation times ten: the map stays, the scaling term grows by log 10."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-12)).double().train()
    images, noise = draw(5, 3, 6, 6), 0.01 * draw(5, 3, 6, 6, seed=1)
    found = []
    for factor in (1, 10):
        first: Any = model[0]
        first.weight.data *= factor
        first.bias.data *= factor
        with torch.no_grad(), variances_of(model) as variances:
            before, after = model(images), model(images + noise)
        found.append((float(log_change(before, after)), float(log_scaling(variances[:1]))))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert found[1][1] - found[0][1] == pytest.approx(math.log(10), rel=1e-9)
    one, other = torch.zeros(2, 3), torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    assert float(log_change(one, other)) == pytest.approx(math.log(2.5))
    assert float(log_change(one, other, norm="absolute")) == pytest.approx(math.log(3.5))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm2d(6), (4, 6, 5, 5)),
        (nn.InstanceNorm2d(6), (4, 6, 5, 5)),
        (nn.LayerNorm(6), (4, 7, 6)),
        (nn.RMSNorm(6), (4, 7, 6)),
        (nn.GroupNorm(3, 6), (4, 6, 5)),
    ],
)
def test_the_variance_is_what_a_layer_divides_by(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = draw(*shape).float()
    with variances_of(layer) as found:
        out = layer(x)
    spread = (x - x.mean()).std() / (out.detach() - out.mean().detach()).std()
    assert float(found[0].mean().sqrt()) == pytest.approx(float(spread), rel=0.1)
    counts = {nn.BatchNorm2d: 6, nn.InstanceNorm2d: 24, nn.LayerNorm: 28, nn.RMSNorm: 28, nn.GroupNorm: 12}
    assert found[0].numel() == counts[type(layer)]


@pytest.mark.parametrize("width", [5, 6])
def test_the_channels_of_a_layer_normalisation_may_come_first(width: int) -> None:
    x = draw(4, 6, 3, width).float() + torch.arange(6.0)[:, None, None]
    for layer, expected in ((LayerNorm2d(6), x.var(1, correction=0)), (RmsNorm2d(6), x.square().mean(1))):
        with variances_of(layer) as found:
            layer(x)
        torch.testing.assert_close(found[0], expected)


def test_synflow_leaves_out_every_normalisation() -> None:
    def flow(norm: Any) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 4 * 4, 2))
        return float(synflow(model, (3, 8, 8)).detach())

    expected = flow(nn.Identity())
    for norm in (nn.RMSNorm(6), RmsNorm2d(6), nn.InstanceNorm2d(6), LayerNorm2d(6), nn.BatchNorm2d(6)):
        assert flow(norm) == pytest.approx(expected), type(norm).__name__


def test_autodas_is_a_closed_form() -> None:
    assert autodas([(4, 3, 3, 3), (8, 4, 1, 1)]) == pytest.approx(math.log(4) * 108**0.5 + math.log(8) * 32**0.5)
    images, target = torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.long)
    student = create("resnet_s1", blocks1=1, blocks2=1, blocks3=1).build((3, 32, 32), 100)
    # The score that Auto-DAS' own expression gave for network 111 of S1, with a random gradient.
    assert proxies.create("autodas").score(student, None, images, target, seed=0) == pytest.approx(2521.538, rel=2e-4)


def test_sizes_grow_with_size() -> None:
    images, target = torch.zeros(4, 3, 16, 16), torch.zeros(4, dtype=torch.long)
    students = [create("resnet", depth=8, width=w).build((3, 16, 16), 10) for w in (0.5, 1.0, 2.0)]
    for name in ("params", "macs", "autodas", "l2_norm", "synflow"):
        scores = [proxies.create(name).score(student, None, images, target, seed=0) for student in students]
        assert sorted(scores) == scores, name
    deep = create("resnet", depth=26, width=4.0).build((3, 16, 16), 10)  # of some eighty times the work
    small, large = (
        proxies.create("latency").score(student, None, images, target, seed=0) for student in (students[0], deep)
    )
    assert large < small < 0
