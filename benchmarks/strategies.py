"""Every teaching strategy on the embedded digits beside plain KD that costs as much in all.

python benchmarks/strategies.py [--seeds N] [--strategy NAME ...] [--epochs E]

A strategy stands with plain KD's loss, or with its own published objective, at its defaults. What its assistants,
generations, peers and residual students cost counts: plain KD then trains its one student for so many more epochs, on a
schedule of that length, that both have taken as long. The baselines share student, optimiser and seeds.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import torch

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods import METHODS
from kdsearch.runs import assemble, config_file
from kdsearch.runs.distil import distil
from kdsearch.runs.report.intervals import Estimate, estimate, paired
from kdsearch.runs.settings import Seeds
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace

Runs = dict[int, tuple[float, float]]  # by seed: accuracy, and processor seconds in all


def recipe_of(name: str, base: Recipe) -> Recipe:
    """The strategy at its defaults: its own objective, or plain KD in its lessons."""
    plain = base.to_dict()
    slots: dict[str, Any] = {"student": plain["student"], "optimizer": plain["optimizer"], "teaching": name}
    if not METHODS[name].own_objective:  # type: ignore[attr-defined]
        slots["logits"] = "kd"
    return Recipe.from_dict(slots)


def trained(recipe: Recipe, world: World, seeds: int) -> Runs:
    """Nothing is found that another recipe has paid for: each has a cache of its own."""
    own = replace(world, cache=world.cache.parent / recipe.hash, assistants={})
    found: Runs = {}
    for seed in range(seeds):
        began = time.process_time()
        done = distil(recipe, own, Seeds.finalist(world.seed, seed))
        found[seed] = done.trained.metrics[world.metric], time.process_time() - began
    return found


def accuracy(runs: Runs) -> dict[int, float]:
    return {seed: score for seed, (score, _) in runs.items()}


def seconds(runs: Runs) -> float:
    return fmean(spent for _, spent in runs.values())


def shown(value: Estimate | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value.mean:+.1f} ± {100 * (value.half_width or 0):.1f}" + (" *" if value.resolved else "")


@click.command()
@click.option("--seeds", default=5, show_default=True)
@click.option("--strategy", "names", multiple=True, help="Only these; all by default.")
@click.option("--epochs", type=int, help="Of a full training; the config's by default.")
def main(seeds: int, names: tuple[str, ...], epochs: int | None) -> None:
    torch.set_num_threads(1)
    config = config_file.read()
    base = SearchSpace.from_dict(config.space).default()
    strategies = sorted((c for c in METHODS if c.slot == "teaching" and c.name != "teacher"), key=lambda c: c.year)
    with tempfile.TemporaryDirectory() as folder:
        world = assemble.world(config, Path(folder), "cpu")
        if epochs is not None:
            world = replace(world, settings=replace(world.settings, epochs=epochs, views=epochs))
        usual = world.settings.epochs
        assert world.teacher is not None
        world.others = {"teacher2": _second_teacher(config, world, Path(folder))}
        none = trained(base.without_distillation(), world, seeds)
        kd = trained(base.plain_kd(), world, seeds)
        known = {usual: kd}
        click.echo(f"none {_text(none)}, plain KD {_text(kd)} at {usual} epochs\n")
        click.echo("| strategy | accuracy | over none | over plain KD | cost over KD's | KD at that cost | over it |")
        click.echo("| --- | --- | --- | --- | --- | --- | --- |")
        for cls in strategies:
            if names and cls.name not in names:
                continue
            try:
                own = trained(recipe_of(cls.name, base), world, seeds)
            except TrialFailure as error:
                click.echo(f"| {cls.name} | fails ({error.reason}): {error} | | | | | |")
                continue
            ratio = seconds(own) / seconds(kd)
            longer = max(1, round(usual * ratio))
            if longer not in known:
                more = replace(world, settings=replace(world.settings, epochs=longer, views=longer))
                known[longer] = trained(base.plain_kd(), more, seeds)
            gains = [shown(paired(accuracy(own), accuracy(rival))) for rival in (none, kd, known[longer])]
            fair = f"{_text(known[longer])} ({longer} epochs)"
            click.echo(f"| {cls.name} | {_text(own)} | {gains[0]} | {gains[1]} | {ratio:.1f} | {fair} | {gains[2]} |")
    click.echo(
        f"\nValidation accuracy in %, mean ± standard deviation over {seeds} seeds; differences are paired by seed, "
        "with 95 % intervals, and * where these leave out zero. Cost is processor time, everybody's training counted."
    )


def _second_teacher(config: Any, world: World, folder: Path) -> Any:
    """For the ensemble: the teacher's architecture from other initial weights."""
    from kdsearch.runs import teacher

    other = config.teacher.model_copy(update={"seed": config.seed + 1})
    twice = config.model_copy(update={"teachers": [other]})
    return teacher.further(twice, world.data, assemble.settings(config), folder / "cache")["teacher2"]


def _text(runs: Runs) -> str:
    found = estimate(list(accuracy(runs).values()))
    return f"{100 * found.mean:.1f} ± {100 * found.spread:.1f}"


if __name__ == "__main__":
    main()
