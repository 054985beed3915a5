"""The losses of a training: their means over all steps and over each epoch, kept on the device until an epoch ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class LossRecord:
    """Sums over the steps in which each loss took part.

    Attributes:
        curve: by loss, its mean over each epoch that it took part in.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, float] = {}
        self.curve: dict[str, list[float]] = {}
        self._closed: dict[str, tuple[float, float]] = {}  # sums and counts when the last epoch closed

    def add(self, values: Mapping[str, Tensor], share: float) -> None:
        """The losses of a step, or of a part of it that counts for `share`."""
        for name, value in values.items():
            value = value.detach() * share
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0.0) + share

    def close_epoch(self) -> list[str]:
        """Note every loss's mean over the epoch. Gives the names of those that are not finite."""
        if not self.sums:
            return []
        totals = torch.stack(list(self.sums.values())).tolist()  # one transfer for all
        for name, total in zip(self.sums, totals, strict=True):
            before, steps = self._closed.get(name, (0.0, 0.0))
            count = self.counts[name]
            if count > steps:
                self.curve.setdefault(name, []).append((total - before) / (count - steps))
            self._closed[name] = total, count
        return [name for name, (total, _) in self._closed.items() if not math.isfinite(total)]

    def means(self) -> dict[str, float]:
        """Every loss's mean over its steps."""
        return {name: value.item() / max(self.counts[name], 1) for name, value in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums, "counts": self.counts, "curve": self.curve}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`: the next epoch's means begin at the restored sums."""
        self.sums, self.counts, self.curve = state["sums"], state["counts"], state["curve"]
        self._closed = {name: (total.item(), self.counts[name]) for name, total in self.sums.items()}
