"""The optimiser behind `dot`: imports torch, so it is loaded only when one is built."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

TASK, DISTILLATION = "task_momentum", "distillation_momentum"


class SplitMomentum(Optimizer):
    """Momentum SGD with one buffer for the task's gradients and one for the distillation's.

    v_t <- (mu - delta) v_t + g_t + wd · p;  v_k <- (mu + delta) v_k + g_k;  p <- p - lr · (v_t + v_k).

    A parameter that only one of the losses reaches in a step keeps mu. Where that is the distillation, weight decay
    joins from the parameter's second step on, as in the authors' code. `lr` is read from the groups at every step.

    Raises:
        ValueError: a negative learning rate or weight decay, or a momentum outside [0, 1).

    Source: Zhao et al., DOT: A Distillation-Oriented Trainer, ICCV 2023, section 3.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.9,
        delta: float = 0.075,
        weight_decay: float = 0.0,
    ) -> None:
        if lr < 0 or weight_decay < 0:
            raise ValueError(f"lr and weight_decay must not be negative, not {lr!r} and {weight_decay!r}")
        if not 0 <= momentum - delta <= momentum + delta < 1:
            raise ValueError(f"momentum ± delta must lie in [0, 1), not {momentum!r} ± {delta!r}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "delta": delta, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step on each parameter's `grad` as the task's gradient: momentum SGD, where nothing is distilled."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        self.step_split(gradients, [None] * len(gradients))
        return loss

    @torch.no_grad()
    def step_split(
        self, task_gradients: Sequence[Tensor | None], distillation_gradients: Sequence[Tensor | None]
    ) -> None:
        """One step. Either list has an entry for each parameter, in the order of the groups; None where there is none.

        Raises:
            ValueError: a list of another length.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        if not len(task_gradients) == len(distillation_gradients) == len(parameters):
            raise ValueError(
                f"step_split needs {len(parameters)} gradients of either kind, "
                f"not {len(task_gradients)} and {len(distillation_gradients)}"
            )
        start = 0
        for group in self.param_groups:
            part = slice(start, start + len(group["params"]))
            self._step_group(group, list(task_gradients[part]), list(distillation_gradients[part]))
            start = part.stop

    def _step_group(self, group: dict[str, Any], task: list[Tensor | None], distil: list[Tensor | None]) -> None:
        mu, delta, decay = group["momentum"], group["delta"], group["weight_decay"]
        # One sweep sorts the parameters by which losses reach them; each sort is then advanced by fused kernels.
        both: list[tuple[Tensor, Tensor, Tensor]] = []
        task_only: list[tuple[Tensor, Tensor]] = []
        new: list[tuple[Tensor, Tensor]] = []
        known: list[tuple[Tensor, Tensor]] = []
        for p, g, k in zip(group["params"], task, distil, strict=True):
            if g is not None and k is not None:
                both.append((p, g, k))
            elif g is not None:
                task_only.append((p, g))
            elif k is not None:
                (known if DISTILLATION in self.state[p] else new).append((p, k))

        moves: list[tuple[list[Tensor], list[Tensor]]] = []
        if both:
            params, g_task, g_distil = (list(column) for column in zip(*both, strict=True))
            moves.append((params, self._advance(TASK, params, g_task, mu - delta, decay)))
            moves.append((params, self._advance(DISTILLATION, params, g_distil, mu + delta, 0.0)))
        for key, pairs, wd in ((TASK, task_only, decay), (DISTILLATION, new, 0.0), (DISTILLATION, known, decay)):
            if pairs:
                params, gradients = (list(column) for column in zip(*pairs, strict=True))
                moves.append((params, self._advance(key, params, gradients, mu, wd)))
        for params, buffers in moves:
            torch._foreach_add_(params, buffers, alpha=-group["lr"])

    def _advance(
        self, key: str, params: list[Tensor], gradients: list[Tensor], momentum: float, decay: float
    ) -> list[Tensor]:
        """The buffers `key` of these parameters, moved on by one step; parameters themselves stay."""
        for p in params:
            if key not in self.state[p]:
                self.state[p][key] = torch.zeros_like(p, memory_format=torch.preserve_format)
        buffers = [self.state[p][key] for p in params]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, gradients)
        if decay:
            torch._foreach_add_(buffers, params, alpha=decay)
        return buffers
