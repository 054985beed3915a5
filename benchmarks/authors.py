"""The loss part of feature and relation methods beside their authors' own code, on the same tensors.

python benchmarks/authors.py [--REPOSITORY DIR ...] [--method NAME ...] [--batch B] [--turns N]

Each DIR is a checkout of the authors' repository; methods whose repository is not given are skipped. tat also needs
einops installed, and freekd pytorch_wavelets.

The tensors are the signals of resnet32x4 -> resnet8x4 on 32×32 images. What is timed is the forward pass of the loss
with its learned connectors and the backward pass to the student's features and the connectors' parameters: processor
time of one thread, ours and theirs taking turns, the median of the turns' ratios. Theirs is given contiguous tensors,
which it is written for; ours those and channels-last ones, in which kdsearch runs its networks at this size.

Our weights are copied into their connectors. Then values and gradients at the student's signals have to agree, or the
table says how far they are apart and why.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import median

import click
import torch
from cost import CLASSES, PAIRS, SEED, SIDE, images, settle, world_of
from published import ENTRIES, Entry, Published, Side, on_cpu
from torch import Tensor, nn

from kdsearch.kd_methods import METHODS, Batch, DataSpec, ModelSpec, Need, Signals
from kdsearch.runs import models
from kdsearch.runs.network import Network
from kdsearch.runs.preparation import FrozenTeacher
from kdsearch.runs.world import World
from kdsearch.search_space.pairing import PAIRINGS, pair
from kdsearch.search_space.recipe import Recipe

PAIR = "resnet"
SHOWN = 256  # images that teachers are prepared on
SAMPLES = 50_000  # of the data set that memories and queues are made for, CIFAR's
SHORTEST = 0.02  # seconds of a turn; short losses are repeated
NEEDS = frozenset({Need.LOGITS, Need.FEATURES, Need.PREACT, Need.EMBEDDING})
URLS = {
    "repdistiller": "HobbitLong/RepDistiller",
    "rkd": "lenscloth/RKD",
    "semckd": "DefangChen/SemCKD",
    "reviewkd": "dvlab-research/ReviewKD",
    "ofd": "clovaai/overhaul-distillation",
    "mdistiller": "megvii-research/mdistiller",
    "ickd": "ADLab-AutoDrive/ICKD",
    "tat": "sihaoevery/TaT",
    "vkd": "roymiles/vkd",
    "freekd": "Gumpest/FreeKD",
    "bingo": "haohang96/bingo",
}
"""GitHub repositories by option."""


class Tensors:
    """Both networks' signals of one batch, and what binds a method to them."""

    def __init__(self, world: World, batch: int) -> None:
        self.world = world
        assert world.teacher is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            network = models.network(
                models.student(Recipe.from_dict(PAIRS[PAIR][1]), world.data), world.data, world.settings
            )
        shape = world.data.input_shape
        shown = world.data.train.take(torch.arange(batch))
        settle(network.module, network.prepare(shown))
        self.specs = network.spec(shape), world.teacher.spec
        self.signals = [
            answer(n, spec, shown) for n, spec in zip((network, world.teacher.network), self.specs, strict=True)
        ]
        ids = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(SEED))[:batch]
        self.batch = Batch(ids % CLASSES, ids, 0.5)
        self.batch.views["cutmix"] = Batch(ids % CLASSES, ids, share=torch.full((batch,), 0.6))
        self.data = DataSpec(SAMPLES, CLASSES, shape, torch.arange(SAMPLES) % CLASSES, batch)

    def side(self, entry: Entry, memory_format: torch.memory_format, dtype: torch.dtype = torch.float32) -> Side:
        """The entry's method, bound anew with the same weights, and leaves of the graph for it to read."""
        torch.manual_seed(SEED)
        method = METHODS[entry.method](**entry.hyper)
        policy = method.pairing or PAIRINGS[0]
        stages = pair(self.specs[0].stages, self.specs[1].stages, policy, spatial=method.spatial)
        student, teacher = (
            replace(spec, stages=tuple(spec.stages[k] for k in kept))
            for spec, kept in zip(self.specs, stages, strict=True)
        )
        assert self.world.teacher is not None
        method.prepared = method.prepare(FrozenTeacher(self.world.teacher, teacher, stages[1], self.world))
        method.parts = method.bind(student, teacher, self.data)
        if method.parts is not None:
            method.parts.to(dtype)
        ours, theirs = (
            leaves(signals, kept, memory_format, dtype, trained=trained)
            for signals, kept, trained in zip(self.signals, stages, (True, False), strict=True)
        )
        return Side(method, ours, theirs, self.batch)


def answer(network: Network, spec: ModelSpec, shown: Tensor) -> Signals:
    network.listen(NEEDS, spec)
    with torch.no_grad():
        signals = network(shown).detach()
    network.close()
    return signals


def leaves(
    signals: Signals, stages: list[int], memory_format: torch.memory_format, dtype: torch.dtype, *, trained: bool
) -> Signals:
    """Copies of the signals in a memory format; those of other views are the batch's, in another order."""

    def leaf(x: Tensor, shift: int = 0) -> Tensor:
        x = x.detach().roll(shift, 0).to(dtype)
        x = x.contiguous(memory_format=memory_format) if x.ndim == 4 else x.contiguous()
        return x.clone().requires_grad_(trained)

    assert signals.embedding is not None
    names = ("member", "cutmix") if trained else ("key", "member_key")
    views = {
        name: Signals(leaf(signals.logits), embedding=leaf(signals.embedding, k)) for k, name in enumerate(names, 1)
    }
    maps = [leaf(x) for x in signals.features], [leaf(x) for x in signals.preact]
    taken = replace(signals, logits=leaf(signals.logits), embedding=leaf(signals.embedding), views=views)
    return replace(taken, features=maps[0], preact=maps[1]).select(stages)


def tensors(signals: Signals) -> list[Tensor]:
    embeddings = [x.embedding for x in (signals, *signals.views.values()) if x.embedding is not None]
    return [signals.logits, *embeddings, *signals.features, *signals.preact]


class Timed:
    """A loss whose forward and backward pass are timed."""

    def __init__(self, loss: Callable[[], Tensor], student: Signals, modules: Iterable[nn.Module]) -> None:
        self.loss = loss
        self.inputs = tensors(student)
        self.reached = [*self.inputs, *(p for module in modules for p in module.parameters() if p.requires_grad)]
        self.repeats = 1

    def once(self) -> float:
        for x in self.reached:
            x.grad = None
        began = time.process_time()
        self.loss().backward()
        return time.process_time() - began

    def turn(self) -> float:
        return sum(self.once() for _ in range(self.repeats)) / self.repeats

    def outcome(self, loss: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """A loss' value and its gradient at all of the student's signals."""
        for x in self.reached:
            x.grad = None
        value = loss()
        value.backward()
        found = [torch.zeros_like(x) if x.grad is None else x.grad for x in self.inputs]
        return value.detach(), torch.cat([x.reshape(-1) for x in found])


def timed(side: Side) -> Timed:
    def loss() -> Tensor:
        return side.method.loss(side.student, side.teacher, side.batch)

    return Timed(loss, side.student, [] if side.method.parts is None else [side.method.parts])


def compare(entry: Entry, code: Path, given: Tensors, turns: int) -> str:
    """The entry's line of the table."""
    apart = agreement(entry, code, given)
    sides = [given.side(entry, layout) for layout in (torch.contiguous_format, torch.channels_last)]
    theirs, published = built(entry, code, given, torch.float32)
    rivals = [*(timed(side) for side in sides), Timed(published.loss, theirs.student, published.modules)]
    for rival in rivals:
        rival.once()
        rival.repeats = max(1, round(SHORTEST / max(rival.once(), 1e-6)))
    taken = [[rival.turn() for rival in rivals] for _ in range(turns)]
    seconds = [1e3 * median(turn[k] for turn in taken) for k in (0, 2)]
    ratios = [median(turn[k] / turn[2] for turn in taken) for k in (0, 1)]
    form = ", ".join(f"{name}={value}" for name, value in entry.hyper.items() if name != "passes")
    numbers = [f"{x:.2f}" for x in (*seconds, *ratios)]
    return f"| {' | '.join([entry.method, form, URLS[entry.repository], *numbers, apart, published.differs])} |"


def built(entry: Entry, code: Path, given: Tensors, dtype: torch.dtype) -> tuple[Side, Published]:
    """Their loss on tensors of its own, so that either side can move its memories."""
    side = given.side(entry, torch.contiguous_format, dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return side, entry.build(code, side)
    finally:
        torch.set_default_dtype(before)


def agreement(entry: Entry, code: Path, given: Tensors) -> str:
    """How far the two values and gradients are apart in float64, over theirs."""
    side, published = built(entry, code, given, torch.float64)
    ours = timed(side)
    pair = published.checked or (ours.loss, published.loss)
    outcomes = []
    torch.set_default_dtype(torch.float64)
    try:
        for loss, scale in zip(pair, (1.0, published.scale), strict=True):
            outcomes.append([scale * x for x in ours.outcome(loss)])
    finally:
        torch.set_default_dtype(torch.float32)
    mine, other = outcomes
    return f"{(mine[0] - other[0]).norm() / other[0].norm():.0e} / {(mine[1] - other[1]).norm() / other[1].norm():.0e}"


def repositories(function: Callable[..., None]) -> Callable[..., None]:
    for name, url in reversed(URLS.items()):
        option = click.option(f"--{name}", type=click.Path(exists=True, file_okay=False, path_type=Path), help=url)
        function = option(function)
    return function


@click.command()
@repositories
@click.option("--method", "names", multiple=True, help="Only these.")
@click.option("--batch", default=64, show_default=True)
@click.option("--turns", default=15, show_default=True)
def main(names: tuple[str, ...], batch: int, turns: int, **places: Path | None) -> None:
    if not 2 <= batch <= SHOWN:
        raise click.UsageError(f"--batch must lie in [2, {SHOWN}], not {batch}")
    if turns < 1:
        raise click.UsageError(f"--turns must be at least 1, not {turns}")
    unknown = set(names) - {entry.method for entry in ENTRIES}
    if unknown:
        raise click.UsageError(f"--method: nothing of {', '.join(sorted(unknown))} to compare with")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, on_cpu():
        given = Tensors(world_of(PAIR, images(SHOWN, torch.device("cpu")), batch, Path(folder)), batch)
        click.echo(
            "| method | form | authors' code | ours, ms | theirs, ms | over theirs | channels last | apart | differs |"
        )
        click.echo("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for entry in ENTRIES:
            code = places[entry.repository]
            if names and entry.method not in names:
                continue
            if code is None:
                click.echo(f"| {entry.method} | skipped: no --{entry.repository} | | | | | | | |")
                continue
            try:
                click.echo(compare(entry, code, given, turns))
            except Exception as error:  # one repository must not cost the table of all others
                click.echo(f"| {entry.method} | {type(error).__name__}: {error} | | | | | | | |")
    click.echo(f"\ncpu, one thread, batch {batch}, {turns} turns, {SIDE}×{SIDE}; apart: relative, values / gradients.")


if __name__ == "__main__":
    main()
