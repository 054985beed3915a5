"""Net2Net: a student that starts from a smaller trained one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.parameters import Flag, Float, FloatRange, IntRange
from kdsearch.search_space.students.family import InputShape, StudentFamily
from kdsearch.search_space.students.transforms import StudentTransform, register

if TYPE_CHECKING:
    from torch import nn


@register
class Net2Net(StudentTransform):
    """Trains a smaller student first and grows it: the student begins with what the smaller one computes.

    `size` leaves the smaller one this share of the channels (1 for all of them), `depth` about half of the depth. It
    trains for `share` of the steps; then the student takes over its function, with a little `noise` that tells copied
    channels apart, and trains for the rest at `rate` times the learning rate. The authors train the smaller network to
    the end, which `share` cannot say, and advise a tenth of its learning rate. They give no figure for the noise.

    Growth keeps the function exactly, or is refused. Widths of cnn, resnet, resnet_s1, wrn, mobilenetv2 and nasbench201
    grow by any factor, that of a vit by whole ones (`size` 1/2, 1/3, ...), those of shufflenetv2 only where it has few
    units. Depth grows in all of these but cnn, in nasbench201 where the cell passes its input on (edge03 skips). A wrn
    that gets a convolution in its first shortcut by being widened (from at most 16 channels to more) is refused, and so
    is an rnn.

    Source: Chen, Goodfellow, Shlens, Net2Net: Accelerating Learning via Knowledge Transfer, ICLR 2016, section 2;
    copies' noise in 2.2, the learning rate in section 3.
    """

    name = "net2net"
    title = "Net2Net: Accelerating Learning via Knowledge Transfer"
    paper = "arXiv 1511.05641"
    year = 2016

    size: float = Float(0.5, low=0.25, high=0.75, domain=(0.01, 1), doc="share of the channels of the smaller student")
    depth: bool = Flag(False, doc="the smaller student has half the blocks too")
    noise: float = Float(0.01, low=1e-3, high=0.1, log=True, domain=(0, 1), doc="relative to the weights' deviation")
    share: float = Float(0.3, low=0.1, high=0.6, domain=(0.01, 0.99), doc="share of the steps for the smaller student")
    rate: float = Float(0.1, low=0.03, high=1.0, log=True, domain=(1e-4, 10), doc="factor on the learning rate after")

    def apply(self, model: nn.Module) -> nn.Module:
        """The network as it is: growing needs a smaller trained one."""
        return model

    def smaller(self, family: StudentFamily) -> StudentFamily:
        """The student to train first.

        Raises:
            ValueError: the family has none that is smaller so.
        """
        if self.size == 1 and not self.depth:
            raise ValueError("net2net needs a size below 1 or depth, else there is nothing to grow")
        small = family
        if self.size < 1:
            narrow = family.thinned(self.size)
            if narrow is None or narrow.hyper == family.hyper:
                raise ValueError(f"{family!r} has no form with {self.size:g} of its channels")
            small = narrow
        if self.depth:
            shallow = _shallower(small)
            if shallow is None:
                raise ValueError(f"{family!r} has no shallower form")
            small = shallow
        return small

    def grow(self, small: nn.Module, large: nn.Module, input_shape: InputShape, seed: int) -> None:
        """Fill the student `large` from the trained `small`, on whatever devices; the same for the same seed.

        Raises:
            ValueError: `large` cannot compute what `small` does; it is left as it was. Whether it can does not depend
                on training, so that two fresh networks tell beforehand.
        """
        import torch

        from kdsearch.search_space.students.growth.growing import grow

        grow(small, large, input_shape, generator=torch.Generator().manual_seed(seed), noise=self.noise)


def _shallower(family: StudentFamily) -> StudentFamily | None:
    """The form whose depth, or whose blocks or cells in each stage, are nearest to half; at least one of each stays."""
    small = family
    for key, parameter in family.parameters.items():
        depth = family.hyper[key]
        if not (key in ("depth", "cells") or key.startswith("blocks")):
            continue
        if isinstance(parameter, FloatRange) and isinstance(depth, float):
            small = small.changed(**{key: depth / 2}) or small
        elif isinstance(parameter, IntRange) and isinstance(depth, int):
            nearest = sorted(range(1, depth), key=lambda less: (abs(2 * less - depth), -less))
            # Not every number is legal: a residual network has 6n + 2 layers.
            small = next((found for less in nearest if (found := small.changed(**{key: less}))), small)
    return None if small is family else small
