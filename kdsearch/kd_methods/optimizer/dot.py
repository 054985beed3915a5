"""DOT: task and distillation gradients with momenta of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import OptimizerMethod
from kdsearch.kd_methods.optimizer._decay import groups
from kdsearch.parameters import Float

if TYPE_CHECKING:
    from torch import Tensor


@register
class DOT(OptimizerMethod):
    """SGD whose distillation gradients have the larger momentum: mu + delta, against mu - delta for the task.

    It costs a second backward pass through the student. Default delta is CIFAR-100's; ImageNet has 0.09. The searched
    ranges keep mu + delta below 1 together.

    Source: Zhao et al., DOT: A Distillation-Oriented Trainer, ICCV 2023, section 3. The update is in
    `kdsearch.kd_methods.optimizer._split_momentum`.
    """

    name = "dot"
    title = "DOT: A Distillation-Oriented Trainer"
    paper = "arXiv 2307.08436"
    year = 2023
    split_gradients = True

    lr: float = Float(0.05, low=0.005, high=0.5, log=True)
    momentum: float = Float(0.9, low=0.8, high=0.9, domain=(0, 0.9999))
    delta: float = Float(0.075, low=0.01, high=0.09, domain=(0, 0.9999))
    weight_decay: float = Float(5e-4, low=1e-5, high=5e-3, log=True)

    def __init__(self, **hyper: Any) -> None:
        super().__init__(**hyper)
        if not (self.delta <= self.momentum and self.momentum + self.delta < 1):
            raise ValueError(
                f"dot's momenta {self.momentum:g} - {self.delta:g} and {self.momentum:g} + {self.delta:g} "
                "must both lie in [0, 1)"
            )

    def build(self, parameters: list[Tensor]) -> Any:
        from kdsearch.kd_methods.optimizer._split_momentum import SplitMomentum

        return SplitMomentum(
            groups(parameters), lr=self.lr, momentum=self.momentum, delta=self.delta, weight_decay=self.weight_decay
        )
