"""ctkd: golden numbers with the temperature's own gradient, the schedule, and both kinds of parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdsearch import kd_methods
from kdsearch.kd_methods import Batch, DataSpec, ModelSpec, Signals
from kdsearch.kd_methods import functional as KF

from .golden import agrees, cases, tensors
from .logit_hazards import assert_finite, draw, hazards

GLOBAL = [c for c in cases("logits/ctkd") if str(c.id).startswith("global")]
INSTANCE = [c for c in cases("logits/ctkd") if str(c.id).startswith("instance")]
START = 1 + 20 / (1 + np.exp(-1.0))


def model(classes: int = 10) -> ModelSpec:
    return ModelSpec(stages=(), classes=classes, input_shape=(3, 8, 8))


def bound(**hyper: Any) -> Any:
    torch.manual_seed(0)
    method = kd_methods.create("ctkd", **hyper)
    method.parts = method.bind(model(), model(), DataSpec(100, 10, (3, 8, 8)))
    return method


@pytest.mark.parametrize(("case", "arrays"), GLOBAL)
def test_golden_global(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """The schedule of the class at the first step of an epoch is the authors' of that epoch."""
    x = tensors(arrays, "student_logits", "p")
    hyper = case["hyper"]
    method: Any = kd_methods.create("ctkd", ramp=hyper["loops"] / 240)
    factor = method.factor((hyper["epoch"] - 1) / 240)
    assert factor == pytest.approx(case["parts"]["lambda"], rel=1e-12)
    loss = KF.ctkd(
        x["student_logits"],
        x["teacher_logits"],
        x["p"],
        factor=factor,
        t_start=hyper["t_start"],
        t_end=hyper["t_end"],
    )
    agrees(case, loss, x)


@pytest.mark.parametrize(("case", "arrays"), INSTANCE)
def test_golden_instance(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    x = tensors(arrays, "student_logits", "p")
    loss = KF.ctkd(x["student_logits"], x["teacher_logits"], x["p"], factor=case["hyper"]["lambda"], eps=1e-7)
    agrees(case, loss, x)


def test_without_the_guard_it_is_kd() -> None:
    student, teacher, _ = draw(4, 10, dtype=torch.float64)
    raw = torch.randn(4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    temperature = 1 + 20 * raw.sigmoid()
    torch.testing.assert_close(KF.ctkd(student, teacher, raw), KF.kd(student, teacher, temperature=temperature))
    rows = KF.ctkd(student, teacher, raw, reduction="none")
    torch.testing.assert_close(rows.mean(), KF.ctkd(student, teacher, raw))
    guarded = KF.ctkd(student, teacher, raw, eps=1e-7, reduction="none")
    torch.testing.assert_close(guarded, rows, rtol=0, atol=1e-2)


@hazards
def test_finite(hazard: str) -> None:
    assert_finite(lambda s, t, y: KF.ctkd(s, t, torch.ones(1, dtype=s.dtype)), hazard)


def test_schedule() -> None:
    method: Any = kd_methods.create("ctkd")
    factors = [method.factor(p / 240) for p in range(240)]
    assert -0.03 < factors[0] < 0
    assert factors == sorted(factors, reverse=True)
    assert factors[4] == pytest.approx(-0.5)
    assert all(f == -1 for f in factors[9:])
    assert kd_methods.create("ctkd", ramp=0.0).factor(0.0) == -1  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", ["global", "instance"])
def test_starts_at_the_published_temperature(mode: str) -> None:
    student, teacher, target = draw(4, 10)
    method = bound(mode=mode)
    soft = method.soften(student, teacher, Batch(target, torch.arange(4)))
    assert soft.temperature.shape == ((1,) if mode == "global" else (4, 1))
    assert pytest.approx(15.62, abs=0.01) == START
    torch.testing.assert_close(soft.temperature, torch.full_like(soft.temperature, START))


@pytest.mark.parametrize("mode", ["global", "instance"])
def test_the_temperature_climbs_while_the_student_descends(mode: str) -> None:
    """One step along the joint gradient lowers the loss by the student and raises it by the temperature."""
    student, teacher, target = draw(8, 10, dtype=torch.float64)
    method = bound(mode=mode)
    method.parts.double()
    term = kd_methods.create("kd")
    student.requires_grad_(True)
    batch = Batch(target, torch.arange(8), progress=0.5, soften=method.soften)

    def value() -> torch.Tensor:
        return term.loss(Signals(student), Signals(teacher), batch)

    before = value()
    parameters = list(method.parts.parameters())
    gradients = torch.autograd.grad(before, [student, *parameters])
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients[1:], strict=True):
            parameter -= 0.1 * gradient
        assert value() > before
        for parameter, gradient in zip(parameters, gradients[1:], strict=True):
            parameter += 0.1 * gradient
        student -= 0.1 * gradients[0]
        assert value() < before


def test_gradient_of_the_temperature_is_reversed_and_scaled() -> None:
    student, teacher, _ = draw(8, 10, dtype=torch.float64)
    raw = torch.ones(1, dtype=torch.float64, requires_grad=True)

    def slope(factor: float) -> torch.Tensor:
        return torch.autograd.grad(KF.ctkd(student, teacher, raw, factor=factor), raw)[0]

    torch.testing.assert_close(slope(-0.25), -0.25 * slope(1.0))
    assert slope(0.0) == 0


def test_instance_network_sends_nothing_back_to_the_student() -> None:
    student, teacher, target = draw(4, 10)
    method = bound(mode="instance")
    with torch.no_grad():
        for parameter in method.parts.parameters():
            parameter.normal_()
    student.requires_grad_(True)
    temperature = method.soften(student, teacher, Batch(target, torch.arange(4))).temperature
    assert temperature.std() > 0
    assert torch.autograd.grad(temperature.sum(), student, allow_unused=True)[0] is None


@pytest.mark.parametrize("mode", ["global", "instance"])
@pytest.mark.parametrize("term", ["kd", "dkd", "dist", "logit_mse"])
def test_composes_with_every_logit_term(term: str, mode: str) -> None:
    student, teacher, target = draw(6, 10)
    method = bound(mode=mode)
    batch = Batch(target, torch.arange(6), progress=0.5, soften=method.soften)
    value = kd_methods.create(term).loss(Signals(student.requires_grad_(True)), Signals(teacher), batch)
    assert value.ndim == 0
    value.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_state_survives() -> None:
    method = bound(mode="global")
    with torch.no_grad():
        method.parts.raw.fill_(2.0)
    other = bound(mode="global")
    other.parts.load_state_dict(method.parts.state_dict())
    assert other.parts.raw.item() == 2.0


def test_needs_its_parts() -> None:
    student, teacher, target = draw(2, 10)
    method: Any = kd_methods.create("ctkd")
    with pytest.raises(ValueError, match="what `bind` returned"):
        method.soften(student, teacher, Batch(target, torch.arange(2)))


def test_domain() -> None:
    with pytest.raises(ValueError, match=r"ctkd\.mode cannot be 'local'"):
        kd_methods.create("ctkd", mode="local")
