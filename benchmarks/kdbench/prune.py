"""What proxies save on a table of many students, and whether they ever stop one of its best recipes.

python benchmarks/kdbench/prune.py [--table FILE] [--by PROXY ...] [--searches N] [--cache DIR]

The recipes of the table come in random order, each search in another. A run's own gate judges every one before it is
trained, on what it has seen until then: scores of all students that came, results of those that were trained to the
first rung. Nothing is saved on a student that passes.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from statistics import fmean

import click
import torch

from kdsearch.runs import assemble
from kdsearch.runs.bench import load
from kdsearch.runs.bench.table import Table, read_config
from kdsearch.runs.config import COMBINED, ProxyConfig, RunConfig
from kdsearch.runs.gate import Gate
from kdsearch.runs.jobs import Ladder
from kdsearch.runs.metrics import DIRECTIONS
from kdsearch.runs.trial import Runner

HERE = Path(__file__).parent
Scores = dict[str, dict[str, float]]  # by recipe


def student(table: Table, name: str) -> str:
    """A recipe's student, as a key."""
    return json.dumps(table.recipe(name).student.to_dict(), sort_keys=True)


def scored(table: Table, config: RunConfig, cache: Path, names: tuple[str, ...]) -> Scores:
    """Every recipe's proxy scores; those of a student hold for all its recipes."""
    world = assemble.world(config, cache, "cpu")
    runner = Runner(world, Ladder(proxies=names), cache)
    known: Scores = {}
    out: Scores = {}
    for name in table.truth:
        key = student(table, name)
        if key not in known:
            known[key] = runner.scores(table.recipe(name), config.seed)
        out[name] = known[key]
    return out


def search(table: Table, scores: Scores, settings: ProxyConfig, k: int) -> list[str]:
    """Which recipes one search over all of them stops."""
    seed, rung = table.seeds[k % len(table.seeds)], table.rungs[0].name
    gate = Gate(settings, rung, DIRECTIONS[table.metric])
    order = sorted(table.truth)
    random.Random(k).shuffle(order)
    stopped = []
    for name in order:
        spec, row = table.recipe(name).to_dict(), scores[name]
        own = row.get(str(settings.prune_by))
        stops, _ = gate.judge(row, own if own is not None else float("nan"))
        gate.see(spec, row, own)
        if stops:
            stopped.append(name)
        elif (name, seed) in table.entries and table.entries[name, seed].failure is None:
            gate.learn(spec, table.entries[name, seed].scores[rung])
    return stopped


@click.command()
@click.option("--table", "path", type=click.Path(exists=True, path_type=Path), default=HERE / "students.parquet")
@click.option("--config", type=click.Path(exists=True, path_type=Path), default=HERE / "students.yaml")
@click.option("--by", multiple=True, default=(COMBINED, "diswot", "params", "macs", "synflow"), show_default=True)
@click.option("--metric", default="nll", show_default=True)
@click.option("--searches", default=50, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), help="Keep the teacher here.")
def main(path: Path, config: Path, by: tuple[str, ...], metric: str, searches: int, cache: Path | None) -> None:
    torch.set_num_threads(1)
    table, (settings, _) = load(path, metric), read_config(config)
    sign = 1.0 if table.maximise else -1.0
    ranked = sorted(table.truth, key=lambda name: -sign * table.truth[name])
    top = {share: set(ranked[: max(1, round(share * len(ranked)))]) for share in (0.01, 0.05, 0.25)}
    names = tuple(dict.fromkeys([*ProxyConfig().scored, *(name for name in by if name != COMBINED)]))
    with tempfile.TemporaryDirectory() as folder:
        scores = scored(table, settings, cache or Path(folder), names)
    students = len({student(table, name) for name in table.truth})
    click.echo(f"{len(ranked)} recipes of {students} students, {searches} searches\n")
    click.echo(
        "| prune_by | stopped | of the best 1 % | of the best 5 % | of the best quarter |\n" + "| --- " * 5 + "|"
    )
    for name in by:
        chosen = ProxyConfig(names=list(names), prune_by=name)
        found = [search(table, scores, chosen, k) for k in range(searches)]
        shares = [fmean(len(top[s].intersection(f)) / len(top[s]) for f in found) for s in top]
        cells = [f"{100 * share:.1f} %" for share in (fmean(len(f) / len(ranked) for f in found), *shares)]
        click.echo(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
