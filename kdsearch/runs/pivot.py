"""A teacher that is trained on while it teaches: on what the students get wrong."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.kd_methods import ModelSpec, Need, Signals
from kdsearch.kd_methods.sparse import Visible
from kdsearch.runs.network import Network
from kdsearch.runs.world import TeacherModel


class Pivot:
    """A copy of the run's teacher with an optimiser of its own.

    Args:
        rate: its learning rate over the student's.
    """

    def __init__(self, teacher: TeacherModel, rate: float) -> None:
        teacher.network.close()  # a copy would keep the hooks
        self.network: Network = teacher.network.holding(copy.deepcopy(teacher.network.module).requires_grad_(True))
        self.spec: ModelSpec = teacher.spec
        self.rate = rate
        self.optimizer: Any = None
        self._parameters = list(self.network.module.parameters())

    def listen(self, needs: frozenset[Need], stages: list[int]) -> None:
        self.network.listen(needs | {Need.LOGITS}, self.spec, stages)

    def begin(self, optimizer: Any, state: dict[str, Any] | None) -> None:
        """Make the optimiser of a stage by the recipe's method, or take it up from a checkpoint's state."""
        self.optimizer = optimizer.build(self._parameters)
        for group in self.optimizer.param_groups:
            group["base_lr"] = group["lr"] * self.rate
        if state is not None:
            self.optimizer.load_state_dict(state["pivot"][1])

    def learn(self, images: Tensor, soft_target: Tensor, autocast: torch.autocast) -> None:
        """One step on images [B, ...] with soft labels [B, C]; none before `begin`."""
        if self.optimizer is None:
            return
        self.network.module.train()
        with autocast:
            logits = self.network.logits(images)
        loss = F.cross_entropy(logits.float(), soft_target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if hasattr(self.optimizer, "step_split"):
            grads = [p.grad for p in self._parameters]
            self.optimizer.step_split(grads, [None] * len(grads))
        else:
            self.optimizer.step()

    @torch.no_grad()
    def teach(self, images: Tensor, target: Tensor, visible: Visible | None = None) -> Signals:
        """Its answer as a frozen teacher: in evaluation mode, without a graph."""
        self.network.module.eval()
        return self.network(images, target, visible=visible).detach()
