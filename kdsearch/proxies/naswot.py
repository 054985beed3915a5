"""NASWOT: how many different linear regions the images of a batch fall into."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.proxies.catalogue import StudentProxy, register

if TYPE_CHECKING:
    from torch import Tensor, nn


def naswot(model: nn.Module, images: Tensor) -> Tensor:
    """log |det K|, K the number of units that agree between two images, [B, B] in float64.

    Raises:
        ValueError: the network has no rectifier or nonlinearity like it.
    """
    import torch

    from kdsearch.proxies._activations import Watching

    batch = len(images)
    kernel = torch.zeros(batch, batch, dtype=torch.float64)
    units = 0

    def agree(entering: Tensor) -> None:
        nonlocal units
        if len(entering) % batch:
            raise ValueError(
                f"a nonlinearity works on {len(entering)} rows, not on {batch} images: no codes to compare"
            )
        signs = (entering.reshape(batch, -1) > 0).to(torch.float32).mul_(2).sub_(1)
        units += signs.shape[1]
        kernel.add_(signs @ signs.T)  # agreeing minus disagreeing units, exact below 2^24 of them

    with torch.no_grad(), Watching(agree):
        model(images)
    if not units:
        raise ValueError("the network has no rectifier or nonlinearity like it, so its images have no binary codes")
    return torch.linalg.slogdet((kernel + units) / 2).logabsdet


@register
class NASWOT(StudentProxy):
    """Overlap of the images' binary activation codes, on the batch given (the paper's have 128 images).

    A code has a bit for every rectifier, which says whether it is on. GELU, SiLU and other nonlinearities that pass
    what is positive count alike (ours). Two images of one code score -inf. Recurrent networks have no such codes.

    Source: Mellor et al., Neural Architecture Search without Training, ICML 2021, section 3.
    """

    name = "naswot"
    title = "Overlap of activation codes"
    paper = "arXiv 2006.04647"
    year = 2021

    def of(self, model: nn.Module, images: Tensor, target: Tensor, seed: int) -> Tensor:
        return naswot(model, images)
