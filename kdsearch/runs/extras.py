"""What a step shows beside its batch: further samples and changed images that some method asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from kdsearch.kd_methods import Batch, KDMethod, Signals
from kdsearch.kd_methods.sparse import Visible
from kdsearch.runs.data import Data, Step
from kdsearch.runs.network import Network
from kdsearch.runs.offline import FixedTeacher
from kdsearch.runs.views import ViewSpec

Ask = Callable[[Tensor, Tensor, "Visible | None"], Signals]


@dataclass
class Extra:
    """A companion or a view of one step.

    `images` is None where the teacher alone is asked. `taught` is what the teacher is shown: a stored view's step,
    these very images, or nothing. `visible` is all that networks see of it which can be
    kept to that.
    """

    name: str
    images: Tensor | None
    batch: Batch
    taught: Step | Tensor | None
    visible: Visible | None = None


def gather(
    methods: Sequence[KDMethod],
    step: Step,
    data: Data,
    views: ViewSpec,
    stored: int,
    progress: float,
    generator: Generator,
) -> list[Extra]:
    """Everything that the methods want to see in this step. `stored` is the number of views in the schedule."""
    extras: list[Extra] = []
    shown: dict[str, Tensor] = {}
    for method in methods:
        for companion in method.companions():
            ids = companion.pick(step.ids, generator)
            if not len(ids):
                continue
            number = (step.turn + 1) % stored if companion.other_view else step.turn
            other = data.view(ids, number, views)
            batch = Batch(other.target, ids, progress, other.soft_target, generator)
            shown[companion.name] = other.images
            images = other.images if companion.student else None
            extras.append(Extra(companion.name, images, batch, other if companion.teacher else None))
        for view in method.views():
            share, aside = None, None
            if view.beside is None:
                images = view.apply(step.images, generator)
                if isinstance(images, tuple):
                    images, aside = images
            elif view.beside in shown:
                images, share = view.apply(step.images, shown[view.beside], generator)
            else:
                continue
            target, ids = (t.repeat_interleave(view.copies) for t in (step.target, step.ids))
            soft = None if step.soft_target is None else step.soft_target.repeat_interleave(view.copies, 0)
            batch = Batch(target, ids, progress, soft, generator, share=share, aside=aside)
            visible = None
            if view.sparse:
                assert aside is not None  # such a view says what is visible
                visible = Visible(aside.visible, aside.kept, view.sparse)
            extras.append(Extra(view.name, images, batch, images if view.teacher else None, visible))
    return extras


def answer(network: Network, step: Step, extras: list[Extra]) -> Signals:
    """A learner's signals of the batch and, as its views, of everything beside it.

    All of it goes through the network at once, but for what it sees only a part of.
    """
    shown: list[tuple[Extra, Tensor]] = []
    apart: list[tuple[Extra, Tensor]] = []
    for extra in extras:
        if extra.images is not None:
            (apart if network.spares(extra.visible) else shown).append((extra, extra.images))
    images, target = step.images, step.target
    if shown:
        images = torch.cat([images, *(own for _, own in shown)])
        target = torch.cat([target, *(extra.batch.target for extra, _ in shown)])
    main = signals = network(images, target, create_graph=True)
    if shown:
        start = len(step.images)
        main = signals.rows(0, start)
        for extra, own in shown:
            stop = start + len(own)
            main.views[extra.name] = signals.rows(start, stop)
            start = stop
    for extra, own in apart:
        main.views[extra.name] = network(own, extra.batch.target, create_graph=True, visible=extra.visible)
    return main


def taught(teacher: FixedTeacher, step: Step, extras: list[Extra]) -> Signals:
    """A frozen teacher's signals of the batch and of what it is shown beside it."""
    signals = teacher(step)
    for extra in extras:
        if isinstance(extra.taught, Step):
            signals.views[extra.name] = teacher(extra.taught)
        elif extra.taught is not None:
            signals.views[extra.name] = teacher.live(extra.taught, extra.batch.target, extra.visible)
    return signals.float()


def asked(ask: Ask, images: Tensor, target: Tensor, extras: list[Extra]) -> Signals:
    """The same of a teacher that stores nothing: `ask` gives its signals of images, labels and what is visible."""
    signals = ask(images, target, None)
    for extra in extras:
        shown = extra.taught.images if isinstance(extra.taught, Step) else extra.taught
        if shown is not None:
            signals.views[extra.name] = ask(shown, extra.batch.target, extra.visible)
    return signals.float()
