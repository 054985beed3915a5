"""Initial weights as the CIFAR literature draws them."""

from __future__ import annotations

from torch import nn


def initialise(module: nn.Module) -> None:
    """Kaiming-normal convolutions by fan-out; all else keeps torch's own initial weights.

    Source: He et al., Delving Deep into Rectifiers, ICCV 2015, section 2.2.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
