"""What is scored is a copy with fresh weights: whatever was handed in, however it started and whoever listens."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch import proxies
from kdsearch.proxies._attention import AveragingAttention
from kdsearch.proxies._fresh import fresh
from kdsearch.proxies.diswot import semantic_similarity


class Branch(nn.Module):
    """A residual block with a scale that starts at zero, dropout, and a normalisation that starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.5)
        self.gamma = nn.Parameter(torch.zeros(width, 1, 1))
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.drop(self.norm(self.conv(x)))


def network(width: int = 6) -> nn.Module:
    layers = [nn.Conv2d(1, width, 3, 1, 1), nn.ReLU(), Branch(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(12, 1, 8, 8, generator=generator), torch.randint(10, (12,), generator=generator)


@pytest.mark.parametrize("name", sorted(set(proxies.names()) - {"latency"}))
def test_weights_that_were_handed_in_play_no_part(name: str, batch: tuple[Tensor, Tensor]) -> None:
    student, teacher = network(), network()
    score = proxies.create(name).score(student, teacher, *batch, seed=0)
    for parameter in (*student.parameters(), *teacher.parameters()):
        parameter.data.uniform_(-1, 1)
    student.requires_grad_(False).train()
    assert proxies.create(name).score(student, network(), *batch, seed=0) == score
    assert not any(parameter.requires_grad for parameter in student.parameters())
    assert all(module.training for module in student.modules())


def test_residual_scales_are_not_zero() -> None:
    copied: Any = fresh(network(), 0, gaussian=False)[2]  # type: ignore[index]
    assert copied.gamma.eq(1).all()
    assert copied.norm.weight.eq(1).all()
    assert copied.norm.training
    assert not copied.drop.training


def test_no_accelerator_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    fresh(network(), 0, gaussian=True)
    assert not seeded


def test_a_listener_on_the_original_hears_nothing(batch: tuple[Tensor, Tensor]) -> None:
    student, heard = network(), []
    handles = [student.register_forward_hook(lambda *_: heard.append("out"))]
    handles += [student[2].register_forward_pre_hook(lambda *_: heard.append("in"))]  # type: ignore[index]
    for name in proxies.names():
        proxies.create(name).score(student, network(), *batch, seed=0)
    assert not heard
    student(batch[0])
    assert heard == ["in", "out"]
    for handle in handles:
        handle.remove()


def test_equal_architectures_are_not_equal_networks(batch: tuple[Tensor, Tensor]) -> None:
    assert proxies.create("diswot").score(network(), network(), *batch, seed=0) < -1e-4


def test_the_teacher_is_scored_anew_for_another_batch_or_seed(batch: tuple[Tensor, Tensor]) -> None:
    proxy, student, teacher = proxies.create("diswot"), network(), network()
    images, target = batch
    shown = [(images, target, 0), (images.flip(0), target, 0), (images, target.flip(0), 0), (images, target, 1)]
    kept = [proxy.score(student, teacher, a, b, seed=seed) for a, b, seed in shown]
    alone = [proxy.score(student, network(), a, b, seed=seed) for a, b, seed in shown]
    assert kept == alone
    assert len(set(kept)) == 4


def test_semantic_similarity_is_what_the_outer_products_say() -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(7, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    s[3], t[2], s[1, 4] = 0, 1e-8, 0  # an absent class, rows shorter than the norm's epsilon, a silent channel

    def outer(g: Tensor) -> Tensor:
        return F.normalize(g[:, :, None] * g[:, None, :], dim=2)

    expected = -(outer(t) - outer(s)).square().sum() / (7 * 9)
    assert semantic_similarity(s, t).item() == pytest.approx(expected.item(), rel=1e-12)
    wide = torch.randn(1000, 2048, generator=generator)  # the outer products would take 34 GB
    assert semantic_similarity(wide, wide).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("fused", [True, False])
def test_attention_averages_its_tokens(fused: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    tokens = torch.randn(2, 5, 8)
    with AveragingAttention():
        out, weights = attention(tokens, tokens, tokens, need_weights=not fused)
    torch.testing.assert_close(out, out.mean(1, keepdim=True).expand_as(out))
    if not fused:
        torch.testing.assert_close(weights, torch.full((2, 5, 5), 0.2))
    plain, _ = attention(tokens, tokens, tokens)
    assert not torch.allclose(plain, plain.mean(1, keepdim=True).expand_as(plain))
    with AveragingAttention():
        assert F.scaled_dot_product_attention(tokens, tokens, value=tokens).equal(
            tokens.mean(1, keepdim=True).expand_as(tokens)
        )
        assert tokens.softmax(-1).eq(1 / 8).all()
        assert F.softmax(tokens, dim=1).eq(0.2).all()


def test_not_finite_is_worst(batch: tuple[Tensor, Tensor]) -> None:
    class Endless(proxies.Proxy):
        name = "endless"

        def measure(self, *args: Any, **kwargs: Any) -> float:
            return math.inf

    assert Endless().score(network(), None, *batch, seed=0) == -math.inf


def test_listing_needs_no_torch() -> None:
    code = (
        "import sys; from kdsearch import proxies;"
        "rows = [(c.name, c.title, c.paper, c.year, c.needs_teacher, c.parameters) for c in proxies.PROXIES];"
        "assert len(rows) >= 4; print([m for m in ('torch', 'optuna', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
