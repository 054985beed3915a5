"""Which of several learners is ahead: a moving average of their errors that survives a resume."""

from __future__ import annotations

from torch import Tensor, nn


class Ranking(nn.Module):
    """Exponential moving average of errors [n]. It starts at zero for all alike, which leaves their order as it is."""

    average: Tensor

    def __init__(self, learners: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("average", Tensor(learners).zero_())

    def forward(self, errors: Tensor) -> Tensor:
        """Take in this step's errors [n] and give the average [n]."""
        return self.average.lerp_(errors.to(self.average), 1 - self.decay)
