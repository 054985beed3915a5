"""tf_kd: the authors' numbers by their options, the paper's form by default, and the published objective."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, Need, Signals
from kdsearch.kd_methods import functional as KF
from kdsearch.kd_methods.targets.tf_kd import virtual_teacher

from .golden import agrees, cases, tensors
from .logit_hazards import assert_finite, draw, hazards


@pytest.mark.parametrize(("case", "arrays"), cases("logits/tfkd"))
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """The recorded totals: (1 - alpha) · CE + alpha · term, as the class' `label_weight` and `weight` make them."""
    x = tensors(arrays, "student_logits")
    hyper = case["hyper"]
    method: Any = kd_methods.create("tf_kd", weight=hyper["alpha"], variant=hyper["variant"])
    term = KF.tf_kd(
        x["student_logits"],
        x["teacher_logits"] if hyper["variant"] == "self" else None,
        x["labels"],
        variant=hyper["variant"],
        temperature=hyper["T"],
        softening="double_softmax",
        average="elements",
        multiplier=hyper["multiplier"],
    )
    total = method.label_weight() * F.cross_entropy(x["student_logits"], x["labels"]) + method.weight * term
    agrees(case, total, x)


def test_default_at_100_classes_is_the_authors_multiplier() -> None:
    student, _, target = draw(8, 100, dtype=torch.float64)
    theirs = KF.tf_kd(student, None, target, average="elements", multiplier=100.0)
    torch.testing.assert_close(KF.tf_kd(student, None, target), theirs)


def test_virtual_teacher() -> None:
    target = torch.tensor([1, 0])
    p = virtual_teacher(target, torch.zeros(2, 5, dtype=torch.float64), 0.96)
    torch.testing.assert_close(p.sum(1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(p[0], torch.tensor([0.01, 0.96, 0.01, 0.01, 0.01], dtype=torch.float64))
    mixed = 0.3 * F.one_hot(target, 5) + 0.7 * F.one_hot(target.flip(0), 5)
    expected = 0.3 * p + 0.7 * p.flip(0)
    torch.testing.assert_close(virtual_teacher(mixed, p, 0.96), expected)


def test_power_softening_is_the_papers() -> None:
    student, _, target = draw(4, 5, dtype=torch.float64)
    p = virtual_teacher(target, student, 0.9) ** (1 / 7.0)
    p = p / p.sum(1, keepdim=True)
    expected = 49 * F.kl_div((student / 7).log_softmax(1), p, reduction="batchmean")
    torch.testing.assert_close(KF.tf_kd(student, None, target, temperature=7.0, correct=0.9), expected)


def test_zero_where_the_student_is_the_virtual_teacher() -> None:
    _, _, target = draw(6, 10)
    student = virtual_teacher(target, torch.zeros(6, 10, dtype=torch.float64)).log()
    assert KF.tf_kd(student, None, target).abs() < 1e-12
    assert KF.tf_kd(student, student, target, variant="self").abs() < 1e-12


@pytest.mark.parametrize("softening", ["power", "double_softmax"])
def test_shift_and_order_do_not_matter(softening: str) -> None:
    student, _, target = draw(6, 10, dtype=torch.float64)
    expected = KF.tf_kd(student, None, target, softening=softening)
    torch.testing.assert_close(KF.tf_kd(student.flip(0) + 3, None, target.flip(0), softening=softening), expected)
    rows = KF.tf_kd(student, None, target, softening=softening, reduction="none")
    torch.testing.assert_close(rows.mean(), expected)


@pytest.mark.parametrize("softening", ["power", "double_softmax"])
@hazards
def test_finite(hazard: str, softening: str) -> None:
    assert_finite(lambda s, t, y: KF.tf_kd(s, None, y, softening=softening), hazard)


@hazards
def test_self_finite(hazard: str) -> None:
    assert_finite(lambda s, t, y: KF.tf_kd(s, t, y, variant="self", temperature=6.0), hazard)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"variant": "virtual"}, "variant must be"),
        ({"variant": "self"}, "needs teacher_logits"),
        ({"softening": "none"}, "softening must be"),
        ({"average": "batch"}, "average must be"),
        ({"correct": 1.0}, "correct must lie between 0 and 1, not 1.0"),
        ({"reduction": "sum"}, "reduction must be"),
    ],
)
def test_errors(option: dict[str, Any], message: str) -> None:
    student, _, target = draw(2, 3)
    with pytest.raises(ValueError, match=message):
        KF.tf_kd(student, None, target, **option)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        KF.tf_kd(torch.zeros(2, 1), None, torch.zeros(2, dtype=torch.long))


def test_class() -> None:
    student, teacher, target = draw(4, 10, dtype=torch.float64)
    batch = Batch(target, torch.arange(4))
    reg: Any = kd_methods.create("tf_kd")
    assert reg.label_weight() == pytest.approx(0.9)
    assert Need.LOGITS not in reg.needs.teacher
    torch.testing.assert_close(
        reg.loss(Signals(student), Signals(torch.full_like(teacher, torch.nan)), batch), KF.tf_kd(student, None, target)
    )
    own: Any = kd_methods.create("tf_kd", variant="self", temperature=6.0, weight=0.95)
    assert Need.LOGITS in own.needs.teacher
    torch.testing.assert_close(
        own.loss(Signals(student), Signals(teacher), batch), KF.kd(student, teacher, temperature=6.0)
    )


def test_class_under_mixup() -> None:
    student, teacher, target = draw(4, 10, dtype=torch.float64)
    mixed = 0.6 * F.one_hot(target, 10) + 0.4 * F.one_hot(target.flip(0), 10)
    batch = Batch(target, torch.arange(4), soft_target=mixed)
    value = kd_methods.create("tf_kd").loss(Signals(student), Signals(teacher), batch)
    torch.testing.assert_close(value, KF.tf_kd(student, None, mixed))
    assert (value - KF.tf_kd(student, None, target)).abs() > 1e-3


def test_domain() -> None:
    with pytest.raises(ValueError, match=r"tf_kd\.weight must lie in \[0, 1\]"):
        kd_methods.create("tf_kd", weight=1.5)
