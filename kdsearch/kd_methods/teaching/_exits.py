"""Early exits: what turns a stage's output into a feature and into logits, and a student that keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from kdsearch.kd_methods.adapters import BatchNorm2d, to_dtype_of, to_map
from kdsearch.kd_methods.dry_run import first_tensor
from kdsearch.kd_methods.signals import ModelSpec, StageSpec
from kdsearch.kd_methods.tails import tail
from kdsearch.kd_methods.teaching._ensemble import mean_probabilities


def _unit(channels: int, out: int, size: tuple[int, int]) -> list[nn.Module]:
    return [nn.Conv2d(channels, out, size, stride=size), BatchNorm2d(out), nn.ReLU()]


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
            end = last.size if last.kind == "map" else stage.size
            height, width_ratio = (max(1, a // max(b, 1)) for a, b in zip(stage.size, end, strict=True))
            middle = max(width // 4, 1)
            self.adapt = nn.Sequential(
                *_unit(stage.channels, middle, (1, 1)),
                *_unit(middle, middle, (height, width_ratio)),
                *_unit(middle, width, (1, 1)),
            )
        self.head = nn.Linear(width, classes)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled feature [B, width] and logits [B, classes]."""
        feature = to_dtype_of(self.head.weight, feature)
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


class Branch(nn.Module):
    """A residual block for every stage that follows, of its width and stride, then pooling and a linear classifier.

    Of tokens: a transformer block for each, and a projection to the last stage's width where that is another one.
    """

    def __init__(self, stages: Sequence[StageSpec], classes: int) -> None:
        super().__init__()
        self.tail: Any = tail(stages, classes, blocks=1, token_blocks=1)
        self.tokens = stages[0].kind == "token"
        self.grid = replace(stages[0], prefix=0)
        self.prefix = stages[0].prefix
        widths = stages[0].channels, stages[-1].channels
        self.adapt: nn.Module = nn.Identity()
        if self.tokens and widths[0] != widths[1]:
            self.adapt = nn.Linear(*widths)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The map that the classifier pools, in the last stage's width, and logits [B, classes]."""
        feature = self.tail.blocks(to_dtype_of(self.tail.head.weight, feature))
        if not self.tokens:
            return feature, self.tail.head(feature.mean((2, 3)))
        patches = self.tail.norm(feature)[:, self.prefix :]
        return to_map(self.adapt(patches), self.grid), self.tail.head(patches.mean(1))


def branches(student: ModelSpec) -> nn.ModuleList:
    """One branch for every stage but the last."""
    count = len(student.stages)
    return nn.ModuleList(Branch(student.stages[k:], student.classes) for k in range(count - 1))


class _Left(Exception):
    """The pass has reached the exit that was asked for."""


class ExitingStudent(nn.Module):
    """A student with its exits: images to logits [B, C] of its own end, or of everybody's mean probabilities.

    Shares every parameter and buffer with the student and the exits.

    Args:
        branches: from the output of a stage to (feature, logits).
        stages: the stages of the student that they stand behind.
        ensemble: answer with the mean probabilities of all exits and the student's own end.

    Raises:
        ValueError: the student has no such stage.
    """

    def __init__(
        self, student: nn.Module, branches: Iterable[nn.Module], stages: Sequence[StageSpec], *, ensemble: bool
    ) -> None:
        super().__init__()
        self.student, self.branches = student, nn.ModuleList(branches)
        self.stages, self.ensemble = tuple(stages), ensemble
        self._trunk()

    def _trunk(self) -> nn.Module:
        """The network that has the stages, however many other methods have put something around it."""
        found: Any = self.student
        while isinstance(found, nn.Module):
            try:
                for stage in self.stages:
                    found.get_submodule(stage.path)
                return found
            except AttributeError:
                found = getattr(found, "student", None)
        raise ValueError(f"the student has no stage {self.stages[0].path!r} for an exit to stand behind")

    @contextmanager
    def _listening(self, trunk: nn.Module, answers: list[Tensor | None], last: int | None = None) -> Iterator[None]:
        """Exits answer into the list while the trunk runs, which ends behind exit `last`."""

        def listen(k: int) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                feature = first_tensor(output)
                assert feature is not None
                channels = self.stages[k].channels
                if feature.ndim == 4 and feature.shape[1] != channels == feature.shape[3]:
                    feature = feature.permute(0, 3, 1, 2)
                # At once: what follows may change the feature in place.
                answers[k] = self.branches[k](feature)[1]
                if k == last:
                    raise _Left

            return hook

        # For this pass only: a hook that stays would be shared by every copy, and by the student under training.
        wanted = range(len(self.stages)) if last is None else [last]
        handles = [trunk.get_submodule(self.stages[k].path).register_forward_hook(listen(k)) for k in wanted]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def exits(self, images: Tensor) -> list[Tensor]:
        """Logits [B, C] of every exit, the shallowest first, and of the student's own end.

        One pass, or two where another method has put something around the student: that may show it other images.
        """
        answers: list[Tensor | None] = [None] * len(self.stages)
        trunk = self._trunk()
        with self._listening(trunk, answers):
            final = first_tensor(trunk(images))
        if trunk is not self.student:
            final = first_tensor(self.student(images))
        return [answer for answer in (*answers, final) if answer is not None]

    def leave_at(self, images: Tensor, number: int) -> Tensor:
        """Logits [B, C] of one exit, 0 the shallowest. Nothing of the student behind it is computed."""
        answers: list[Tensor | None] = [None] * len(self.stages)
        trunk = self._trunk()
        with suppress(_Left), self._listening(trunk, answers, number):
            trunk(images)
        answer = answers[number]
        assert answer is not None
        return answer

    def forward(self, images: Tensor) -> Tensor:
        if self.ensemble:
            return mean_probabilities(self.exits(images))
        logits = first_tensor(self.student(images))
        assert logits is not None
        return logits
