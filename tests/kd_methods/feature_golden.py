"""Learned parts with the values that a golden file gives for them, and the gradients it records."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .golden import FOLDER


def document(path: str) -> dict[str, Any]:
    """The whole of `<path>.json`."""
    found: dict[str, Any] = json.loads((FOLDER / f"{path}.json").read_text())
    return found


def fill(path: str, module: str, parameters: Mapping[str, Tensor]) -> None:
    """Sets `parameters` to the values the file gives for them; keys are the file's names."""
    rows = document(path)["modules"][module]["params"]
    assert {row["param"] for row in rows} == set(parameters)
    for row in rows:
        drawn = np.random.default_rng(row["seed"]).standard_normal(row["shape"])
        target = parameters[row["param"]]
        assert list(target.shape) == row["shape"]
        with torch.no_grad():
            target.copy_(torch.from_numpy(row["offset"] + row["scale"] * drawn))


def module_gradients_agree(
    case: dict[str, Any], module: str, loss: Tensor, parameters: Mapping[str, Tensor], *, rtol: float = 1e-8
) -> None:
    """The gradients of a module's parameters equal the recorded ones; a null stands for no gradient at all."""
    recorded = case["grad_modules"][module]
    assert recorded
    for name, expected in recorded.items():
        (grad,) = torch.autograd.grad(loss, parameters[name], retain_graph=True, allow_unused=True)
        if expected is None:
            assert grad is None or not grad.any()
            continue
        flat = torch.zeros_like(parameters[name]).flatten() if grad is None else grad.flatten()
        np.testing.assert_allclose(float(flat.norm()), expected["l2"], rtol=rtol, atol=1e-11)
        np.testing.assert_allclose(flat[:5].numpy(), expected["first5"], rtol=rtol, atol=1e-11)
