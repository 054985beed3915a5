"""Searchers side by side on a table: regret curves over many seeds, bands around them, and paired tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from kdsearch import searchers
from kdsearch.errors import UserError
from kdsearch.registry import nearest
from kdsearch.runs.bench.replay import Trace, replay
from kdsearch.runs.bench.table import Table, load
from kdsearch.runs.config import PrunerConfig, RunConfig
from kdsearch.runs.named import parse_named
from kdsearch.runs.pruning import pruner

MARKS = (25, 50, 100, 200)
RESAMPLES = 1000


@dataclass(frozen=True)
class Contender:
    """A searcher with its options, written `mcts:exploration=0.5,sharing=0`."""

    label: str
    name: str
    options: Mapping[str, Any]

    @staticmethod
    def parse(text: str) -> Contender:
        """Raises UserError: not of that form, or no such searcher or option."""
        name, options = parse_named(text, "--searcher", "NAME")
        if "seed" in options:
            raise UserError(f"--searcher {text!r}: every search has its own seed; leave it out")
        try:
            searchers.create(name, seed=0, **options)
        except ValueError as error:
            raise UserError(f"--searcher {text!r}: {error}") from None
        return Contender(text, name, options)


@dataclass(frozen=True)
class Race:
    """What every contender is given: trials, workers, the pruner's name, and as many seeds as there are replicates.

    `informed` searchers know what a run tells those that ask: published defaults, and which choices are plain.
    """

    trials: int = 200
    workers: int = 1
    seeds: int = 50
    pruner: str = "none"
    finalists: int = 6
    metric: str | None = None
    informed: bool = False

    def run(self, table: Table, contender: Contender, k: int) -> Trace:
        """Replicate k: its own seed of the searcher, and the scores of one of the table's seeds in turn."""
        config = RunConfig(pruner=PrunerConfig.model_validate({"name": self.pruner}))
        known = _known(table, contender.name) if self.informed else {}
        return replay(
            table,
            searchers.create(contender.name, seed=k, **{**known, **contender.options}),
            trials=self.trials,
            workers=self.workers,
            seed=table.seeds[k % len(table.seeds)],
            pruner=None if self.pruner == "none" else pruner(config),
            reduction=config.pruner.reduction,
            finalists=self.finalists,
        )


def _known(table: Table, name: str) -> dict[str, Any]:
    """What a run would tell this searcher of the space."""
    from kdsearch.runs import assemble  # with torch, which nothing else here needs

    return searchers.asked(name, assemble.knowledge(table.grid.space))


@lru_cache(maxsize=1)
def _table(path: str, metric: str | None) -> Table:
    return load(path, metric)


def _job(path: str, race: Race, contender: Contender, k: int) -> Trace:
    return race.run(_table(path, race.metric), contender, k)


def run(
    path: Path,
    contenders: Sequence[Contender],
    race: Race,
    *,
    processes: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, list[Trace]]:
    """All replicates of all contenders, by label."""
    out: dict[str, list[Trace]] = {}
    with _mapping(processes) as each:
        for contender in contenders:
            job = partial(_job, str(path), race, contender)
            out[contender.label] = list(each(job, range(race.seeds)))
            say(f"{contender.label}: {race.seeds} searches of {race.trials} trials")
    return out


@contextmanager
def _mapping(processes: int) -> Iterator[Callable[..., Iterator[Trace]]]:
    """`map` in this process, or over a few others."""
    if processes == 1:
        yield map
        return
    # Forked children of a process with threads may hang; fresh ones read the table once each.
    executor = ProcessPoolExecutor(processes, get_context("spawn"))
    try:
        yield executor.map
    finally:
        executor.shutdown(cancel_futures=True)


def curves(traces: Sequence[Trace]) -> NDArray[np.float64]:
    """Regret after every trial, [replicates, trials]."""
    return np.array([trace.regret for trace in traces])


def by_cost(traces: Sequence[Trace], grid: Sequence[float]) -> NDArray[np.float64]:
    """Regret at every cost of a grid of processor seconds, [replicates, costs]."""
    return np.array([trace.at_cost(grid) for trace in traces])


def band(values: NDArray[np.float64], level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bootstrap interval of the mean over replicates, for every column; [columns] each, the draws by a fixed seed."""
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(values), (RESAMPLES, len(values)))
    weights = np.stack([np.bincount(draw, minlength=len(values)) for draw in draws]) / len(values)
    low, high = np.quantile(weights @ values, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def reaches(values: NDArray[np.float64], goal: float) -> int | None:
    """After how many trials the mean regret is down to a goal, or None."""
    below = np.flatnonzero(values.mean(0) <= goal + 1e-12)
    return int(below[0]) + 1 if len(below) else None


def rows(results: Mapping[str, Sequence[Trace]], marks: Sequence[int] = MARKS) -> list[dict[str, Any]]:
    """One row per contender, the best first: mean regret at so many trials with its interval, and the paired tests.

    Contenders are ranked by their mean regret over all trials (the area under the curve): by where they are on the
    way, not at its end alone. `p` is of the two-sided Wilcoxon signed-rank test of that area against the first's,
    replicate by replicate, corrected by Holm's method for the number of contenders.
    """
    table = {label: curves(traces) for label, traces in results.items()}
    order = sorted(table, key=lambda label: float(table[label].mean()))
    against = [_wilcoxon(table[label].mean(1), table[order[0]].mean(1)) for label in order[1:]]
    corrected = [None, *_holm(against)]
    out = []
    for label, p in zip(order, corrected, strict=True):
        values = table[label]
        low, high = band(values)
        row: dict[str, Any] = {"searcher": label, "area": float(values.mean())}
        for mark in marks:
            if mark <= values.shape[1]:
                k = mark - 1
                row[f"regret@{mark}"] = float(values[:, k].mean())
                row[f"interval@{mark}"] = [float(low[k]), float(high[k])]
        row["seconds"] = float(np.mean([trace.seconds[-1] for trace in results[label]]))
        row["p"] = p
        out.append(row)
    return out


def _wilcoxon(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    from scipy.stats import wilcoxon

    return 1.0 if np.allclose(a, b) else float(wilcoxon(a, b).pvalue)


def _holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, Scandinavian Journal of Statistics 1979."""
    out, highest = [0.0] * len(values), 0.0
    for rank, k in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[k]))
        out[k] = highest
    return out


def check(race: Race) -> None:
    """Raises ValueError: no such pruner."""
    names = get_args(PrunerConfig.model_fields["name"].annotation)
    if race.pruner not in names:
        raise ValueError(nearest(race.pruner, names))


def shown(found: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The rows as a table to print: regret in percentage points with half its interval's width."""
    out = []
    for row in found:
        line = {"searcher": str(row["searcher"]), "mean": f"{100 * row['area']:.2f}"}
        for key, value in row.items():
            if key.startswith("regret@"):
                low, high = row[key.replace("regret", "interval")]
                line[key.replace("regret", "")] = f"{100 * value:.2f} ± {50 * (high - low):.2f}"
        line["seconds"] = f"{row['seconds']:.0f}"
        line["p"] = "–" if row["p"] is None else f"{row['p']:.2g}"
        out.append(line)
    return out


def goals(results: Mapping[str, Sequence[Trace]], trials: int) -> list[str]:
    """How soon each contender is where random search, and where TPE, is at the end. One line for each of the two."""
    lines = []
    for name in ("random", "tpe"):
        label = next((label for label in results if label == name), None)
        if label is None:
            continue
        goal = float(curves(results[label]).mean(0)[-1])
        said = []
        for other, traces in results.items():
            if other != label:
                at = reaches(curves(traces), goal)
                said.append(f"{other} {'not at all' if at is None else f'after {at}'}")
        lines.append(f"{label}'s regret at {trials} trials ({100 * goal:.2f}) is reached by: {', '.join(said)}.")
    return lines
