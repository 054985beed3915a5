"""Real searches by each searcher, with the same wall time: what the recipe that each hands out is worth.

python benchmarks/live.py [--config FILE] [--set KEY=VALUE ...] [--searcher NAME ...] [--seconds S] [--seeds N]

A search is a whole run: rungs, pruner, published defaults, finals. Searchers take turns within a seed, so that a slow
hour of the machine meets all of them. All start from the same teacher and what a random search before them has made it
answer; assistants that one search has trained are unknown to the others. Judged is the finals' winner: its mean over
the finals' seeds, beside the baselines of the same finals. Lines of JSON are appended to --out as runs end, and what is
there is not run again; an --out of another config or time is refused.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import torch

import kdsearch
from kdsearch.runs import config_file
from kdsearch.runs.bench.lines import kept
from kdsearch.runs.config import RunConfig
from kdsearch.runs.finals import Standing
from kdsearch.runs.metrics import DIRECTIONS
from kdsearch.runs.named import parse_named
from kdsearch.runs.report.intervals import Estimate, estimate, paired
from kdsearch.search_space.recipe import content_hash

SEARCHERS = ("random", "tpe", "nsga2", "gp", "evolution", "nni:tuner=tpe", "kdzero", "autokd", "mcts")
ROLES = {"none": "baseline:none", "kd": "baseline:kd"}


def of_search(config: RunConfig, searcher: str, seed: int, seconds: float) -> RunConfig:
    """The config for one search: the teacher's seed is that of all."""
    name, options = parse_named(searcher, "--searcher", "NAME")
    teacher_seed = config.seed if config.teacher.seed is None else config.teacher.seed
    changes = {
        "seed": seed,
        "searcher": {**config.searcher.model_dump(), "name": name, "options": options},
        "teacher": {**config.teacher.model_dump(), "seed": teacher_seed},
        "budget": {"trials": None, "seconds": seconds},
        "engine": {**config.engine.model_dump(), "workers": 1},
        "cache": None,
    }
    return RunConfig.model_validate({**config.model_dump(), **changes})


def in_common(config: RunConfig, seconds: float) -> str:
    """What all searches of one file have in common, as a short name: all but their searcher and seed."""
    return content_hash(of_search(config, "random", 0, seconds).model_dump(mode="json"))


SHARED = ("teacher", "signals", "prepared")
"""What of a cache is the teacher's, and no search's own finding."""


def searched(config: RunConfig, common: Path) -> dict[str, Any]:
    """One run, and what it handed out."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        cache = Path(folder) / "cache"  # beside the run's folder, which may not be there yet
        for name in SHARED:
            if (common / name).is_dir():
                shutil.copytree(common / name, cache / name)
        began = time.perf_counter(), time.process_time()
        run = kdsearch.search(config.model_copy(update={"cache": str(cache)}), run_dir=place)
        spent = time.perf_counter() - began[0], time.process_time() - began[1]
        standings = {standing.role: standing for standing in run.standings}
        winner = run.finals.winner()
        if winner is None:
            raise click.ClickException(f"{config.searcher.name}, seed {config.seed}: no trial has finished")
        states = run.state()["trials"]
        found = {name: scores(standings[role]) for name, role in ROLES.items() if role in standings}
        return {
            "winner": scores(winner),
            "recipe": winner.recipe.equation(),
            **found,
            "trials": states,
            "wall": spent[0],
            "processor": spent[1],
        }


def known(out: Path, settings: str) -> list[dict[str, Any]]:
    """The rows that are there."""
    rows = kept(out)
    if any(row.get("settings") != settings for row in rows):
        raise click.ClickException(f"--out: {out} holds searches of another config or time; name another file")
    return rows


def scores(standing: Standing) -> dict[str, float]:
    return {"validation": standing.mean, "test": fmean(standing.test) if standing.test else float("nan")}


def shown(value: Estimate | None) -> str:
    if value is None:
        return "–"
    return f"{value.mean:+.4f} ± {value.half_width or 0:.4f}" + (" *" if value.resolved else "")


@click.command()
@click.option(
    "--config", "path", type=click.Path(exists=True, path_type=Path), help="The embedded default without one."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a setting of the config.")
@click.option("--searcher", "names", multiple=True, default=SEARCHERS, help="NAME[:KEY=VALUE,...]; all by default.")
@click.option("--seconds", default=60.0, show_default=True, help="Wall time of a search, finals not counted.")
@click.option("--seeds", default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("live.jsonl"), show_default=True)
def main(
    path: Path | None, overrides: Sequence[str], names: Sequence[str], seconds: float, seeds: int, out: Path
) -> None:
    torch.set_num_threads(1)
    config = config_file.read(path, overrides)
    settings = in_common(config, seconds)
    rows = known(out, settings)
    done = {(row["searcher"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        common = Path(folder)
        if any((name, seed) not in done for name in names for seed in range(seeds)):
            first = of_search(config, "random", seeds, seconds)
            kdsearch.search(first.model_copy(update={"cache": str(common)}), run_dir=common / "first")
        for seed in range(seeds):
            for name in names:
                if (name, seed) not in done:
                    one = searched(of_search(config, name, seed, seconds), common)
                    rows.append({"searcher": name, "seed": seed, "settings": settings, "seconds": seconds, **one})
                    with out.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
                    click.echo(f"{name}, seed {seed}: {one['recipe']}, test {one['winner']['test']:.4f}", err=True)
    report([row for row in rows if row["searcher"] in names and row["seed"] < seeds], config.metric)


def report(rows: Sequence[dict[str, Any]], metric: str) -> None:
    """The table, best mean on the test split first; differences are paired by seed."""
    test: dict[str, dict[int, float]] = {}
    for row in rows:
        test.setdefault(row["searcher"], {})[row["seed"]] = row["winner"]["test"]
        for name in ROLES:
            if name in row:  # the baselines of any search under this seed: they are the same
                test.setdefault(f"({name})", {})[row["seed"]] = row[name]["test"]
    sign = -1.0 if DIRECTIONS[metric] == "maximize" else 1.0
    click.echo(
        f"\n| searcher | complete trials | test {metric} | minus random's | minus plain kd's |\n" + "| --- " * 5 + "|"
    )
    for name in sorted(test, key=lambda name: sign * fmean(test[name].values())):
        mine = estimate(list(test[name].values()))
        counts = [row["trials"].get("complete", 0) for row in rows if row["searcher"] == name]
        others = [
            paired(test[name], test[other]) if name != other and other in test else None for other in ("random", "(kd)")
        ]
        trials = f"{fmean(counts):.0f}" if counts else "–"
        click.echo(f"| {name} | {trials} | {mine.mean:.4f} ± {mine.spread:.4f} | {' | '.join(map(shown, others))} |")


if __name__ == "__main__":
    main()
