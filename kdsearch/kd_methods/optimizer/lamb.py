"""LAMB: Adam's step, rescaled layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import OptimizerMethod
from kdsearch.kd_methods.optimizer._decay import groups
from kdsearch.parameters import Float

if TYPE_CHECKING:
    from torch import Tensor


@register
class LAMB(OptimizerMethod):
    """timm's Lamb. Defaults are those VanillaKD trains ImageNet students with: for batches of 2,048.

    Each parameter's step has the length of the parameter, whatever the gradient's, so that the learning rate is a
    relative one; gradients are clipped to a global norm of `clip` first.
    """

    name = "lamb"
    title = "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes"
    paper = "arXiv 1904.00962"
    year = 2020

    lr: float = Float(5e-3, low=5e-4, high=2e-2, log=True)
    weight_decay: float = Float(0.02, low=1e-4, high=0.5, log=True)
    beta1: float = Float(0.9, low=0.8, high=0.95, domain=(0, 0.9999))
    beta2: float = Float(0.999, low=0.95, high=0.9999, domain=(0, 0.999999))
    clip: float = Float(1.0, low=0.5, high=5.0, doc="largest global gradient norm; 0 clips nothing")

    def build(self, parameters: list[Tensor]) -> Any:
        from timm.optim.lamb import Lamb

        return Lamb(
            groups(parameters),
            lr=self.lr,
            betas=(self.beta1, self.beta2),
            weight_decay=self.weight_decay,
            max_grad_norm=self.clip or None,
        )
