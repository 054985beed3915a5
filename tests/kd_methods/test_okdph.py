"""okdph: golden numbers of the published training step, the hybrid's gradient, lessons and plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, Signals
from kdsearch.kd_methods import functional as KF
from kdsearch.kd_methods.strategy import HYBRID, PEERS
from kdsearch.kd_methods.teaching.okdph import consensus
from kdsearch.runs.hybrid import Hybrid
from kdsearch.runs.network import Network

from .golden import agrees, cases, tensors
from .logit_hazards import assert_finite, draw, hazards


def strategy(**hyper: Any) -> Any:
    return kd_methods.create("okdph", **hyper)


def networks(x: dict[str, Tensor], *, copied: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Both linear learners' logits, each on its own view, and the hybrid's on the third."""
    hybrid = (x["w0"] + x["w1"]) / 2
    weights = [x["w0"], x["w1"], hybrid.detach() if copied else hybrid]
    return tuple(x["images"][:, k] @ w.T for k, w in enumerate(weights))  # type: ignore[return-value]


@pytest.mark.parametrize(("case", "arrays"), cases("logits/okdph"))
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    hyper = {"omega": case["hyper"]["omega"], "beta": case["hyper"]["beta"], "temperature": case["hyper"]["T"]}
    x = tensors(arrays, "w0", "w1")
    first, second, hybrid = networks(x, copied=True)
    agrees(case, KF.okdph(first, hybrid, [second], x["labels"], **hyper), {"w0": x["w0"]})
    other = {**case, "loss": case["parts"]["loss_net1"]}
    agrees(other, KF.okdph(second, hybrid, [first], x["labels"], **hyper), {"w1": x["w1"]})


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize(("case", "arrays"), cases("logits/okdph"))
def test_what_an_objective_adds_up(case: dict[str, Any], arrays: dict[str, np.ndarray], gradient: bool) -> None:
    """Label loss, hybrid's loss and lessons make the published value; the hybrid's gradient is what is rebuilt."""
    given = case["hyper"]
    method = strategy(omega=given["omega"], weight=given["beta"], temperature=given["T"], gradient=gradient)
    x = tensors(arrays, "w0", "w1")
    first, second, hybrid = networks(x, copied=False)
    student = Signals(first, views={HYBRID: Signals(hybrid)})
    batch = Batch(x["labels"], torch.arange(len(x["labels"])))
    teachers = {HYBRID: [Signals(hybrid.detach())], PEERS: [Signals(second.detach())]}
    (lesson,) = method.lessons(student, teachers, batch)
    assert (lesson.weight, lesson.supplier) == (1.0, HYBRID)
    supervised = method.supervise(student, batch)
    taught = method.hyper["weight"] * method.loss(lesson.student, lesson.teacher, batch)
    loss = method.label_weight() * F.cross_entropy(first, x["labels"]) + supervised + taught
    if not gradient:
        agrees(case, loss, {"w0": x["w0"]})
        return
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    through = torch.autograd.grad(supervised, [x["w0"], x["w1"]])
    weights = ((x["w0"] + x["w1"]) / 2).detach().requires_grad_()
    alone = (1 - given["omega"]) * F.cross_entropy(x["images"][:, 2] @ weights.T, x["labels"])
    (expected,) = torch.autograd.grad(alone, weights)
    for found in through:
        torch.testing.assert_close(found, expected / 2)


@pytest.mark.parametrize(("case", "arrays"), cases("logits/okdph"))
def test_fusion_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    learners, fused_weights = [], []
    for name in ("w0", "w1"):
        module = nn.Linear(arrays[name].shape[1], arrays[name].shape[0], bias=False).double()
        module.weight.data.copy_(torch.from_numpy(arrays[name]))
        learners.append(Network(module, torch.zeros(1), torch.ones(1)))
        fused_weights.append(module.weight)
    Hybrid(learners).fuse(strategy(gamma=case["hyper"]["gamma"]).plan().fuse)
    expected = case["fusion_w0_gamma0.5"]
    fused = fused_weights[0].detach().flatten()
    assert float(fused.norm()) == pytest.approx(expected["l2"], rel=1e-9)
    assert float(fused.sum()) == pytest.approx(expected["sum"], rel=1e-9)
    torch.testing.assert_close(fused[:5], torch.tensor(expected["first5"], dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(fused[-5:], torch.tensor(expected["last5"], dtype=torch.float64), rtol=1e-9, atol=0)


def test_hybrid_with_other_labels_than_the_learners() -> None:
    """Under mixing, the hybrid's view has labels of its own."""
    method, logits = strategy(), torch.randn(2, 3)
    student = Signals(torch.randn(2, 3), views={HYBRID: Signals(logits)})
    soft = torch.softmax(torch.randn(2, 3), 1)
    batch = Batch(torch.tensor([0, 1]), torch.arange(2))
    plain = method.supervise(student, batch)
    batch.views[HYBRID] = Batch(batch.target, batch.ids, soft_target=soft)
    torch.testing.assert_close(plain, 0.2 * F.cross_entropy(logits, batch.target))
    torch.testing.assert_close(method.supervise(student, batch), 0.2 * F.cross_entropy(logits, soft))
    assert strategy(omega=1.0).supervise(student, batch) is None


def test_lesson_keeps_the_hybrids_other_signals() -> None:
    feature = torch.randn(2, 3, 4, 4)
    hybrid = Signals(torch.randn(2, 5), features=[feature])
    peers = [Signals(torch.randn(2, 5)) for _ in range(2)]
    student = Signals(torch.randn(2, 5, requires_grad=True))
    batch = Batch(torch.zeros(2, dtype=torch.long), torch.arange(2))
    (lesson,) = strategy(peers=2).lessons(student, {HYBRID: [hybrid], PEERS: peers}, batch)
    assert lesson.teacher.features[0] is feature
    mean = (student.logits.detach() + peers[0].logits + peers[1].logits + hybrid.logits) / 4
    torch.testing.assert_close(lesson.teacher.logits, mean)
    assert not lesson.teacher.logits.requires_grad
    assert hybrid.logits is not lesson.teacher.logits


def test_plan() -> None:
    plan = strategy().plan()
    assert plan.teachers == (HYBRID, PEERS)
    assert (plan.peers, plan.alike, plan.own_views, plan.fuse, plan.fuse_every) == (1, True, True, 0.5, 0)
    assert plan.keep == HYBRID
    other = strategy(keep="student", interval=5, gamma=1.0, peers=3, own_views=False).plan()
    assert (other.peers, other.own_views, other.fuse, other.fuse_every, other.keep) == (3, False, 1.0, 5, "student")


@hazards
def test_hazards(hazard: str) -> None:
    assert_finite(lambda s, t, y: KF.okdph(s, t.flip(0), [t], y), hazard)


def test_gradcheck() -> None:
    student, hybrid, target = draw(3, 4, dtype=torch.float64)
    peer = draw(3, 4, dtype=torch.float64, seed=1)[0]
    # The mean of all logits is a constant: differences must not move it.
    stable = consensus([student, peer, hybrid])

    def loss(s: Tensor, h: Tensor) -> Tensor:
        fixed = 3 * stable - s.detach() - h.detach()
        return KF.okdph(s, h, [fixed], target)

    assert torch.autograd.gradcheck(loss, (student.requires_grad_(), hybrid.requires_grad_()))


def test_properties() -> None:
    """Learners that agree have nothing to learn from one another; omega 1 leaves the hybrid out."""
    student, other, target = draw(4, 5, dtype=torch.float64)
    alike = KF.okdph(student, student, [student], target)
    torch.testing.assert_close(alike, F.cross_entropy(student, target))
    whole = KF.okdph(student, other, [other], target, omega=1.0, beta=0.0)
    torch.testing.assert_close(whole, F.cross_entropy(student, target))
    swapped = KF.okdph(student.flip(0), other.flip(0), [other.flip(0)], target.flip(0))
    torch.testing.assert_close(swapped, KF.okdph(student, other, [other], target))
