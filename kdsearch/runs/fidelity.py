"""How much of a full training one rung of the ladder spends."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Fidelity:
    """A rung: shares of the full budget. The recipe's whole plan, stages and schedule included, is compressed into it.

    Attributes:
        name: how results refer to it.
        epochs: share of the full number of epochs.
        data: share of the training samples, class-balanced.
        keep: share of the student's channels that the random structured mask leaves.
        resolution: share of the image side the student sees.
    """

    name: str = "full"
    epochs: float = 1.0
    data: float = 1.0
    keep: float = 1.0
    resolution: float = 1.0

    @property
    def full(self) -> bool:
        return self.epochs == self.data == self.keep == self.resolution == 1.0

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


FULL = Fidelity()
