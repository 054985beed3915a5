"""Train every recipe of a benchmark table, and pack what was found into one Parquet file.

python benchmarks/kdbench/make.py [--config CONFIG] [--seeds N] [--part K/N] [--out FILE]
python benchmarks/kdbench/make.py [--config CONFIG] --pack TABLE.parquet FILE...

The first takes hours and goes on where it stopped. The second takes the same --set as the first.

Recipes are trained once per seed and rung; lines of JSON are appended to --out as they come, and lines that are there
are not made again. Several processes share the work by --part. Costs are processor seconds of this process.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from kdsearch.errors import TrialFailure
from kdsearch.runs import assemble
from kdsearch.runs.bench.grid import Grid
from kdsearch.runs.bench.lines import kept
from kdsearch.runs.bench.table import described, pack, read_config
from kdsearch.runs.config import RunConfig
from kdsearch.runs.distil import Distilled, distil
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.metrics import evaluate
from kdsearch.runs.settings import Seeds
from kdsearch.runs.sizes import Sizes
from kdsearch.runs.teacher import untrained
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.validity import problem


def timed(recipe: Recipe, world: World, seed: int, fidelity: Fidelity) -> tuple[Distilled, float]:
    """One training and its processor seconds, with those of the assistants that are trained on the way."""
    began = time.process_time()
    done = distil(recipe, world, Seeds.finalist(world.seed, seed), fidelity)
    return done, time.process_time() - began


def trained(recipe: Recipe, world: World, config: RunConfig, seed: int) -> dict[str, Any]:
    """All rungs of one recipe under one seed."""
    row: dict[str, Any] = {"recipe": recipe.hash, "seed": seed, "rungs": {}, "failure": None}
    for rung in config.fidelity.rungs:
        try:
            done, seconds = timed(recipe, world, seed, rung.fidelity())
            paid = 0.0
            if done.charged:  # once more, now that the assistants are there
                with_assistants = seconds
                done, seconds = timed(recipe, world, seed, rung.fidelity())
                paid = with_assistants - seconds
        except TrialFailure as failure:
            row["failure"] = f"{failure.reason}: {failure}"
            return row
        row["rungs"][rung.name] = {
            "score": done.trained.metrics[config.metric],
            "nll": done.trained.metrics["nll"],
            "seconds": seconds,
            "assisted": done.assistants > 0,
            "paid": paid,
            "curve": [value for _, value in done.trained.curve],
        }
        if rung.fidelity().full:
            tested = evaluate(done.trained.network, world.data.test)
            row["test"] = {"accuracy": tested["accuracy"], "nll": tested["nll"]}
    return row


def invalid(config: RunConfig, grid: Grid) -> list[str]:
    """Recipes of the grid that cannot work, by hash. What the teacher has learnt does not matter to that."""
    data = assemble.data(config, torch.device("cpu"))
    spec = untrained(config, data, assemble.settings(config)).spec
    return [recipe.hash for recipe in grid.recipes() if problem(recipe, spec, data.classes) is not None]


@click.command()
@click.option("--config", type=click.Path(path_type=Path), default=Path(__file__).parent / "digits.yaml")
@click.option("--seeds", default=2, show_default=True)
@click.option("--part", default="1/1", show_default=True, help="The K-th of N shares of the recipes.")
@click.option("--limit", type=int, help="No more than so many recipes, evenly spread over the tree.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("kdbench.jsonl"), show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), help="Keep the teacher and assistants here.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting of the config.")
@click.option("--pack", "target", type=click.Path(path_type=Path), help="Write this table from FILES instead.")
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
def main(
    config: Path,
    seeds: int,
    part: str,
    limit: int | None,
    out: Path,
    cache: Path | None,
    overrides: Sequence[str],
    target: Path | None,
    files: Sequence[Path],
) -> None:
    torch.set_num_threads(1)
    settings, grid = read_config(config, overrides)
    if target is not None:
        rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        click.echo(pack(target, settings, grid, rows, invalid(settings, grid)))
        return
    k, n = (int(piece) for piece in part.split("/"))
    recipes = list(grid.recipes())
    if limit is not None:
        recipes = [recipes[i * len(recipes) // limit] for i in range(min(limit, len(recipes)))]
    done = {(row["recipe"], row["seed"]) for row in kept(out)}
    with tempfile.TemporaryDirectory() as folder:
        world = assemble.world(settings, cache or Path(folder), "cpu")
        spec = world.teacher.spec if world.teacher else None
        sizes = Sizes(world.data, spec, world.cache)
        recipes = [recipe for recipe in recipes if problem(recipe, spec, world.data.classes) is None]
        click.echo(f"{len(recipes)} recipes, {len(done)} trainings are there already")
        # One student after the other, all seeds of it: what is there after each is a whole table of a smaller space.
        jobs = [(recipe, seed) for recipe in recipes[k - 1 :: n] for seed in range(seeds)]
        for recipe, seed in sorted(jobs, key=lambda job: (json.dumps(job[0].student.to_dict()), job[1])):
            if (recipe.hash, seed) not in done:
                row = described(recipe, sizes.of(recipe)) | trained(recipe, world, settings, seed)
                with out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
