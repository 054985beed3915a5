"""Bags of neighbours in a teacher's embedding, the keys made of it, the queue of keys, and the mix of two images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn

from kdsearch.kd_methods.adapters import to_dtype_of
from kdsearch.kd_methods.method import Frozen
from kdsearch.kd_methods.numerics import doubled, unit, widen
from kdsearch.kd_methods.signals import Need

ROWS, COLUMNS = 1024, 65536
"""Distances held at once: 256 MiB of them."""


def embed(teacher: Frozen) -> Tensor:
    """The teacher's embedding [N, D] of every training sample, by id, as float32 on the device."""
    found: Tensor | None = None
    for ids, signals in teacher.signals(frozenset({Need.EMBEDDING})):
        assert signals.embedding is not None
        if found is None:
            found = torch.zeros(teacher.data.samples, signals.embedding.shape[1], device=signals.embedding.device)
        found[ids] = signals.embedding.float()
    assert found is not None
    return found


@torch.no_grad()
def neighbours(points: Tensor, count: int, *, rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    """Indices [N, count] of the nearest other points in Euclidean distance, nearest first. Exact, block by block."""
    points = points - points.mean(0)  # distances are differences of squares: those of far-off points lose digits
    squares = points.square().sum(1)
    numbers = torch.arange(len(points), device=points.device)
    out = numbers.new_empty(len(points), count)
    for here in numbers.split(rows):
        nearest = points.new_full((len(here), count), torch.inf)
        found = here.new_zeros(len(here), count)
        for there in numbers.split(columns):
            # The point's own square is the same for all of its candidates.
            distances = squares[there] - 2 * points[here] @ points[there].T
            distances.masked_fill_(here[:, None] == there, torch.inf)
            nearest, place = torch.cat([nearest, distances], 1).topk(count, 1, largest=False)
            found = torch.cat([found, there.expand(len(here), -1)], 1).gather(1, place)
        out[here] = found
    return out


@torch.no_grad()
def principal_axes(points: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The mean [D] of the points and their `width` directions of largest variance, as columns [D, width]."""
    centre = points.mean(0)
    covariance = doubled(points.new_zeros(points.shape[1], points.shape[1]))
    for part in points.split(COLUMNS):
        covariance += doubled((part - centre).T @ (part - centre))
    _, vectors = torch.linalg.eigh(covariance)
    axes = vectors[:, -width:].flip(1)
    # Eigenvectors have no sign of their own; the largest entry is made positive.
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return centre, (axes * largest.sign()).float().to(points.device)


def cutmix(images: Tensor, others: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
    """A box of the other image in each image, and the share [B] that is left of the first.

    The share is drawn from Beta(2, 2), the distribution of the middle one of three uniform numbers; the box has its
    complement as area, lies around a uniform centre and is cut off at the border. The share counts what was pasted.
    """
    batch, height, width = images.shape[0], images.shape[-2], images.shape[-1]
    draws = torch.rand(5, batch, generator=generator, device=images.device)
    side = (1 - draws[:3].median(0).values).sqrt()
    mask = torch.ones(batch, 1, 1, dtype=torch.bool, device=images.device)
    for axis, (size, draw) in enumerate(((height, draws[3]), (width, draws[4]))):
        place = torch.arange(size, device=images.device)
        half, centre = (side * size).floor().div(2, rounding_mode="floor"), (draw * size).floor()
        inside = (place >= (centre - half)[:, None]) & (place < (centre + half)[:, None])
        mask = mask & (inside[:, :, None] if axis == 0 else inside[:, None, :])
    mixed = torch.where(mask.unsqueeze(1), others, images)
    return mixed, 1 - mask.float().mean((1, 2))


class Bags(nn.Module):
    """The student's head, the teacher's keys, the bags of every sample and the queue of keys.

    Buffers that a resume needs: `queue` [Q, W] of unit keys, the oldest of which `oldest` points at. `prepared` holds
    `bags` [N, K], `centre` [D] and `axes` [D, W]; without it (where a trained student is only put together) their
    places stay empty.
    """

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        samples: int,
        *,
        bag: int,
        width: int,
        queue: int,
        prepared: Mapping[str, Tensor] | None,
    ) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(student_width, student_width), nn.ReLU(), nn.Linear(student_width, width))
        self.bags: Tensor
        self.centre: Tensor
        self.axes: Tensor
        self.queue: Tensor
        self.oldest: Tensor
        if prepared is None:
            prepared = {
                "bags": torch.zeros(samples, bag, dtype=torch.long),
                "centre": torch.zeros(teacher_width),
                "axes": torch.eye(teacher_width, width),
            }
        for name in ("bags", "centre", "axes"):
            self.register_buffer(name, prepared[name], persistent=False)
        self.register_buffer("queue", unit(torch.randn(queue, width)))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))

    def draw(self, ids: Tensor, generator: Generator | None = None) -> Tensor:
        """A member [B] of every sample's bag."""
        place = torch.randint(self.bags.shape[1], ids.shape, generator=generator, device=ids.device)
        return self.bags[ids, place]

    def query(self, embedding: Tensor) -> Tensor:
        """The student's embeddings [B, D] as unit queries [B, W]."""
        return unit(widen(self.head(to_dtype_of(next(self.head.parameters()), embedding))))

    @torch.no_grad()
    def key(self, embedding: Tensor) -> Tensor:
        """The teacher's embeddings [B, D] as unit keys [B, W]."""
        return unit((widen(embedding) - self.centre) @ self.axes)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """In place of the oldest ones."""
        keys = keys[-len(self.queue) :]
        places = (self.oldest + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue.index_copy_(0, places, keys.to(self.queue.dtype))
        self.oldest.copy_((self.oldest + len(keys)) % len(self.queue))
