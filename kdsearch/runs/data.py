"""A data set in three splits, and the views of its training samples.

Small sets live on the device as uint8 tensors and are augmented there in batches; image folders are decoded by a
DataLoader and augmented by the same batched code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from kdsearch.kd_methods import DataSpec
from kdsearch.kd_methods.curriculum import Take
from kdsearch.kd_methods.signals import UNLABELLED
from kdsearch.runs.views import Augmentation, ViewSpec, augment, box_share, mates, mix, mixing, paste

BIN, SURE = 0.25, 1e-6
"""Width of a bin of log-entropies, and the entropy in nats below which predictions count as equally sure."""


def spread(ids: Tensor, count: int) -> Tensor:
    """At most so many of the ids, evenly over all of them: sorted data shows every class."""
    if len(ids) <= count:
        return ids
    return ids[torch.linspace(0, len(ids) - 1, count, dtype=torch.float64).long().to(ids.device)]


@dataclass
class Split:
    """Images and labels. `images` is uint8 [N, C, H, W] or an indexable that yields such images one by one."""

    images: Tensor | torch.utils.data.Dataset[Tensor]
    labels: Tensor  # int64 [N]

    def __len__(self) -> int:
        return len(self.labels)

    def outline(self) -> bytes:
        """What tells these images from others without reading all of them again: their sums, or their files' names."""
        if isinstance(self.images, Tensor):
            return self.images.flatten(1).sum(1, dtype=torch.int64).cpu().numpy().tobytes()
        return "\n".join(getattr(self.images, "files", ())).encode()

    def take(self, ids: Tensor) -> Tensor:
        """Images [B, C, H, W] in [0, 1] on the labels' device."""
        if isinstance(self.images, Tensor):
            return self.images[ids].float().div_(255)
        rows = torch.stack([self.images[int(i)] for i in ids])
        return rows.to(self.labels.device).float().div_(255)


@dataclass
class Step:
    """A batch of views.

    Attributes:
        images: [B, C, H, W] in [0, 1].
        target: [B] hard labels.
        soft_target: [B, classes] mixed labels where views mix, else None.
        ids: [B] sample ids.
        view: index of the view: one for all rows, or one for each [B].
        turn: the epoch's own view index, whatever the rows': views of further samples go by it.
        mates: where two views of one sample are mixed: the other view [B] and the share of the first [B].
        changed: [B] rows whose image the training has changed, None where it has changed none.
    """

    images: Tensor
    target: Tensor
    soft_target: Tensor | None
    ids: Tensor
    view: int | Tensor
    turn: int = 0
    mates: tuple[Tensor, Tensor] | None = None
    changed: Tensor | None = None

    def parts(self, count: int) -> list[Step]:
        """The batch in so many equal parts, for what does not fit in memory at once."""
        if count == 1:
            return [self]
        size = -(-len(self.ids) // count)
        cuts = [slice(a, a + size) for a in range(0, len(self.ids), size)]
        return [self._rows(cut) for cut in cuts]

    def _rows(self, cut: slice) -> Step:
        soft, mates, changed = self.soft_target, self.mates, self.changed
        return replace(
            self,
            images=self.images[cut],
            target=self.target[cut],
            soft_target=None if soft is None else soft[cut],
            ids=self.ids[cut],
            view=self.view if isinstance(self.view, int) else self.view[cut],
            mates=None if mates is None else (mates[0][cut], mates[1][cut]),
            changed=None if changed is None else changed[cut],
        )


class Data:
    """Train, validation and test split of one data set.

    Attributes:
        mean, std: per channel, of the training split; the student's normalisation.
        fingerprint: names the content of the training split; caches are addressed by it.
        partly: some training samples have no label.
    """

    def __init__(
        self,
        name: str,
        train: Split,
        validation: Split,
        test: Split,
        classes: int,
        augmentation: Augmentation,
        *,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        class_names: list[str] | None = None,
        loader_workers: int = 0,
    ) -> None:
        self.name, self.classes, self.augmentation = name, classes, augmentation
        self.train, self.validation, self.test = train, validation, test
        self.class_names = class_names or [str(k) for k in range(classes)]
        self.loader_workers = loader_workers
        sample = train.take(spread(torch.arange(len(train), device=train.labels.device), 2048))
        self.input_shape: tuple[int, int, int] = tuple(sample.shape[1:])  # type: ignore[assignment]
        self.mean = sample.mean((0, 2, 3)) if mean is None else mean
        self.std = sample.std((0, 2, 3)).clamp_min(1e-3) if std is None else std
        digest = hashlib.sha256(train.labels.cpu().numpy().tobytes())
        digest.update((sample[:256] * 255).to(torch.uint8).cpu().numpy().tobytes())
        digest.update(train.outline())
        self.partly = bool((train.labels < 0).any())
        self.fingerprint = digest.hexdigest()[:12]

    @property
    def device(self) -> torch.device:
        return self.train.labels.device

    def spec(self) -> DataSpec:
        return DataSpec(len(self.train), self.classes, self.input_shape, self.train.labels, partly=self.partly)

    def subset(self, share: float, seed: int, entropies: Tensor | None = None) -> Tensor:
        """Ids of a share of the training split, sorted: class-balanced, or balanced over degrees of doubt.

        Args:
            entropies: of the teacher's prediction of every training sample [N], in nats. With them every filled bin of
                their logarithm's histogram weighs the same, so that the few doubtful samples are not lost among the
                many easy ones.

        Source: the histogram of log-entropies from Na et al., Accelerating Neural Architecture Search via Proxy Data,
        IJCAI 2021; bins are 0.25 wide in the subset that was published with DisWOT (Dong et al., CVPR 2023). What each
        bin gives is our own reading.
        """
        if share >= 1:
            return torch.arange(len(self.train), device=self.device)
        generator = torch.Generator().manual_seed(seed)
        if entropies is not None:
            return _over_bins(entropies.cpu(), share, generator).to(self.device)
        labels = self.train.labels.cpu()
        chosen = []
        for label in (*range(self.classes), *([UNLABELLED] if self.partly else [])):
            members = (labels == label).nonzero().squeeze(1)
            count = max(1, round(share * len(members))) if len(members) else 0
            chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
        return torch.cat(chosen).sort().values.to(self.device)

    def view(
        self, ids: Tensor, view: int | Tensor, spec: ViewSpec, *, take: Take | None = None, turn: int | None = None
    ) -> Step:
        """View `view` of the training samples `ids`: one index for all, or one for each [B].

        Args:
            take: gives the images of sample ids, where they have been loaded already.
            turn: the epoch's view index, where `view` has one for each row.
        """
        images, changed = self._raw(ids, spec, take or self.train.take)
        raw, images = images, augment(images, ids, view, spec)
        target = self.train.labels[ids]
        if turn is None:
            turn = view if isinstance(view, int) else 0
        step = Step(images, target, None, ids, view, turn, changed=changed)
        beside = mates(ids, view, spec)
        if beside is not None:
            other, own = beside
            step.images = paste(images, augment(raw, ids, other, spec), own, ids, view, spec)
            step.mates = other, box_share(own, torch.ones_like(own, dtype=torch.bool), *self.input_shape[1:])
            return step
        mixed = mixing(ids, view, spec)
        if mixed is None:
            return step
        partner, own, boxed = mixed
        others = augment(self._raw(partner, spec, take or self.train.take)[0], partner, view, spec)
        step.images = mix(images, others, own, boxed, ids, view, spec)
        own = box_share(own, boxed, *self.input_shape[1:])
        other_target = self.train.labels[partner]
        soft = torch.zeros(len(ids), self.classes, device=images.device)
        for labels, share in ((target, own), (other_target, 1 - own)):
            if self.partly:
                labels, share = labels.clamp(min=0), share * (labels >= 0)
            soft.scatter_add_(1, labels[:, None], share[:, None])
        step.target, step.soft_target = torch.where(own >= 0.5, target, other_target), soft
        return step

    def _raw(self, ids: Tensor, spec: ViewSpec, take: Take) -> tuple[Tensor, Tensor | None]:
        """The images before any view, as the training has left them, and which rows it has changed."""
        images = take(ids)
        blends = None if spec.curriculum is None else spec.curriculum.blends
        return (images, None) if blends is None else blends.apply(ids, images, take)

    def epoch(self, ids: Tensor, order: Tensor, batch_size: int, view: int | Tensor, spec: ViewSpec) -> Iterator[Step]:
        """The batches of `ids[order]` in view `view`."""
        return self.steps(ids[order], view, batch_size, spec)

    def steps(
        self, ids: Tensor, view: int | Tensor, batch_size: int, spec: ViewSpec, *, turn: int | None = None
    ) -> Iterator[Step]:
        """Batches of `ids` in their order, in one view or one for each id. An incomplete last batch is left out unless
        it is the only one.
        """
        count = max(1, len(ids) // batch_size)
        cuts = [slice(k * batch_size, (k + 1) * batch_size) for k in range(count)]
        parts = [(ids[cut], view if isinstance(view, int) else view[cut]) for cut in cuts]
        if isinstance(self.train.images, Tensor):
            for part, index in parts:
                yield self.view(part, index, spec, turn=turn)
            return
        yield from self._stream(parts, spec, turn)

    def _stream(self, parts: list[tuple[Tensor, int | Tensor]], spec: ViewSpec, turn: int | None) -> Iterator[Step]:
        """Decode in loader workers, each image of a batch once: what a view is mixed with is a function of its ids."""
        wanted = [self._needed(ids, view, spec).cpu() for ids, view in parts]
        loader = torch.utils.data.DataLoader(
            self.train.images,  # type: ignore[arg-type]
            batch_sampler=[ids.tolist() for ids in wanted],
            num_workers=self.loader_workers,
        )
        for (ids, view), here, rows in zip(parts, wanted, loader, strict=True):
            loaded = here.to(self.device), rows.to(self.device, non_blocking=True).float().div_(255)
            yield self.view(ids, view, spec, take=partial(_among, *loaded), turn=turn)

    def _needed(self, ids: Tensor, view: int | Tensor, spec: ViewSpec) -> Tensor:
        """Sorted ids of every image that a batch of views is made of."""
        mixed = mixing(ids, view, spec)
        needed = ids if mixed is None else torch.cat([ids, mixed[0]])
        if spec.curriculum is not None and spec.curriculum.blends is not None:
            needed = spec.curriculum.blends.needed(needed)
        return needed.unique()


def _over_bins(entropies: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Sorted ids of a share of the samples, drawn without replacement; all bins of log-entropy weigh the same."""
    bins = (entropies.double().clamp_min(SURE).log() / BIN).floor().long()
    _, of, sizes = bins.unique(return_inverse=True, return_counts=True)
    # The smallest of exponential times with these rates are a weighted draw without replacement.
    times = -torch.rand(len(bins), generator=generator, dtype=torch.float64).clamp_min(1e-300).log() * sizes[of]
    return times.argsort()[: max(1, round(share * len(bins)))].sort().values


def _among(known: Tensor, images: Tensor, ids: Tensor) -> Tensor:
    """Images of `ids`, out of those of the sorted ids `known`."""
    return images[torch.searchsorted(known, ids)]


def batches(split: Split, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A split's images in [0, 1] and labels, in order: for evaluation."""
    for start in range(0, len(split), size):
        ids = torch.arange(start, min(start + size, len(split)), device=split.labels.device)
        yield split.take(ids), split.labels[ids]
