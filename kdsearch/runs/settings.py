"""How students are trained in a run, whatever their recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kdsearch.errors import UserError


@dataclass(frozen=True)
class Seeds:
    """What a training draws from: initial weights, order of samples, views. Search trials share all three."""

    init: int
    order: int
    views: int

    @staticmethod
    def search(seed: int) -> Seeds:
        return Seeds(seed, seed, seed)

    @staticmethod
    def finalist(seed: int, k: int) -> Seeds:
        """Finalist seed k has its own of each, the same for every recipe: comparisons are paired."""
        own = seed + 1_000 * (k + 1)
        return Seeds(own, own + 1, own + 2)


@dataclass(frozen=True)
class Settings:
    """The full budget of one training and how it is computed.

    Attributes:
        epochs: of a full training; rungs take shares of it.
        views: distinct views of each sample; epoch e reads view e mod `views`.
        precision: "fp32", "bf16" (autocast), or "auto": bf16 on CUDA, fp32 elsewhere.
        channels_last: None decides by device and image size.
        evaluations: how often the validation split is measured in a full training, evenly spread.
        cache_limit: bytes the offline teacher may take for one set of signals.
        checkpoint_seconds: how often a long training saves its state.
    """

    epochs: int = 15
    batch_size: int = 64
    views: int = 15
    precision: str = "auto"
    channels_last: bool | None = None
    evaluations: int = 5
    cache_limit: int = 2 * 2**30
    checkpoint_seconds: float = 300.0

    def autocast(self, device: torch.device) -> torch.autocast:
        enabled = self.precision == "bf16" or (self.precision == "auto" and device.type == "cuda")
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)

    def use_channels_last(self, device: torch.device, side: int) -> bool:
        """Channels last pays on CUDA tensor cores and in oneDNN from 16 pixels up; at 8×8 the copies cost more."""
        if self.channels_last is not None:
            return self.channels_last
        return device.type in ("cuda", "cpu") and side >= 16


@contextmanager
def threads(device: torch.device, side: int) -> Iterator[None]:
    """One thread for images under 16 pixels on a CPU: sharing such small convolutions costs more than it gives, and two
    threads beside a busy neighbour fall far below one.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and side < 16:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps`.

    Raises:
        UserError: the device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"engine.device: {name!r} is not available here: {str(error).splitlines()[0]}") from None
    return device
