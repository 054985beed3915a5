"""What a training step of every feature, relation and token method costs beside plain KD's: time and peak memory.

python benchmarks/cost.py [--method NAME ...] [--batch B] [--steps N] [--samples S] [--device D]

One CIFAR-shaped pair, resnet32x4 -> resnet8x4, with a live teacher of random weights; methods that need a transformer
as student are measured on one under the same teacher, or under another transformer where they need that too. Each
method stands alone at its published defaults, or beside plain KD where it is no loss of its own. Steps of the method
and of plain KD on the same pair take turns, so that a neighbour on the machine slows both; times are medians, on a CPU
of processor time on one thread. A staged method's stages are measured one by one and weighted by their shares.

Peak memory is what a step holds at most: weights of student, teacher and the method's own parts, optimiser state,
activations and gradients, without the data set. Preparation of the teacher is not counted. The cost of methods that
look at the whole data set in each step (memories, queues) grows with --samples.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import click
import torch
from torch import Tensor, nn

from kdsearch.kd_methods import LOSS_SLOTS, METHODS, SLOTS, KDMethod
from kdsearch.runs import curriculum, models
from kdsearch.runs.data import Data, Split, Step
from kdsearch.runs.distil import _prepare
from kdsearch.runs.fidelity import FULL
from kdsearch.runs.settings import Seeds, Settings, pick_device
from kdsearch.runs.training import Training
from kdsearch.runs.views import Augmentation
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.recipe import Recipe

MEASURED = ("features", "relations", "tokens")
CLASSES, SIDE = 100, 32
WARM = 2  # steps before the first measured one: banks, optimiser state and the allocator settle
SEED = 0

PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "resnet": (
        {"student": {"family": "resnet", "depth": 32, "width": 4.0}},
        {"student": {"family": "resnet", "depth": 8, "width": 4.0}, "optimizer": "sgd"},
    ),
    "resnet to vit": (
        {"student": {"family": "resnet", "depth": 32, "width": 4.0}},
        {"student": {"family": "vit", "dim": 96, "depth": 6, "heads": 3}, "optimizer": "adamw"},
    ),
    "vit": (
        {"student": {"family": "vit", "dim": 192, "depth": 12, "heads": 3}},
        {"student": {"family": "vit", "dim": 96, "depth": 6, "heads": 3}, "optimizer": "adamw"},
    ),
}
"""Teacher and student by pair, in the order in which a method tries them."""


def images(samples: int, device: torch.device) -> Data:
    """Noise in the shape of CIFAR-100."""
    generator = torch.Generator().manual_seed(SEED)

    def split(count: int) -> Split:
        drawn = torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        return Split(drawn.to(device), (torch.arange(count) % CLASSES).to(device))

    usual = Augmentation(shift=4, flip=True)
    return Data("noise", split(samples), split(CLASSES), split(CLASSES), CLASSES, usual)


@torch.no_grad()
def settle(module: nn.Module, batch: Tensor) -> None:
    """Batch statistics of this batch, so that a deep network of random weights stays within bounds."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    module.train()(batch)
    module.eval()
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def world_of(pair: str, data: Data, batch: int, folder: Path) -> World:
    """The pair's teacher, frozen, and settings under which nothing of it is stored."""
    settings = Settings(epochs=1, views=1, batch_size=batch, evaluations=1, cache_limit=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = models.student(Recipe.from_dict(PAIRS[pair][0]), data)
    network = models.network(module, data, settings)
    settle(module, network.prepare(data.train.take(torch.arange(batch, device=data.device))))
    module.requires_grad_(False)
    teacher = TeacherModel(network, network.spec(data.input_shape), models.state_hash(module), pair)
    return World(data, teacher, settings, folder / pair.replace(" ", "-"), seed=SEED)


def recipe_of(cls: type[KDMethod], pair: str) -> Recipe:
    """The method at its published defaults, beside plain KD where it is no loss of its own."""
    slots: dict[str, Any] = {**PAIRS[pair][1], cls.slot: cls.name}
    if cls.preset:
        slots = {"preset": cls.name, "student": slots["student"]}
    elif cls.slot not in (*LOSS_SLOTS, "targets") and not getattr(cls, "own_objective", False):
        slots["logits"] = "kd"
    return Recipe.from_dict(slots)


class Running:
    """A training that is taken step by step."""

    def __init__(self, recipe: Recipe, world: World) -> None:
        devices = [world.device] if world.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(SEED)
            self.training, _, _ = _prepare(recipe, world, Seeds.search(SEED), FULL, None, None)
        training = self.training
        with training.settings.autocast(training.device):
            batch = training.settings.batch_size
            curriculum.grade(training.curriculum, training.fixed, training.data, training.views, batch)
        self.stages = training.stages
        self.active: list[Any] = []
        self.shown = self._shown()

    def _shown(self) -> Iterator[Step]:
        training = self.training
        ids, view = training.curriculum.epoch(0)
        size = min(training.settings.batch_size, len(ids))
        while True:
            yield from training.data.steps(ids, view, size, training.views, turn=0)

    def begin(self, index: int) -> None:
        self.stage, owner = self.stages[index]
        self.training._begin_stage(self.stage, owner, None)
        self.active = [learner.objective.active(self.stage, owner) for learner in self.training.learners]
        for _ in range(WARM):
            self.step()

    def step(self) -> float:
        """Seconds of one step: everybody's forward pass, all losses, backward pass and update."""
        training = self.training
        batch = next(self.shown)
        began = now(training.device)
        training._step(batch, self.stage, self.active, 0.5, 1)
        return now(training.device) - began

    def peak(self) -> float:
        """Bytes that one step holds at most, the data set left out."""
        training = self.training
        for learner in training.learners:
            learner.optimizer.zero_grad(set_to_none=True)
        resting = held(training)
        if training.device.type == "cuda":
            before = torch.cuda.memory_allocated(training.device)
            torch.cuda.reset_peak_memory_stats(training.device)
            self.step()
            return resting + torch.cuda.max_memory_allocated(training.device) - before
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            self.step()
        recorded: Any = profile.profiler
        changes = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
        ordered = [e.nbytes() for e in sorted(changes, key=lambda e: e.start_ns())]
        return resting + max(itertools.accumulate(ordered), default=0)

    def close(self) -> None:
        for learner in self.training.learners:
            learner.network.close()


def now(device: torch.device) -> float:
    """Seconds on the clock, or of this process' own work on a CPU that others use too."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def held(training: Training) -> int:
    """Bytes that lie in memory between two steps: weights, buffers and optimiser state of everybody, counted once."""
    modules = [module for learner in training.learners for module in (learner.network.module, learner.objective.parts)]
    modules += [teacher.network.module for teacher in training.fixed.values()]
    room = training.classroom
    modules += [] if room.average is None else [room.average.module]
    modules += [] if room.pivot is None else [room.pivot.network.module]
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    for learner in training.learners:
        state = getattr(learner.optimizer, "state", {})
        tensors += [t for entry in state.values() for t in entry.values() if isinstance(t, Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class Baseline(Running):
    """Plain KD on a pair, and what a step of it holds."""

    def __init__(self, pair: str, world: World) -> None:
        # Two trainings that take turns on one network would take each other's taps off.
        apart = copy.copy(world)
        apart.teacher = copy.deepcopy(world.teacher)
        super().__init__(Recipe.from_dict(PAIRS[pair][1]).plain_kd(), apart)
        self.begin(0)
        self.bytes = self.peak()


def compare(own: Running, kd: Baseline, steps: int) -> tuple[float, float, float, float]:
    """Seconds a step and bytes of the method, and both over plain KD's."""
    shares = [stage.share for stage, _ in own.stages]
    seconds = slower = peak = 0.0
    for index, share in enumerate(shares):
        own.begin(index)
        turns = [(own.step(), kd.step()) for _ in range(steps)]
        seconds += share / sum(shares) * median(a for a, _ in turns)
        slower += share / sum(shares) * median(a / b for a, b in turns)
        peak = max(peak, own.peak())
    return seconds, slower, peak, peak / kd.bytes


def measure(cls: type[KDMethod], pair: str, world: World, kd: Baseline, steps: int) -> str:
    """The method's line of the table.

    Raises:
        TrialFailure: the method cannot be trained on this pair.
    """
    own = Running(recipe_of(cls, pair), world)
    try:
        return line(cls.name, cls.slot, pair, compare(own, kd, steps))
    finally:
        own.close()


def line(name: str, slot: str, pair: str, result: tuple[float, float, float, float]) -> str:
    seconds, slower, peak, larger = result
    return f"| {slot} | {name} | {pair} | {1e3 * seconds:.1f} | {slower:.2f} | {peak / 2**20:.1f} | {larger:.2f} |"


def chosen(names: tuple[str, ...]) -> list[type[KDMethod]]:
    """The methods to measure, by slot and name.

    Raises:
        UsageError: an unknown name, or a method that takes no part in training.
    """
    for name in names:
        if name not in METHODS or METHODS[name].slot == "analysis":
            raise click.UsageError(f"--method: {name!r} is no method that trains a student")
    found = [c for c in METHODS if (c.name in names if names else c.slot in MEASURED)]
    return sorted(found, key=lambda c: (SLOTS.index(c.slot), c.name))


@click.command()
@click.option("--method", "names", multiple=True, help="Only these; all of the three slots by default.")
@click.option("--batch", default=64, show_default=True)
@click.option("--steps", default=10, show_default=True, help="Measured steps of each method.")
@click.option("--samples", default=2048, show_default=True, help="Size of the data set; CIFAR has 50000.")
@click.option("--device", default="auto", show_default=True)
def main(names: tuple[str, ...], batch: int, steps: int, samples: int, device: str) -> None:
    if not 1 <= batch <= samples:
        raise click.UsageError(f"--batch must lie in [1, {samples}], the size of the data set, not {batch}")
    if steps < 1:
        raise click.UsageError(f"--steps must be at least 1, not {steps}")
    methods = chosen(names)
    place = pick_device(device)
    torch.set_num_threads(1)
    data = images(samples, place)
    click.echo("| slot | method | pair | ms a step | over kd | peak MiB | over kd |")
    click.echo("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        ready: dict[str, tuple[World, Baseline]] = {}
        for cls in methods:
            failure: Exception | None = None
            for pair in list(PAIRS)[1:] if cls.branches or cls.slot == "tokens" else PAIRS:
                if pair not in ready:
                    world = world_of(pair, data, batch, Path(folder))
                    ready[pair] = world, Baseline(pair, world)
                try:
                    click.echo(measure(cls, pair, *ready[pair], steps))
                    failure = None
                    break
                except Exception as error:  # one method must not cost the table of all others
                    failure = failure or error
            if failure is not None:
                click.echo(f"| {cls.slot} | {cls.name} | {type(failure).__name__}: {failure} | | | | |")
    click.echo(f"\n{place}, batch {batch}, {steps} steps, {samples} samples of {SIDE}×{SIDE}, live teacher.")


if __name__ == "__main__":
    main()
