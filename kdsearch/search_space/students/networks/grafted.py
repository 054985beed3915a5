"""ReLUs some of whose neurons become learned lines in the middle of a training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.kd_methods.dry_run import evaluating, record
from kdsearch.search_space.students.networks.replacing import put

SLOPE = 0.4
"""Of a new line, as the authors start it in training; its offset is zero."""

CHUNK = 128
"""Images at a time, when neurons are judged."""

DRAWS = 4
"""Random perturbations of each image."""

FUNCTIONS = (F.relu, torch.relu)


class Grafted(nn.ReLU):
    """A ReLU until `graft`; then y = a · x + b for the chosen neurons, with an a and a b of each neuron's own.

    A neuron is a channel at a place. Which are chosen is known by buffers, so that a state dict tells all; a and b take
    no weight decay. On maps of another resolution every place has the line of its nearest one.

    Args:
        shape: of the input without the batch, [C, H, W] or [D].
        share: of the neurons, in (0, 1].

    Raises:
        ValueError: an input with other channels.
    """

    mask: Tensor
    neurons: Tensor

    def __init__(self, shape: Sequence[int], share: float) -> None:
        super().__init__()
        count = max(1, round(share * prod(shape)))
        self.register_buffer("mask", torch.zeros(*shape, dtype=torch.bool))
        self.register_buffer("neurons", torch.arange(count))  # sorted; until `graft` they stand for nothing
        self.slope = nn.Parameter(torch.full((count,), SLOPE))
        self.offset = nn.Parameter(torch.zeros(count))
        for parameter in (self.slope, self.offset):
            parameter.no_weight_decay = True  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.mask.shape[0]:
            raise ValueError(f"grafted neurons of {self.mask.shape[0]} channels cannot take {x.shape[1]}")
        slope, offset, mask = self._everywhere(self.slope), self._everywhere(self.offset), self.mask
        if x.shape[1:] != mask.shape:
            slope, offset, mask = (_resized(t, x.shape[2:]) for t in (slope, offset, mask))
        line = torch.addcmul(offset.to(x.dtype), slope.to(x.dtype), x)
        return torch.where(mask, line, x.relu())

    def _everywhere(self, values: Tensor) -> Tensor:
        """The chosen neurons' values at their places, zero elsewhere."""
        flat = values.new_zeros(self.mask.numel())
        return flat.index_copy(0, self.neurons, values).view(self.mask.shape)

    @torch.no_grad()
    def graft(self, order: Tensor) -> None:
        """From now on the first neurons of `order` are lines; it holds all of them, flat, the likeliest ones first."""
        self.neurons.copy_(order[: len(self.neurons)].sort().values)
        self.mask.zero_().view(-1)[self.neurons] = True
        self.slope.fill_(SLOPE)
        self.offset.zero_()

    def extra_repr(self) -> str:
        return f"{len(self.neurons)} of {self.mask.numel()} neurons"


def place(model: nn.Module, input_shape: tuple[int, int, int], share: float) -> dict[str, str]:
    """Put `Grafted` in the place of every ReLU that runs once, also where it is a function that a module holds.

    Gives those that stay, by path, with the reason.

    Raises:
        ValueError: none can be replaced.
    """
    for part in list(model.modules()):
        held = {} if type(part).__module__.startswith("torch.") else vars(part)
        for name in [name for name, value in held.items() if any(value is f for f in FUNCTIONS)]:
            setattr(part, name, nn.ReLU())
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for call in record(model, input_shape)[1]:
        if type(call.module) is nn.ReLU and call.given is not None:
            shapes.setdefault(call.path, []).append(call.given[1:])
    kept = {}
    for path, given in shapes.items():
        if len(given) > 1:
            kept[path] = f"runs {len(given)} times in a pass"
        elif len(given[0]) not in (1, 3):
            kept[path] = "activates tokens"
        else:
            put(model, path, Grafted(given[0], share))
    if len(kept) == len(shapes):
        reasons = "; ".join(f"{path}: {reason}" for path, reason in kept.items())
        raise ValueError(f"linearity_grafting can replace no ReLU of this student ({reasons or 'none'})")
    return kept


def graft(model: nn.Module, images: Tensor, *, eps: float, by_stability: bool) -> None:
    """Choose every layer's neurons by what they do on these images, and make lines of them.

    A neuron's significance is its mean |input|. It counts as unstable on an image where a random perturbation of the
    image by ±eps at every pixel changes its input by more than |input|: an interval so wide would contain zero.
    `DRAWS` perturbations find the larger changes, not the largest possible one, which bounds would give.

    Args:
        images: [B, C, H, W], normalised.
        by_stability: the least significant and the most unstable neurons, by the sum of both ranks; else the least
            significant alone.
    """
    layers = [part for part in model.modules() if isinstance(part, Grafted)]
    device = images.device
    generator = torch.Generator(device).manual_seed(0)
    significance = {layer: torch.zeros(layer.mask.shape, device=device) for layer in layers}
    unstable = {layer: torch.zeros(layer.mask.shape, device=device) for layer in layers}
    with evaluating(model), torch.no_grad():
        for chunk in images.split(CHUNK):
            entered = _inputs(model, layers, chunk)
            widest = {layer: torch.zeros_like(x) for layer, x in entered.items()}
            for _ in range(DRAWS if by_stability else 0):
                signs = torch.rand(chunk.shape, generator=generator, device=device).sub_(0.5).sign_()
                for layer, x in _inputs(model, layers, torch.add(chunk, signs.to(chunk.dtype), alpha=eps)).items():
                    widest[layer] = torch.maximum(widest[layer], (x - entered[layer]).abs())
            for layer, x in entered.items():
                for total, of in ((significance, x.abs()), (unstable, (x.abs() < widest[layer]).float())):
                    found = of.sum(0)
                    total[layer] += found if found.shape == layer.mask.shape else _resized(found, layer.mask.shape[1:])
    for layer in layers:
        rank = _ranks(significance[layer])
        if by_stability:
            rank = rank + _ranks(-unstable[layer])
        layer.graft(rank.argsort(stable=True))


def _ranks(values: Tensor) -> Tensor:
    """How many values are smaller: equal ones, such as the many neurons that are always stable, rank alike."""
    flat = values.flatten()
    return torch.searchsorted(flat.sort().values, flat)


def _inputs(model: nn.Module, layers: list[Grafted], images: Tensor) -> dict[Grafted, Tensor]:
    found: dict[Grafted, Tensor] = {}
    with _watched(layers, found):
        model(images)
    return found


@contextmanager
def _watched(layers: list[Grafted], found: dict[Grafted, Tensor]) -> Iterator[None]:
    def keep(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, Grafted)
        found[layer] = args[0].float()

    handles = [layer.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _resized(values: Tensor, sides: Sequence[int]) -> Tensor:
    """[C, H, W] at another resolution, each place's value that of the nearest one."""
    return F.interpolate(values[None].float(), size=list(sides))[0].to(values.dtype)
