"""sgd and adamw: torch's own, at the declared settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdsearch import kd_methods


def parameters() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, generator=generator).requires_grad_(True), torch.randn(2, generator=generator)]


def build(name: str, **hyper: Any) -> tuple[Any, list[torch.Tensor]]:
    params = [p.requires_grad_(True) for p in parameters()]
    return kd_methods.create(name, **hyper).build(params), params  # type: ignore[attr-defined]


def test_sgd_defaults() -> None:
    optimizer, params = build("sgd")
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert group["params"] == params
    settings = {key: group[key] for key in ("lr", "momentum", "nesterov", "weight_decay", "foreach")}
    assert settings == {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "foreach": True}


def test_sgd_without_momentum_is_plain_descent() -> None:
    optimizer, params = build("sgd", momentum=0.0, weight_decay=0.0, lr=0.5)
    before = params[0].detach().clone()
    params[0].grad = torch.ones(3, 2)
    optimizer.step()
    torch.testing.assert_close(params[0].detach(), before - 0.5)


def test_adamw_defaults() -> None:
    optimizer, _ = build("adamw")
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    settings = {key: group[key] for key in ("lr", "betas", "weight_decay", "foreach")}
    assert settings == {"lr": 1e-3, "betas": (0.9, 0.999), "weight_decay": 0.05, "foreach": True}


@pytest.mark.parametrize("name", ["sgd", "adamw", "dot"])
def test_learning_rate_is_read_at_every_step(name: str) -> None:
    optimizer, params = build(name, weight_decay=0.0)
    optimizer.param_groups[0]["lr"] = 0.0
    before = params[0].detach().clone()
    params[0].grad = torch.ones(3, 2)
    optimizer.step()
    assert torch.equal(params[0].detach(), before)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert (params[0].detach() < before).all()


@pytest.mark.parametrize("name", ["sgd", "adamw", "dot"])
def test_searched_ranges_are_on_a_log_scale(name: str) -> None:
    declared: Any = kd_methods.METHODS[name].parameters
    assert declared["lr"].log
    assert declared["weight_decay"].log


@pytest.mark.parametrize(("name", "hyper"), [("sgd", {"lr": -1}), ("sgd", {"momentum": 1}), ("adamw", {"beta2": 1})])
def test_domain(name: str, hyper: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"{name}\.{next(iter(hyper))} must lie in"):
        kd_methods.create(name, **hyper)
