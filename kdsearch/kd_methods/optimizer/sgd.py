"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import OptimizerMethod
from kdsearch.kd_methods.optimizer._decay import groups
from kdsearch.parameters import Flag, Float

if TYPE_CHECKING:
    from torch import Tensor


@register
class SGD(OptimizerMethod):
    """Torch's SGD. Defaults are the CIFAR-100 distillation literature's (batch 64), with Nesterov's step."""

    name = "sgd"
    title = "On the importance of initialization and momentum in deep learning"
    paper = "ICML 2013"
    year = 2013

    lr: float = Float(0.05, low=0.005, high=0.5, log=True)
    momentum: float = Float(0.9, low=0.8, high=0.99, domain=(0, 0.9999))
    nesterov: bool = Flag(True)
    weight_decay: float = Float(5e-4, low=1e-5, high=5e-3, log=True)

    def build(self, parameters: list[Tensor]) -> Any:
        """`torch.optim.SGD`. Without momentum there is no Nesterov step to take, and the flag is ignored."""
        from torch.optim import SGD as TorchSGD

        return TorchSGD(
            groups(parameters),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
            weight_decay=self.weight_decay,
            foreach=True,
        )
