"""Kernels of per-sample gradients against gradients taken one at a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch import proxies
from kdsearch.kd_methods.signals import UNLABELLED
from kdsearch.proxies import _kernel
from kdsearch.proxies._fresh import fresh, frozen_statistics
from kdsearch.proxies._weights import weights
from kdsearch.proxies.ntk import condition, kernel_alignment, loss_kernel, tangent_kernel
from kdsearch.search_space.students.family import create


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Shared(nn.Module):
    """One convolution called twice, its output overwritten in place, and tokens through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.mix = nn.Linear(3, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.act(self.conv(x)))
        return self.head(self.mix(x.flatten(2).mT).tanh().mean(1))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, padding_mode="reflect"),
        nn.Conv2d(8, 12, (1, 3), padding="same"),
        nn.BatchNorm2d(12),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )


class Mixed(nn.Module):
    """A linear layer on tokens whose first dimension is not the samples', twice as many, and on samples as well."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.own, self.head = nn.Linear(3, 3), nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).permute(2, 0, 1)[:10]
        tokens = self.own(self.mix(self.mix(tokens).tanh() + self.mix(x.mean((2, 3)))))
        return self.head(tokens.tanh().mean(0))


def attention() -> nn.Module:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            tokens = F.pad(x, (0, 0, 0, 0, 0, 1)).flatten(2).mT
            return self.head(self.mix(tokens, tokens, tokens, need_weights=False)[0].mean(1))

    return Attention()


def family(name: str, **hyper: Any) -> nn.Module:
    return create(name, **hyper).build((3, 8, 8), 4)


NETWORKS = {
    "shared": Shared,
    "mixed": Mixed,
    "convolutions": convolutions,
    "attention": attention,
    "vit": lambda: family("vit", dim=48, depth=3),
    "rnn": lambda: family("rnn", hidden=16),
    "gru": lambda: family("rnn", hidden=16, cell="gru"),
    "shufflenetv2": lambda: family("shufflenetv2", width=0.25, depth=0.5, last=64),
}


def one_at_a_time(model: nn.Module, images: Tensor, target: Tensor, loss: bool) -> Tensor:
    rows = []
    for k in range(len(images)):
        logits = model(images[k : k + 1])
        value = F.cross_entropy(logits, target[k : k + 1]) if loss else logits.sum() / logits.shape[1] ** 0.5
        found = torch.autograd.grad(value, weights(model), allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows) @ torch.stack(rows).T


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("loss", [False, True])
def test_kernels_are_those_of_single_gradients(name: str, loss: bool) -> None:
    images, target = draw(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    model = frozen_statistics(fresh(NETWORKS[name](), 0, gaussian=False).double(), images)
    found = loss_kernel(model, images, target) if loss else tangent_kernel(model, images)
    torch.testing.assert_close(found, one_at_a_time(model, images, target, loss), rtol=1e-8, atol=1e-10)


def test_images_without_a_label_have_no_gradient() -> None:
    images, target = draw(4, 3, 8, 8), torch.tensor([5, UNLABELLED, 2, UNLABELLED])
    model = frozen_statistics(fresh(Shared(), 0, gaussian=False).double(), images)
    found = loss_kernel(model, images, target)
    labelled = torch.tensor([0, 2])
    expected = loss_kernel(model, images[labelled], target[labelled] % 4)
    torch.testing.assert_close(found[labelled][:, labelled], expected)
    assert found[[1, 3]].abs().sum() == 0


def test_both_ways_to_a_layer_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (draw(3, 1, 20, 2), draw(3, 1, 30, 2, seed=1)), (draw(3, 2, 4, 50), draw(3, 2, 6, 50, seed=1))
    for entered, back in (few, many):
        gradient = torch.einsum("bgdp,bgep->bgde", entered, back).flatten(1)
        torch.testing.assert_close(_kernel._of_layer(entered, back), gradient @ gradient.T)
        monkeypatch.setattr(_kernel, "PIECE", 1)  # one output at a time, and never by pairs of positions
        torch.testing.assert_close(_kernel._of_layer(entered, back), gradient @ gradient.T)
        monkeypatch.undo()


def test_frozen_statistics_are_the_batch_s() -> None:
    model: Any = convolutions().double()
    images = draw(6, 3, 8, 8)
    found = frozen_statistics(model, images)(images)
    n = 6 * 4 * 4
    torch.testing.assert_close(model[1].running_var, model[0](images).var((0, 2, 3), correction=0) * n / (n - 1))
    torch.testing.assert_close(model(images[:2]), found[:2])


def test_alignment_of_kernels() -> None:
    def kernel(seed: int, width: int = 40) -> Tensor:
        rows = draw(12, width, seed=seed)
        return rows @ rows.T

    for debiased in (False, True):
        assert float(kernel_alignment(kernel(0), 3 * kernel(0), debiased=debiased)) == pytest.approx(1)
        assert float(kernel_alignment(kernel(0), kernel(1), debiased=debiased)) < 0.9
    wide = [float(kernel_alignment(kernel(0, 5000), kernel(1, 5000), debiased=d)) for d in (False, True)]
    assert wide[0] > 0.95 > 0.5 > abs(wide[1])  # diagonals alone make them alike
    features = [draw(12, 7, seed=s) - draw(12, 7, seed=s).mean(0) for s in (2, 3)]
    linear = (features[0].T @ features[1]).square().sum()
    norms = [(f.T @ f).square().sum().sqrt() for f in features]
    expected = float(linear / norms[0] / norms[1])
    assert float(kernel_alignment(*(f @ f.T for f in features))) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="four images"):
        kernel_alignment(torch.eye(3), torch.eye(3), debiased=True)
    with pytest.raises(ValueError, match="same images"):
        kernel_alignment(torch.eye(3), torch.eye(4))


def test_condition_number() -> None:
    assert float(condition(torch.diag(torch.tensor([4.0, 2.0, 1.0])))) == 4
    assert float(condition(torch.diag(torch.tensor([4.0, 0.0])))) == math.inf
    assert math.isnan(float(condition(torch.full((2, 2), math.nan))))


def test_the_trace_grows_with_the_width_of_the_classifier_s_input() -> None:
    images, target = draw(8, 3, 8, 8).float(), torch.zeros(8, dtype=torch.long)
    students = [family("cnn", channels=c) for c in (4, 16)]
    narrow, wide = (proxies.create("ntk").score(s, None, images, target, seed=0) for s in students)
    assert wide > narrow > 0


def test_an_equal_pair_is_aligned_and_a_trained_teacher_is_heard() -> None:
    images, target = draw(8, 3, 8, 8).float(), torch.arange(8) % 4
    student, teacher = family("cnn", channels=4), family("cnn", channels=4)
    kept = proxies.create("cross_ntk", teacher="trained")
    scores = [kept.score(student, teacher, images, target, seed=0)]
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(draw(*parameter.shape).float(), alpha=0.3)
    scores.append(kept.score(student, teacher, images, target, seed=0))
    assert scores[0] != scores[1]
    same = fresh(student, 0, gaussian=False)
    frozen_statistics(same, images)
    assert kept.score(student, same, images, target, seed=0) == pytest.approx(1, rel=1e-5)
    for options in ({}, {"of": "loss"}, {"debiased": True}, {"init": "gaussian"}):
        assert -1 < proxies.create("cross_ntk", **options).score(student, teacher, images, target, seed=0) < 1
