"""Searchers on functions whose optimum is known: continuous ones, and trees of methods with numbers of their own.

python benchmarks/functions.py [--function NAME ...] [--searcher NAME[:KEY=VALUE,...] ...] [--seeds N]

kdbench cuts numbers into two or three cells; here they are what they are in a run. Best value after the function's
trials, mean over seeds with half the 95 % interval, and the share of searches that came near the optimum.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click
import numpy as np
import optuna
from optuna.trial import Trial

from kdsearch import searchers
from kdsearch.runs.named import parse_named
from kdsearch.runs.report.intervals import estimate

SEARCHERS = ("random", "tpe", "gp", "nni:tuner=tpe", "evolution", "mcts", "mcts:ahead=0", "mcts:length=0.15")


@dataclass(frozen=True)
class Known:
    """A function to maximise, how many trials it is given, its optimum, and the value that counts as near it."""

    function: Callable[[Trial], float]
    trials: int
    optimum: float
    near: float


def losses(trial: Trial) -> float:
    """The example of docs/mcts.md: the best loss looks bad unless its beta lies in a quarter of its range."""
    loss = trial.suggest_categorical("loss", ["none", "kd", "dkd", "at"])
    worth = {"none": 0.0, "kd": 0.5, "dkd": 0.8, "at": 0.4}[loss]
    if loss == "kd":
        worth -= 0.05 * abs(trial.suggest_float("kd.temperature", 1, 16, log=True) - 4)
    if loss == "dkd":
        worth -= 0.1 * abs(trial.suggest_float("dkd.beta", 0.5, 16, log=True) - 8)
    if trial.suggest_categorical("deep", [False, True]):
        worth += 0.4 - 0.02 * abs(trial.suggest_int("depth", 2, 40) - 14)
    return worth


def methods(trial: Trial) -> float:
    """Four methods with none, one or two numbers of their own, beside a learning rate and an augmentation for all."""
    method, worth = trial.suggest_categorical("method", ["a", "b", "c", "d"]), 0.0
    if method == "a":
        worth = 1.0 - abs(math.log10(trial.suggest_float("a.weight", 1e-3, 10, log=True)) + 1.0)
    if method == "b":
        weight, temperature = (trial.suggest_float(f"b.{n}", *ends, log=True) for n, ends in B.items())
        worth = 1.5 - abs(math.log10(weight) - 0.5) - abs(math.log2(temperature) - 2.0)
    if method == "c":
        worth = 0.7 - 0.3 * abs(trial.suggest_float("c.share", 0, 1) - 0.3)
    worth -= 0.5 * (math.log10(trial.suggest_float("lr", 1e-3, 1, log=True)) + 1.3) ** 2
    if trial.suggest_categorical("augmented", [False, True]):
        worth += 0.2 - 0.4 * trial.suggest_float("magnitude", 0, 1)
    return worth


B = {"weight": (1e-3, 10), "temperature": (1, 20)}


def branin(trial: Trial) -> float:
    """Dixon and Szegő, Towards Global Optimisation 2, 1978; three optima."""
    x, y = trial.suggest_float("x", -5, 10), trial.suggest_float("y", 0, 15)
    bowl = y - 5.1 / (4 * math.pi**2) * x * x + 5 / math.pi * x - 6
    return -(bowl**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10)


def hartmann(trial: Trial) -> float:
    """Hartmann's function of six numbers; the same book."""
    x = np.array([trial.suggest_float(f"x{k}", 0, 1) for k in range(6)])
    return float((HEIGHTS * np.exp(-(STEEPNESS * np.square(x - PEAKS)).sum(axis=1))).sum())


HEIGHTS = np.array([1.0, 1.2, 3.0, 3.2])
STEEPNESS = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
PEAKS = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)

FUNCTIONS = {
    "losses": Known(losses, 60, 1.2, 0.9),
    "methods": Known(methods, 80, 1.7, 1.4),
    "branin": Known(branin, 50, -0.3979, -0.5),
    "hartmann": Known(hartmann, 100, 3.3224, 3.15),
}


def best(known: Known, searcher: str, seed: int) -> float:
    """Of one search, by a sampler as kdsearch builds it."""
    name, options = parse_named(searcher, "--searcher", "NAME")
    study = optuna.create_study(direction="maximize", sampler=searchers.create(name, seed=seed, **options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental samplers say so
        study.optimize(known.function, n_trials=known.trials)
    return study.best_value


@click.command()
@click.option("--function", "names", multiple=True, type=click.Choice([*FUNCTIONS]), default=[*FUNCTIONS])
@click.option("--searcher", "contenders", multiple=True, default=SEARCHERS, help="NAME[:KEY=VALUE,...]")
@click.option("--seeds", default=20, show_default=True)
def main(names: Sequence[str], contenders: Sequence[str], seeds: int) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name in names:
        known = FUNCTIONS[name]
        click.echo(f"\n{name}: {known.trials} trials, best possible {known.optimum:g}, near it from {known.near:g}\n")
        click.echo("| searcher | best value | near | seconds a search |\n| --- | --- | --- | --- |")
        for searcher in contenders:
            began = time.process_time()
            values = [best(known, searcher, seed) for seed in range(seeds)]
            spent, found = (time.process_time() - began) / seeds, estimate(values)
            near = sum(value >= known.near for value in values) / seeds
            click.echo(f"| `{searcher}` | {found.mean:.3f} ± {found.half_width or 0:.3f} | {near:.0%} | {spent:.1f} |")


if __name__ == "__main__":
    main()
