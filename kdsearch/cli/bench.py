"""Commands that measure kdsearch itself."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kdsearch.cli.base import cli, reported, table
from kdsearch.errors import UserError

TABLE = Path("benchmarks/kdbench/digits.parquet")
USUAL = ("random", "tpe", "mcts")


@cli.group()
def bench() -> None:
    """Measure searchers on tables of recipes that were trained beforehand."""


@bench.command("searchers")
@click.option("--table", "path", type=click.Path(path_type=Path), default=TABLE, show_default=True, metavar="FILE")
@click.option("--searcher", "given", multiple=True, metavar="NAME[:KEY=VALUE,...]", help="A searcher to compare.")
@click.option("--trials", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--seeds", type=click.IntRange(min=2), default=50, show_default=True, help="Searches of each.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Virtual ones, in a search.")
@click.option("--metric", default="nll", show_default=True, help="What is searched for: nll, or the table's own.")
@click.option("--pruner", default="none", show_default=True, help="As in a run config.")
@click.option("--finalists", type=click.IntRange(min=1), default=6, show_default=True, help="Compared in the end.")
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="Real ones.")
@click.option("--informed", is_flag=True, help="Tell searchers what a run tells them: published defaults, priors.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Write the curves as an HTML page.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@reported
def searchers(
    path: Path,
    given: tuple[str, ...],
    trials: int,
    seeds: int,
    workers: int,
    metric: str,
    pruner: str,
    finalists: int,
    processes: int,
    informed: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Simple regret of searchers on a table, in virtual time. Random search, TPE and MCTS without --searcher."""
    from kdsearch.runs.bench import compare, load

    names = list(dict.fromkeys(given or USUAL))
    contenders = [compare.Contender.parse(text) for text in names]
    race = compare.Race(trials, workers, seeds, pruner, finalists, metric, informed)
    try:
        compare.check(race)
    except ValueError as error:
        raise UserError(f"--pruner: {error}") from None
    known = load(path, metric)
    known.check_whole()
    if plot is not None:
        plot.parent.mkdir(parents=True, exist_ok=True)
    results = compare.run(path, contenders, race, processes=processes, say=lambda line: click.echo(line, err=True))
    rows = compare.rows(results)
    if plot is not None:
        from kdsearch.runs.bench.picture import write

        title = f"Searchers on {path.name}: {trials} trials, {workers} worker{'s' * (workers > 1)}, {seeds} seeds"
        write(plot, results, title)
        click.echo(str(plot), err=True)
    if as_json:
        click.echo(json.dumps(rows))
        return
    click.echo(table(compare.shown(rows)))
    floor = sum(known.floor(seed, finalists) for seed in known.seeds) / len(known.seeds)
    click.echo(
        f"\n{len(known.truth)} recipes, the best has a test {known.metric} of {known.best:.4f}. Regret in hundredths: "
        f"mean over {seeds} searches of {trials} trials by {workers} worker(s), of the winner among the {finalists} "
        f"best seen; having seen all recipes would leave {100 * floor:.2f}. Ranked by the mean over all trials; "
        "p: Wilcoxon signed-rank test of it against the first, by Holm's correction."
    )
    for line in compare.goals(results, trials):
        click.echo(line)


@bench.command("rungs")
@click.option("--table", "path", type=click.Path(path_type=Path), default=TABLE, show_default=True, metavar="FILE")
@click.option("--metric", default="nll", show_default=True, help="What recipes are worth: nll, or the table's own.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@reported
def rungs(path: Path, metric: str, as_json: bool) -> None:
    """How well each rung of a table ranks its recipes, and what it costs."""
    from kdsearch.runs.bench import load
    from kdsearch.runs.bench.rungs import agreement

    known = load(path, metric)
    rows = agreement(known)
    if as_json:
        click.echo(json.dumps(rows))
        return
    shown = [
        {
            "rung": row["rung"],
            "cost": f"{100 * row['cost']:.1f} %",
            "tau": "{:.2f} [{:.2f}, {:.2f}]".format(row["tau"], *row["interval"]),
            "better half": f"{row['better_half']:.2f}",
        }
        for row in rows
    ]
    click.echo(table(shown))
    click.echo(
        f"\n{rows[0]['recipes']} recipes. Tau: Kendall's, of the rung under one seed to the test {metric} under "
        + ("the others" if len(known.seeds) > 1 else "the same seed, for there is no other: it flatters")
        + ", with its 90 % interval; the last row is what no rung can be expected to beat."
    )
