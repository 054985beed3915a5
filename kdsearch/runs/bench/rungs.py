"""How well each rung of a table ranks its recipes, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdsearch.runs.bench.table import Table

RESAMPLES, LEVEL = 200, 0.90
Floats = NDArray[np.float64]


def agreement(table: Table) -> list[dict[str, Any]]:
    """One row per rung: its cost beside the full training's, and Kendall's tau to what a recipe is worth.

    A rung is read under one seed, as a search reads it; what the recipe is worth is its mean on the test split over
    the other seeds, so that no seed's luck is on both sides. (A table of one seed has no others, and flatters.) The
    last row, the full training under one seed, is what no rung can be expected to beat. `tau` is the mean over the
    seeds that are read, with a 90 % interval by the bootstrap over recipes; `better_half` is the same among the recipes
    of the better half. Recipes that fail are left out.
    """
    frame = table.frame[table.frame["failure"].isna()]
    tests = frame.pivot(index="recipe", columns="seed", values=f"test_{table.metric}").dropna()
    sign = 1.0 if table.maximise else -1.0
    order = np.argsort(-sign * tests.mean(axis=1).to_numpy(), kind="stable")
    names = [str(name) for name in tests.index[order]]
    others = {seed: [k for k in table.seeds if k != seed] or [seed] for seed in table.seeds}
    worth = [sign * tests[others[seed]].mean(axis=1).to_numpy()[order] for seed in table.seeds]
    full = table.rungs[-1].name
    paid = {rung.name: _mean(table, names, rung.name) for rung in table.rungs}
    draws = np.random.default_rng(0).integers(0, len(names), (RESAMPLES, len(names)))
    out = []
    for rung in table.rungs:
        scores = [
            sign * np.array([table.entries[name, seed].scores[rung.name] for name in names]) for seed in table.seeds
        ]
        pairs = list(zip(scores, worth, strict=True))
        drawn = [fmean(_tau(a[rows], b[rows]) for a, b in pairs) for rows in draws]
        half = len(names) // 2
        out.append(
            {
                "rung": rung.name,
                "cost": paid[rung.name] / paid[full],
                "tau": fmean(_tau(a, b) for a, b in pairs),
                "interval": [float(v) for v in np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])],
                "better_half": fmean(_tau(a[:half], b[:half]) for a, b in pairs),
                "recipes": len(names),
            }
        )
    return out


def _tau(a: Floats, b: Floats) -> float:
    from scipy.stats import kendalltau

    return float(kendalltau(a, b).statistic)


def _mean(table: Table, names: Sequence[str], rung: str) -> float:
    return fmean(table.entries[name, seed].seconds[rung] for name in names for seed in table.seeds)
