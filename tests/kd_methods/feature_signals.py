"""Stages, signals and a short training for the methods that read features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kdsearch.kd_methods import Batch, DataSpec, ModelSpec, Signals, StageSpec
from kdsearch.kd_methods.method import KDMethod

SAMPLES = 40
CLASSES = 4


def map_stage(channels: int, height: int, width: int | None = None, depth: float = 0.5) -> StageSpec:
    return StageSpec("stage", "map", channels, (height, width or height), depth)


def token_stage(channels: int, height: int, width: int | None = None, prefix: int = 1, depth: float = 0.5) -> StageSpec:
    return StageSpec("block", "token", channels, (height, width or height), depth, prefix)


def model(stages: Sequence[StageSpec], embedding: int | None = 12) -> ModelSpec:
    return ModelSpec(tuple(stages), CLASSES, (3, 16, 16), embedding)


def data(samples: int = SAMPLES) -> DataSpec:
    return DataSpec(samples, CLASSES, (3, 16, 16), torch.arange(samples) % CLASSES)


def draw(stage: StageSpec, batch: int, generator: torch.Generator) -> Tensor:
    """A random output of a stage."""
    height, width = stage.size
    if stage.kind == "map":
        return torch.randn(batch, stage.channels, height, width, generator=generator)
    return torch.randn(batch, stage.prefix + height * width, stage.channels, generator=generator)


def signals(spec: ModelSpec, batch: int, seed: int, *, trained: bool = False) -> Signals:
    """Random signals of a model; `trained` ones are leaves that ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    features = [draw(stage, batch, generator).requires_grad_(trained) for stage in spec.stages]
    preact = [draw(stage, batch, generator).requires_grad_(trained) for stage in spec.stages]
    embedding = torch.randn(batch, spec.embedding or 1, generator=generator).requires_grad_(trained)
    return Signals(
        logits=torch.randn(batch, CLASSES, generator=generator).requires_grad_(trained),
        features=features,
        preact=preact,
        embedding=embedding,
        input_gradient=torch.randn(batch, 3, 4, 4, generator=generator).requires_grad_(trained),
        distillation_head=torch.randn(batch, CLASSES, generator=generator).requires_grad_(trained),
    )


def batch_of(size: int, seed: int = 0, progress: float = 0.0) -> Batch:
    """A batch of the first `size` samples."""
    ids = torch.arange(size)
    return Batch(ids % CLASSES, ids, progress, generator=torch.Generator().manual_seed(seed))


def leaves(student: Signals) -> list[Tensor]:
    candidates = [
        student.logits,
        *student.features,
        *student.preact,
        student.embedding,
        student.input_gradient,
        student.distillation_head,
    ]
    return [x for x in candidates if x is not None and x.requires_grad]


def learns(
    method: KDMethod,
    student: ModelSpec,
    teacher: ModelSpec,
    *,
    size: int = 8,
    steps: int = 12,
    lr: float = 1.0,
    share: float = 0.9,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
) -> Tensor:
    """Trains free student signals and the method's parts; the loss has to fall to `share` of what it was.

    Gives the student's gradient norm at the first step.
    """
    torch.manual_seed(0)
    method.parts = method.bind(student, teacher, data())
    s, t = signals(student, size, 1, trained=True), signals(teacher, size, 2)
    trained = leaves(s) + ([] if method.parts is None else list(method.parts.parameters()))
    step = optimizer(trained, lr=lr)
    losses = []
    first = torch.zeros(())
    for k in range(steps):
        loss = method.loss(s, t, batch_of(size, seed=k, progress=0.9))
        assert loss.ndim == 0
        assert torch.isfinite(loss)
        step.zero_grad()
        loss.backward()
        if k == 0:
            first = torch.stack([x.grad.norm() for x in leaves(s) if x.grad is not None]).norm()
        step.step()
        losses.append(float(loss.detach()))
    assert first > 0
    assert losses[-1] < share * losses[0], losses
    return first
