"""Early exits: what turns a stage's output into a pooled feature of the final width and into logits."""

from __future__ import annotations

from torch import Tensor, nn

from kdsearch.kd_methods.signals import ModelSpec, StageSpec


def _unit(channels: int, out: int, size: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, size, stride=size), nn.BatchNorm2d(out), nn.ReLU()]


class Exit(nn.Module):
    """Bottleneck (1×1, a strided convolution down to the last stage's size, 1×1), global pooling, linear classifier.

    A token stage is averaged over its patches and projected instead.
    """

    def __init__(self, stage: StageSpec, last: StageSpec, width: int, classes: int) -> None:
        super().__init__()
        self.prefix = stage.prefix if stage.kind == "token" else 0
        self.tokens = stage.kind == "token"
        if self.tokens:
            self.adapt: nn.Module = nn.Sequential(nn.Linear(stage.channels, width), nn.ReLU())
        else:
            ratio = max(1, stage.size[0] // max(last.size[0], 1)) if last.kind == "map" else 1
            middle = max(width // 4, 1)
            self.adapt = nn.Sequential(
                *_unit(stage.channels, middle, 1), *_unit(middle, middle, ratio), *_unit(middle, width, 1)
            )
        self.head = nn.Linear(width, classes)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled feature [B, width] and logits [B, classes]."""
        if self.tokens:
            pooled = self.adapt(feature[:, self.prefix :].mean(1))
        else:
            pooled = self.adapt(feature).mean((2, 3))
        return pooled, self.head(pooled)


def exits(student: ModelSpec) -> nn.ModuleList:
    """One exit for every stage but the last.

    Raises:
        ValueError: the student has a single stage, or no pooled feature to imitate.
    """
    if len(student.stages) < 2 or student.embedding is None:
        raise ValueError("early exits need a student with two stages or more and a linear classifier")
    last = student.stages[-1]
    return nn.ModuleList(Exit(stage, last, student.embedding, student.classes) for stage in student.stages[:-1])
