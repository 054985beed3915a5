"""Every method of the catalogue on the embedded digits: validation accuracy beside no distillation and plain KD.

python benchmarks/catalogue.py [--seeds N] [--method NAME ...] [--out FILE] [--matched] [--config FILE]

Each method stands alone in a recipe, at its published defaults, with the same student, epochs and seeds as the two
baselines; methods that are no loss of their own stand beside plain KD. Results are kept line by line in --out, so that
an interrupted run goes on where it stopped. Time is that of the training, methods' preparation of the teacher left out.

Published weights belong to larger networks, other learning rates and maps of other sizes. With --matched each loss has
the weight at which its first gradient on the student is as long as the cross-entropy's, and cross-entropy weighs 1.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods import LOSS_SLOTS, METHODS, SLOTS
from kdsearch.runs import assemble, config_file
from kdsearch.runs.bench.lines import kept
from kdsearch.runs.distil import _prepare, distil
from kdsearch.runs.fidelity import FULL
from kdsearch.runs.report.intervals import Estimate, estimate, paired
from kdsearch.runs.settings import Seeds
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import NEUTRAL, Node, Recipe
from kdsearch.search_space.space import SearchSpace


def recipe_of(name: str, base: Recipe) -> Recipe:
    """The method at its published defaults, on the base's student and optimiser; beside plain KD where it is no loss of
    its own.
    """
    cls, plain = METHODS[name], base.to_dict()
    slots: dict[str, Any] = {"student": plain["student"], "optimizer": plain["optimizer"], cls.slot: name}
    if cls.branches:
        slots |= {"student": "vit", "optimizer": "adamw"}
    if cls.slot not in (*LOSS_SLOTS, "targets") and not getattr(cls, "own_objective", False):
        slots.setdefault("logits", "kd")
    if cls.preset:
        slots = {"preset": name, "student": plain["student"]}
    return Recipe.from_dict(slots)


def matched(recipe: Recipe, world: World) -> Recipe:
    """The recipe with its one loss as steep at the start as the cross-entropy, which stands beside it in full."""
    slot = next((s for s, node in recipe.terms.items() if s != "logits" or len(recipe.terms) == 1), None)
    if slot is None:
        return recipe
    training, _, _ = _prepare(recipe, world, Seeds.search(world.seed), FULL, None, None)
    reference, measured = training.gradient_norms()
    for learner in training.learners:
        learner.network.close()
    node = recipe.terms[slot]
    domain = METHODS[node.name].parameters["weight"].domain  # type: ignore[union-attr]
    weight = float(node.hyper["weight"]) * reference / measured[node.name][1]
    node = Node(node.name, {**node.hyper, "weight": min(max(weight, domain[0]), domain[1])})
    return replace(recipe, ce_weight=1.0, terms={**recipe.terms, slot: node})


def scores(recipe: Recipe, world: World, seeds: int, out: Path) -> dict[int, dict[str, float]]:
    """Validation accuracy and seconds by seed, read back where they are known."""
    known: dict[int, dict[str, float]] = {}
    for row in kept(out):
        if row["recipe"] == recipe.hash:
            known[row["seed"]] = row
    for seed in range(seeds):
        if seed not in known:
            done = distil(recipe, world, Seeds.finalist(world.seed, seed))
            row = {
                "recipe": recipe.hash,
                "seed": seed,
                "accuracy": done.trained.metrics["accuracy"],
                "seconds": done.seconds,
            }
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            known[seed] = row
    return {seed: known[seed] for seed in range(seeds)}


def shown(value: Estimate | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value.mean:+.1f} ± {100 * (value.half_width or 0):.1f}" + (" *" if value.resolved else "")


@click.command()
@click.option("--seeds", default=5, show_default=True)
@click.option("--method", "names", multiple=True, help="Only these; all by default.")
@click.option("--matched", "match", is_flag=True, help="Every loss as steep at the start as the cross-entropy.")
@click.option("--config", "source", type=click.Path(path_type=Path), help="Another run config; the demo's by default.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting of the config.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("catalogue.jsonl"), show_default=True)
def main(
    seeds: int, names: tuple[str, ...], match: bool, source: Path | None, overrides: tuple[str, ...], out: Path
) -> None:
    torch.set_num_threads(1)
    config = config_file.read(source, overrides)
    base = SearchSpace.from_dict(config.space).default()
    chosen = [c for c in METHODS if c.slot != "analysis" and NEUTRAL.get(c.slot) != c.name]
    chosen = [c for c in chosen if not names or c.name in names]
    click.echo("| slot | method | accuracy | over none | over plain KD | time | ")
    click.echo("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        world = assemble.world(config, Path(folder), "cpu")
        for cls in sorted(chosen, key=lambda c: (SLOTS.index(c.slot), c.year, c.name)):
            if match and cls.slot not in LOSS_SLOTS:
                continue
            recipe = recipe_of(cls.name, base)
            try:
                recipe = matched(recipe, world) if match else recipe
                own, none, kd = (
                    scores(r, world, seeds, out) for r in (recipe, recipe.without_distillation(), recipe.plain_kd())
                )
            except TrialFailure as error:
                click.echo(f"| {cls.slot} | {cls.name} | fails ({error.reason}): {error} | | | |")
                continue
            accuracy, without, plain = ({k: row["accuracy"] for k, row in table.items()} for table in (own, none, kd))
            mean = estimate(list(accuracy.values()))
            time = sum(row["seconds"] for row in own.values()) / sum(row["seconds"] for row in kd.values())
            click.echo(
                f"| {cls.slot} | {cls.name} | {100 * mean.mean:.1f} ± {100 * mean.spread:.1f} | "
                f"{shown(paired(accuracy, without))} | {shown(paired(accuracy, plain))} | {time:.1f} |"
            )
    click.echo(
        f"\nValidation accuracy in %, mean ± standard deviation over {seeds} seeds; differences are paired by seed, "
        "with 95 % intervals, and * where these leave out zero; time over plain KD's."
    )


if __name__ == "__main__":
    main()
