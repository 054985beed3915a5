"""Adam with decoupled weight decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import OptimizerMethod
from kdsearch.kd_methods.optimizer._decay import groups
from kdsearch.parameters import Float

if TYPE_CHECKING:
    from torch import Tensor


@register
class AdamW(OptimizerMethod):
    """Torch's AdamW. Learning rate and weight decay are the usual ones for small vision transformers (DeiT's)."""

    name = "adamw"
    title = "Decoupled Weight Decay Regularization"
    paper = "arXiv 1711.05101"
    year = 2019

    lr: float = Float(1e-3, low=1e-4, high=1e-2, log=True)
    weight_decay: float = Float(0.05, low=1e-4, high=0.5, log=True)
    beta1: float = Float(0.9, low=0.8, high=0.95, domain=(0, 0.9999))
    beta2: float = Float(0.999, low=0.95, high=0.9999, domain=(0, 0.999999))

    def build(self, parameters: list[Tensor]) -> Any:
        from torch.optim import AdamW as TorchAdamW

        return TorchAdamW(
            groups(parameters), lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay, foreach=True
        )
