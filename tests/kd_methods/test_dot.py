"""dot: golden trajectories, its relation to momentum SGD, and state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdsearch import kd_methods

from .golden import cases, tensors


def built(params: list[torch.Tensor], **hyper: float) -> Any:
    return kd_methods.create("dot", **hyper).build(params)  # type: ignore[attr-defined]


def gradients(step: int, shapes: list[torch.Size]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize(("case", "arrays"), cases("logits/dot"))
def test_golden(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    x = tensors(arrays)
    hyper = case["hyper"]
    names = ["both", "task_only", "kd_only"]
    params = [x[f"p_{name}"].clone().requires_grad_(True) for name in names]
    optimizer = built(params, lr=hyper["lr"], momentum=hyper["mu"], delta=hyper["delta"], weight_decay=hyper["wd"])
    for k, after in enumerate(case["param_after"]):
        task = [x.get(f"g_task_{name}_{k}") for name in names]
        distillation = [x.get(f"g_kd_{name}_{k}") for name in names]
        assert task[2] is None
        assert distillation[1] is None
        optimizer.step_split(task, distillation)
        for name, param in zip(names, params, strict=True):
            np.testing.assert_allclose(param.detach().numpy().ravel(), after[name], rtol=1e-10, atol=1e-12)


def test_without_delta_it_is_sgd_on_the_sum() -> None:
    ours = [torch.ones(3, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)]
    theirs = [p.clone() for p in ours]
    shapes = [p.shape for p in ours]
    optimizer = built(ours, delta=0.0, lr=0.1, weight_decay=1e-3)
    sgd = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=1e-3)
    for step in range(5):
        task, distillation = gradients(2 * step, shapes), gradients(2 * step + 1, shapes)
        optimizer.step_split(task, distillation)
        for param, g, k in zip(theirs, task, distillation, strict=True):
            param.grad = g + k
        sgd.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_plain_step_is_sgd() -> None:
    ours, theirs = torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    optimizer = built([ours], lr=0.1)
    sgd = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(5):
        ours.grad = theirs.grad = gradients(step, [ours.shape])[0]
        optimizer.step()
        sgd.step()
    torch.testing.assert_close(ours, theirs)


def test_distillation_has_the_longer_memory() -> None:
    """After one impulse of either gradient, what is left of each decays by its own momentum."""
    param = torch.zeros(2, dtype=torch.float64)
    optimizer = built([param], lr=1.0, momentum=0.9, delta=0.05, weight_decay=0.0)
    impulse, silence = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    optimizer.step_split([impulse], [impulse])
    optimizer.step_split([silence], [silence])
    state = optimizer.state[param]
    torch.testing.assert_close(state["task_momentum"], 0.85 * impulse)
    torch.testing.assert_close(state["distillation_momentum"], 0.95 * impulse)
    torch.testing.assert_close(param, -(2 + 1.8) * impulse)


def test_untouched_parameters_stay() -> None:
    param = torch.ones(2)
    optimizer = built([param])
    optimizer.step_split([None], [None])
    assert torch.equal(param, torch.ones(2))


def test_gradients_are_left_as_they_are() -> None:
    param = torch.ones(2)
    task, distillation = torch.ones(2), torch.full((2,), 2.0)
    built([param]).step_split([task], [distillation])
    assert torch.equal(task, torch.ones(2))
    assert torch.equal(distillation, torch.full((2,), 2.0))


def test_groups_have_their_own_settings() -> None:
    first, second = torch.ones(2), torch.ones(3)
    groups: Any = [{"params": [first], "weight_decay": 0.5}, {"params": [second], "lr": 0.0}]
    optimizer = built(groups, lr=0.1, weight_decay=0.0)
    optimizer.step_split([torch.zeros(2), torch.ones(3)], [torch.zeros(2), torch.ones(3)])
    torch.testing.assert_close(first, torch.full((2,), 0.95))
    assert torch.equal(second, torch.ones(3))


def test_state_survives() -> None:
    def run(stop: int | None) -> torch.Tensor:
        param = torch.ones(3, dtype=torch.float64)
        optimizer = built([param])
        for step in range(6):
            if step == stop:
                saved = optimizer.state_dict()
                optimizer = built([param], lr=0.4)
                optimizer.load_state_dict(saved)
            optimizer.step_split(gradients(step, [param.shape]), gradients(step + 10, [param.shape]))
        return param

    assert torch.equal(run(None), run(3))


def test_errors() -> None:
    with pytest.raises(ValueError, match="needs 1 gradients of either kind, not 2 and 1"):
        built([torch.ones(2)]).step_split([None, None], [None])
    with pytest.raises(ValueError, match=r"0\.95 \+ 0\.075 must both lie in \[0, 1\)"):
        kd_methods.create("dot", momentum=0.95)
    with pytest.raises(ValueError, match=r"0\.01 - 0\.075"):
        kd_methods.create("dot", momentum=0.01)


def test_any_point_of_the_searched_range_is_valid() -> None:
    declared: Any = kd_methods.METHODS["dot"].parameters
    for momentum in (declared["momentum"].low, declared["momentum"].high):
        for delta in (declared["delta"].low, declared["delta"].high):
            kd_methods.create("dot", momentum=momentum, delta=delta)


def test_declares_split_gradients() -> None:
    method: Any = kd_methods.create("dot")
    assert method.split_gradients
    assert not kd_methods.create("sgd").split_gradients  # type: ignore[attr-defined]
