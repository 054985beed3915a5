"""How well short trainings rank recipes as full ones do, and what they cost: Kendall's tau against cost.

    python benchmarks/fidelity.py [--config CONFIG] [--set key=value ...] [--recipes N] [--axis epochs=0.1,0.2 ...]

Recipes are drawn from a benchmark's space. The truth of a recipe is its mean test score over full trainings under
several seeds; every cheap training is judged by the validation split under another seed, as in a search. Lines of JSON
are appended to --out as they come, and what is there is not trained again. Costs are processor seconds, and steps times
multiply-accumulates of the student alone, as shares of a full training's. The last table asks the same of a single full
training, and of one seed about another: no cheap training can be expected to do better.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from kdsearch import yaml_text
from kdsearch.errors import TrialFailure
from kdsearch.runs import assemble
from kdsearch.runs.bench.lines import kept
from kdsearch.runs.bench.table import read_config
from kdsearch.runs.config import RunConfig, RungConfig
from kdsearch.runs.distil import distil
from kdsearch.runs.fidelity import FULL, Fidelity
from kdsearch.runs.metrics import DIRECTIONS, evaluate
from kdsearch.runs.settings import Seeds
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.students.measure import macs
from kdsearch.search_space.validity import problem

AXES = {"epochs": [0.1, 0.2, 0.4], "data": [0.25, 0.5, 1.0], "keep": [1.0, 0.5], "resolution": [1.0]}
RESAMPLES = 500
LAST = 3
Row = dict[str, Any]


def measured(recipe: Recipe, world: World, config: RunConfig, seeds: Seeds, fidelity: Fidelity) -> Row:
    """One training: its scores, its processor seconds and its student's arithmetic."""
    began = time.process_time()
    try:
        done = distil(recipe, world, seeds, fidelity)
    except TrialFailure as failure:
        return {"failure": f"{failure.reason}: {failure}"}
    seconds = time.process_time() - began - done.charged
    trained, network = done.trained, done.trained.network
    channels, side = world.data.input_shape[0], network.side or world.data.input_shape[-1]
    batch = min(world.settings.batch_size, max(1, round(fidelity.data * len(world.data.train))))
    row = {
        "score": trained.metrics[config.metric],
        "nll": trained.metrics["nll"],
        "curve": [value for _, value in trained.curve],
        "seconds": seconds,
        "work": float(trained.steps * batch * macs(trained.module, (channels, side, side))),
        "failure": None,
    }
    if fidelity == FULL:
        row["test"] = evaluate(network, world.data.test)[config.metric]
    return row


def kendall(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kendall's tau-b of the last axis; NaN where one side is all tied."""
    upper = np.triu_indices(a.shape[-1], 1)
    x, y = (np.sign(v[..., upper[0]] - v[..., upper[1]]) for v in (a, b))
    with np.errstate(invalid="ignore"):
        return np.asarray((x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1)))


def agreement(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Kendall's tau-b and its 90 % interval, by the bootstrap over recipes."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    rows = np.random.default_rng(0).integers(0, len(x), (RESAMPLES, len(x)))
    low, high = np.nanquantile(kendall(x[rows], y[rows]), (0.05, 0.95))
    return float(kendall(x, y)), float(low), float(high)


def label(fidelity: Fidelity) -> str:
    """What a fidelity leaves out, in words."""
    plain = FULL.to_dict()
    parts = [f"{key} {_text(v)}" for key, v in fidelity.to_dict().items() if v != plain[key] and key != "name"]
    return ", ".join(parts) or "full"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "/".join(f"{v:g}" for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def grid(axes: dict[str, list[Any]]) -> list[Fidelity]:
    """Every combination of the axes' values but the full one."""
    rungs = [RungConfig(name="cheap", **dict(zip(axes, values, strict=True))) for values in product(*axes.values())]
    return [found for rung in rungs if not (found := rung.fidelity()).full]


class Rows:
    """What has been trained, by recipe, fidelity and seed; kept in a file line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[tuple[str, str, str], Row] = {}
        for row in kept(path):
            self.known[row["recipe"], row["fidelity"], row["seed"]] = row

    def make(self, recipe: Recipe, world: World, config: RunConfig, seed: str, fidelity: Fidelity) -> Row:
        """The training's row: from the file, or trained now. Seeds are those of the search ("s0") or of finals."""
        key = recipe.hash, label(fidelity), seed
        if key not in self.known:
            k = int(seed[1:])
            seeds = Seeds.search(config.seed + k) if seed[0] == "s" else Seeds.finalist(config.seed, k)
            row = dict(zip(("recipe", "fidelity", "seed"), key, strict=True))
            row |= measured(recipe, world, config, seeds, fidelity)
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self.known[key] = row
        return self.known[key]


def truths(known: Sequence[Path]) -> dict[str, list[float]]:
    """Test scores of full trainings by recipe, from rows of a benchmark's table; those that failed are left out."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in [json.loads(line) for path in known for line in path.read_text().splitlines() if line.endswith("}")]:
        found[row["recipe"]].append(float("nan") if row["failure"] else row["test"]["accuracy"])
    return {name: scores for name, scores in found.items() if all(score == score for score in scores)}


def chosen(recipes: list[Recipe], count: int, world: World) -> list[Recipe]:
    """A random sample of those that can be trained, the same for the same space."""
    spec = world.teacher.spec if world.teacher else None
    fit = [recipe for recipe in recipes if problem(recipe, spec, world.data.classes) is None]
    return random.Random(0).sample(fit, min(count, len(fit)))


def signals(rows: Sequence[Sequence[Row]], sign: float) -> dict[str, list[float]]:
    """What a cheap training could be judged by, higher for better: one value a recipe, the mean over its seeds."""
    return {
        "score": [fmean(sign * row["score"] for row in own) for own in rows],
        "-nll": [fmean(-row["nll"] for row in own) for own in rows],
        f"last {LAST}": [fmean(sign * v for row in own for v in row["curve"][-LAST:]) for own in rows],
    }


def report(table: list[tuple[str, list[list[Row]]]], truth: list[float], full: list[Row], sign: float) -> None:
    """Tau to the truth of every fidelity and signal, cheapest first; a star marks the efficient front."""
    seconds, work = (fmean(row[key] for row in full) for key in ("seconds", "work"))
    lines: list[tuple[float, float, str, dict[str, tuple[float, float, float]]]] = []
    for name, rows in table:
        cost, arithmetic = (sum(row[key] for own in rows for row in own) / len(rows) for key in ("seconds", "work"))
        found = {key: agreement(values, truth) for key, values in signals(rows, sign).items()}
        lines.append((cost / seconds, arithmetic / work, name, found))
    lines.sort(key=lambda line: line[0])
    best = -1.0
    click.echo(f"  {'cost':>6} {'MACs':>6}  {'tau: score':<19} {'-nll':<19} {f'last {LAST}':<19} fidelity")
    for cost, arithmetic, name, found in lines:
        top = max(tau for tau, _, _ in found.values())
        star, best = ("*" if top > best else " "), max(best, top)
        cells = " ".join(f"{tau:5.2f} [{low:5.2f} {high:5.2f}]" for tau, low, high in found.values())
        click.echo(f"{star} {cost:6.1%} {arithmetic:6.1%}  {cells} {name}")


@click.command()
@click.option("--config", type=click.Path(path_type=Path), default=Path(__file__).parent / "kdbench" / "digits.yaml")
@click.option("--recipes", "count", default=60, show_default=True)
@click.option("--known", multiple=True, type=click.Path(exists=True, path_type=Path), help="Rows of kdbench/make.py.")
@click.option("--seeds", default=2, show_default=True, help="Full trainings of each recipe that make the truth.")
@click.option("--repeats", default=1, show_default=True, help="Seeds of each cheap training, averaged.")
@click.option(
    "--axis", "axes", multiple=True, metavar="KEY=V1,V2", help="Values of one field of a rung; [1, .5] is one."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("fidelity.jsonl"), show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), help="Keep the teacher and assistants here.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting of the config.")
def main(
    config: Path,
    count: int,
    known: Sequence[Path],
    seeds: int,
    repeats: int,
    axes: Sequence[str],
    out: Path,
    cache: Path | None,
    overrides: Sequence[str],
) -> None:
    torch.set_num_threads(1)
    settings, cells = read_config(config, overrides)
    given = {key: yaml_text.load(f"[{values}]") for key, _, values in (axis.partition("=") for axis in axes)}
    points = grid(given or AXES)
    rows = Rows(out)
    sign = 1.0 if DIRECTIONS[settings.metric] == "maximize" else -1.0
    with tempfile.TemporaryDirectory() as folder:
        world = assemble.world(settings, cache or Path(folder), "cpu")
        tested = truths(known)
        recipes = [recipe for recipe in cells.recipes() if not known or recipe.hash in tested]
        recipes = chosen(recipes, count, world)
        for recipe in recipes[:3]:  # what is loaded and compiled once is nobody's cost
            distil(recipe, world, Seeds.search(settings.seed), points[0])
        found: dict[str, list[list[Row]]] = defaultdict(list)
        truth: list[float] = []
        for recipe in recipes:
            if not known:
                finals = [rows.make(recipe, world, settings, f"f{k}", FULL) for k in range(seeds)]
                if any(row["failure"] for row in finals):
                    continue
                tested[recipe.hash] = [row["test"] for row in finals]
            truth.append(sign * fmean(tested[recipe.hash]))
            found["full"].append([rows.make(recipe, world, settings, "s0", FULL)])
            for point in points:
                cheap = [rows.make(recipe, world, settings, f"s{k}", point) for k in range(repeats)]
                found[label(point) + (f" ({repeats} seeds)" if repeats > 1 else "")].append(cheap)
    full = [own[0] for own in found["full"]]
    steady = {name: own for name, own in found.items() if not any(row["failure"] for rows in own for row in rows)}
    click.echo(f"{len(truth)} recipes; a full training takes {fmean(r['seconds'] for r in full):.2f} processor seconds")
    for name in found.keys() - steady.keys():
        click.echo(f"left out, for some recipe fails: {name}")
    report(list(steady.items()), truth, full, sign)


if __name__ == "__main__":
    main()
