"""What the operators put together is what the catalogue's own entries compute, value and gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdsearch.kd_methods import functional as KF

Loss = Callable[[Tensor, Tensor], Tensor]

CLASSES = 6
TARGET = torch.tensor([0, 5, 2, 2, 1])


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(a: Loss, b: Loss, s: Tensor, t: Tensor) -> None:
    s.requires_grad_()
    left, right = a(s, t), b(s, t)
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)
    (found,), (expected,) = torch.autograd.grad(left, s), torch.autograd.grad(right, s)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def leaf(**path: object) -> Loss:
    return lambda s, t: KF.autokd([s], [t], **path)


def steps(*names: str, distance: str) -> dict[str, str]:
    return dict(zip(("first", "second", "third"), names, strict=False)) | {"distance": distance}


def on_maps(*names: str, distance: str) -> Loss:
    return lambda s, t: KF.kdzero_features([s], [t], **steps(*names, distance=distance))


def cwd(s: Tensor, t: Tensor) -> Tensor:
    """Channel-wise distillation (Shu et al., 2021) at T = 1: mean over B and C of the KL over positions."""
    p, q = (x.flatten(2).softmax(2) for x in (t, s))
    return (p * (p.log() - q.log())).sum(2).mean()


def batch_divergence(s: Tensor, t: Tensor) -> Tensor:
    p, q = (x.flatten(1).softmax(0) for x in (t, s))
    return (p * (p.log() - q.log())).sum() / (s.shape[0] * s.shape[1])


MAPS: dict[str, tuple[Loss, Loss]] = {
    "autokd is at": (leaf(attention=True), lambda s, t: KF.at([s], [t])),
    "autokd is sp": (leaf(relation="batch"), lambda s, t: KF.sp([s], [t])),
    "autokd is ickd": (leaf(relation="channel"), lambda s, t: KF.ickd([s], [t])),
    "autokd is cwd": (leaf(relation="channel", distance="kl"), cwd),
    "autokd is a divergence over the batch": (
        leaf(relation="batch", distance="kl"),
        batch_divergence,
    ),
    "autokd is fitnets": (leaf(), lambda s, t: KF.fitnets([s], [t])),
    "kdzero is fitnets": (on_maps(distance="l2"), lambda s, t: KF.fitnets([s], [t])),
    "kdzero is sp": (on_maps("batch_gram", "norm_c", distance="l2"), lambda s, t: KF.sp([s], [t])),
    "kdzero is sp, by g_l2": (on_maps("batch", distance="g_l2"), lambda s, t: KF.sp([s], [t])),
    "kdzero is ickd": (
        on_maps("channel_gram", "norm_hw", distance="l2"),
        lambda s, t: KF.ickd([s], [t], average="pairs"),
    ),
    "kdzero is ickd, by g_l2": (on_maps("channel", distance="g_l2"), lambda s, t: KF.ickd([s], [t])),
}


@pytest.mark.parametrize("name", list(MAPS))
def test_on_maps(name: str) -> None:
    same(*MAPS[name], draw(5, 4, 6, 8, seed=1), draw(5, 4, 6, 8, seed=2))


def test_what_compares_no_shapes_takes_unequal_ones() -> None:
    same(*MAPS["autokd is sp"], draw(5, 4, 6, 8, seed=1), draw(5, 7, 3, 3, seed=2))
    same(*MAPS["autokd is ickd"], draw(5, 4, 6, 8, seed=1), draw(5, 4, 3, 3, seed=2))
    same(*MAPS["kdzero is sp"], draw(5, 4, 6, 8, seed=1), draw(5, 7, 3, 3, seed=2))


def test_scales_and_patches_are_means_of_single_ones() -> None:
    s, t = draw(3, 2, 8, 8, seed=1), draw(3, 2, 8, 8, seed=2)
    pools = [torch.nn.MaxPool2d(k) for k in (1, 2, 4)]
    for path in ({}, {"relation": "batch"}, {"relation": "channel", "distance": "kl"}):
        parts = [KF.autokd([pool(s)], [pool(t)], **path) for pool in pools]
        torch.testing.assert_close(KF.autokd([s], [t], scale="multi_scale", **path), torch.stack(parts).mean())
    patches = [x.unfold(2, 4, 4).unfold(3, 4, 4).reshape(3, 8, 4, 4) for x in (s, t)]
    halves = [x.unfold(2, 2, 2).unfold(3, 2, 2).reshape(3, 32, 2, 2) for x in (s, t)]
    ones = [x.reshape(3, 128, 1, 1) for x in (s, t)]
    parts = [KF.ickd([a], [b]) for a, b in (ones, halves, patches)]
    found = KF.autokd([s], [t], scale="local", relation="channel")
    torch.testing.assert_close(found, torch.stack(parts).mean())


def logits_leaf(knowledge: str, distance: str = "kl", temperature: float = 3.0) -> Loss:
    def loss(s: Tensor, t: Tensor) -> Tensor:
        return KF.autokd_logits(s, t, TARGET, knowledge=knowledge, distance=distance, temperature=temperature)

    return loss


def on_logits(*names: str, distance: str) -> Loss:
    return lambda s, t: KF.kdzero_logits(s, t, **steps(*names, distance=distance))


LOGITS: dict[str, tuple[Loss, Loss]] = {
    "plain is kd": (logits_leaf("plain"), lambda s, t: KF.kd(s, t, temperature=3.0)),
    "target is dkd's": (logits_leaf("target"), lambda s, t: KF.dkd(s, t, TARGET, alpha=1, beta=0, temperature=3.0)),
    "non-target is dkd's": (
        logits_leaf("non_target"),
        lambda s, t: KF.dkd(s, t, TARGET, alpha=0, beta=1, temperature=3.0),
    ),
    "plain by correlation is dist's inter": (
        logits_leaf("plain", "pearson"),
        lambda s, t: KF.dist(s, t, beta=1, gamma=0, temperature=3.0, eps=0.0),
    ),
    "intra by correlation is dist's intra": (
        logits_leaf("intra", "pearson"),
        lambda s, t: KF.dist(s, t, beta=0, gamma=1, temperature=3.0, eps=0.0),
    ),
    "kdzero is kd at 4": (on_logits(distance="kl_t4"), lambda s, t: KF.kd(s, t, temperature=4.0)),
    "kdzero is kd at 1": (on_logits("softmax_c", distance="kl_raw"), lambda s, t: KF.kd(s, t, temperature=1.0)),
    "kdzero is dist's inter": (
        on_logits("softmax_c", distance="pearson"),
        lambda s, t: KF.dist(s, t, beta=1, gamma=0, temperature=1.0, eps=0.0),
    ),
    "kdzero is logit_mse": (on_logits(distance="l2"), lambda s, t: KF.logit_mse(s, t, average="elements")),
}


@pytest.mark.parametrize("name", list(LOGITS))
def test_on_logits(name: str) -> None:
    same(*LOGITS[name], 2 * draw(5, CLASSES, seed=1), 2 * draw(5, CLASSES, seed=2))


def test_classes_over_the_samples() -> None:
    s, t = draw(5, CLASSES, seed=1), draw(5, CLASSES, seed=2)
    same(logits_leaf("intra", temperature=4.0), lambda a, b: KF.kd(a.T, b.T, temperature=4.0), s, t)


def test_a_temperature_for_each_row() -> None:
    s, t = draw(5, CLASSES, seed=1), draw(5, CLASSES, seed=2)
    rows = torch.linspace(1, 4, 5, dtype=torch.float64)[:, None]
    found = KF.autokd_logits(s, t, TARGET, temperature=(2.0, rows))
    torch.testing.assert_close(found, KF.kd(s, t, temperature=(2.0, rows)))
    for knowledge, distance in (("intra", "pearson"), ("non_target", "pearson"), ("intra", "kl")):
        value = KF.autokd_logits(s, t, TARGET, knowledge=knowledge, distance=distance, temperature=rows)
        assert torch.isfinite(value)


def test_on_embeddings_pkt_and_sp() -> None:
    """PKT with a sample among its own neighbours averages over B², a divergence of rows over B."""
    s, t = draw(5, 7, seed=1), draw(5, 9, seed=2)
    neighbours = steps("norm_c", "batch_gram", "halve", distance="kl_raw")
    same(
        lambda a, b: KF.kdzero_embedding(a, b, **neighbours) / len(a),
        lambda a, b: KF.pkt(a, b, diagonal=True, eps=0.0),
        s,
        t,
    )
    similarity = steps("batch_gram", "norm_c", distance="l2")
    same(lambda a, b: KF.kdzero_embedding(a, b, **similarity), lambda a, b: KF.sp(a, b), s.detach(), t)
