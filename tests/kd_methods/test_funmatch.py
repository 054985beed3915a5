"""funmatch: golden distances, and what the policy shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdsearch import kd_methods
from kdsearch.kd_methods import functional as KF

from .golden import agrees, cases, tensors
from .logit_hazards import assert_finite, draw, hazards

KINDS = ["kl", "hard", "l2", "euclidean", "logsoftmax_euclidean"]


@pytest.mark.parametrize(("case", "arrays"), cases("logits/funmatch"))
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    x = tensors(arrays, "student_logits")
    hyper = case["hyper"]
    loss = KF.funmatch(
        x["student_logits"],
        x["teacher_logits"],
        kind=hyper["kind"],
        temperature=hyper.get("t", 1.0),
        smoothing=hyper.get("ls", 0.0),
    )
    agrees(case, loss, x)


def test_without_the_clip_it_is_kd() -> None:
    student, teacher, _ = draw(6, 10, 8.0, torch.float64)
    torch.testing.assert_close(
        KF.funmatch(student, teacher, temperature=2.0, clip=0.0), KF.kd(student, teacher, temperature=2.0)
    )
    clipped = KF.funmatch(student, teacher, temperature=2.0)
    assert 0 <= clipped - KF.kd(student, teacher, temperature=2.0) < 1e-5


def test_hard_is_cross_entropy_with_the_teachers_choice() -> None:
    student, teacher, _ = draw(6, 10, dtype=torch.float64)
    torch.testing.assert_close(
        KF.funmatch(student, teacher, kind="hard", clip=0.0), F.cross_entropy(student, teacher.argmax(1))
    )


def test_distances() -> None:
    student = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    teacher = torch.zeros(2, 2)
    l2 = KF.funmatch(student, teacher, kind="l2", reduction="none")
    torch.testing.assert_close(l2, torch.tensor([25.0, 0.0]))
    euclidean = KF.funmatch(student, teacher, kind="euclidean", reduction="none")
    torch.testing.assert_close(euclidean, torch.tensor([5.0, 1e-6]))
    log_gap = student[0].log_softmax(0) - teacher[0].log_softmax(0)
    soft = KF.funmatch(student[:1], teacher[:1], kind="logsoftmax_euclidean")
    torch.testing.assert_close(soft, log_gap.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_order_does_not_matter(kind: str) -> None:
    student, teacher, _ = draw(6, 10, dtype=torch.float64)
    expected = KF.funmatch(student, teacher, kind=kind)
    torch.testing.assert_close(KF.funmatch(student.flip(0), teacher.flip(0), kind=kind), expected)
    torch.testing.assert_close(KF.funmatch(student, teacher, kind=kind, reduction="none").mean(), expected)


@pytest.mark.parametrize("kind", KINDS)
@hazards
def test_finite(hazard: str, kind: str) -> None:
    assert_finite(lambda s, t, y: KF.funmatch(s, t, kind=kind), hazard)


def test_unknown_kind() -> None:
    student, teacher, _ = draw(2, 3)
    with pytest.raises(ValueError, match="kind must be one of kl, hard"):
        KF.funmatch(student, teacher, kind="mse")


def test_class_mixes_everything_and_reads_no_labels() -> None:
    method: Any = kd_methods.create("funmatch")
    policy = method.policy()
    assert (policy.augment, policy.mixup, policy.cutmix, policy.mix_probability) == (True, 1.0, 0.0, 1.0)
    assert method.label_weight() == 0.0
    assert method.needs_teacher
    assert kd_methods.create("funmatch", hard_labels=0.5).label_weight() == 0.5  # type: ignore[attr-defined]


def test_domain() -> None:
    with pytest.raises(ValueError, match=r"funmatch\.mixup must lie in"):
        kd_methods.create("funmatch", mixup=-0.1)
