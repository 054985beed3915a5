"""deit: golden numbers, the soft kind's closed form, temperatures, hazards, and a short training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, Need, Signals, Softened
from kdsearch.kd_methods import functional as KF

from .feature_signals import batch_of, learns, model, signals
from .golden import agrees, cases, tensors


@pytest.mark.parametrize(("case", "arrays"), cases("logits/deit_distill"))
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """The authors' total: cross-entropy of the class token beside the term. Their soft kind divides by B · C."""
    hyper = case["hyper"]
    x = tensors(arrays, "student_logits", "student_dist_logits")
    term = KF.deit(
        x["student_dist_logits"],
        x["teacher_logits"],
        kind=hyper["type"],
        temperature=hyper["tau"],
        average="elements",
    )
    supervised = F.cross_entropy(x["student_logits"], x["labels"])
    agrees(case, (1 - hyper["alpha"]) * supervised + hyper["alpha"] * term, x)


def test_soft_is_kd_on_the_distillation_head() -> None:
    s, t = torch.randn(2, 4, 10, dtype=torch.float64)
    torch.testing.assert_close(KF.deit(s, t, kind="soft"), KF.kd(s, t, temperature=3.0))
    torch.testing.assert_close(KF.deit(s, t, kind="soft", average="elements"), KF.kd(s, t, temperature=3.0) / 10)
    assert KF.deit(t, t, kind="soft") == 0
    assert KF.deit(t, t, kind="hard") > 0
    for kind in ("hard", "soft"):
        rows = KF.deit(s, t, kind=kind, reduction="none")
        assert rows.shape == (4,)
        torch.testing.assert_close(rows.mean(), KF.deit(s, t, kind=kind))


def test_hard_reads_the_decision_only() -> None:
    s, t = torch.randn(2, 4, 10)
    torch.testing.assert_close(KF.deit(s, t), KF.deit(s, 100 * t - 3))
    torch.testing.assert_close(KF.deit(s, t), F.cross_entropy(s, t.argmax(1)))


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("size", [1, 4])
def test_finite(kind: str, dtype: torch.dtype, scale: float, size: int) -> None:
    s, t = (torch.randn(2, size, 6) * scale).to(dtype)
    s = s.clone().requires_grad_()
    loss = KF.deit(s, t, kind=kind)
    (gradient,) = torch.autograd.grad(loss, s)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_recipe_temperature_reaches_the_soft_kind() -> None:
    s, t = signals(model([]), 4, 0), signals(model([]), 4, 1)
    batch = batch_of(4)

    def soften(student: torch.Tensor, teacher: torch.Tensor, batch: Batch) -> Softened:
        return Softened(2 * student, teacher, 5.0)

    assert s.distillation_head is not None
    own = kd_methods.create("deit", kind="soft", temperature=2.0)
    torch.testing.assert_close(own.loss(s, t, batch), KF.kd(s.distillation_head, t.logits, temperature=2.0))
    batch.soften = soften
    torch.testing.assert_close(own.loss(s, t, batch), KF.kd(2 * s.distillation_head, t.logits, temperature=5.0))
    hard = kd_methods.create("deit")
    torch.testing.assert_close(hard.loss(s, t, batch), KF.deit(s.distillation_head, t.logits))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_learns(kind: str) -> None:
    learns(kd_methods.create("deit", kind=kind), model([]), model([]), lr=1.0)


def test_declaration() -> None:
    method = kd_methods.create("deit")
    assert method.branches == {"distillation_token"}
    assert method.needs.student == {Need.DISTILLATION_HEAD}
    assert method.needs.teacher == {Need.LOGITS}
    assert method.same_classes
    assert (method.hyper["weight"], method.ce_weight) == (0.5, 0.5)
    with pytest.raises(ValueError, match="reads the student's distillation head"):
        method.loss(Signals(torch.zeros(2, 3)), Signals(torch.zeros(2, 3)), batch_of(2))
    with pytest.raises(ValueError, match="'hard' or 'soft', not 'harder'"):
        KF.deit(torch.zeros(2, 3), torch.zeros(2, 3), kind="harder")
    with pytest.raises(ValueError, match="'samples' or 'elements', not 'rows'"):
        KF.deit(torch.zeros(2, 3), torch.zeros(2, 3), average="rows")
