"""Trials an hour with the offline teacher and the ladder, against the same trials in full with a live teacher.

    python benchmarks/throughput.py [CONFIG] [--trials N] [--set key=value ...]

Both runs draw the same recipes (random search under one seed) and use the same workers, one after the other on this
machine. The time counted is the search's own: data, the teacher's training and the finals are left out of both.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from kdsearch.runs import config_file
from kdsearch.runs.config import RunConfig
from kdsearch.runs.run import Run

PLAIN = (
    "fidelity.cache_limit_mib=0",
    "fidelity.rungs=[{name: full}]",
    "pruner.name=none",
    "proxies.names=[]",
    "proxies.prune_by=null",
)


def search_seconds(config: RunConfig, folder: Path) -> tuple[float, int]:
    """Seconds of the search phase and the number of trials that were charged."""
    run = Run(folder, config).claim(new=True)
    try:
        run.execute()
    finally:
        run.place.release()
    charged = [t for t in run.study.trials if not t.user_attrs.get("free")]
    return float(run.study.user_attrs["phases"]["search"]), len(charged)


@click.command()
@click.argument("config", required=False)
@click.option("--trials", default=20, show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE")
def main(config: str | None, trials: int, overrides: tuple[str, ...]) -> None:
    shared = (*overrides, f"budget.trials={trials}", "searcher.name=random", "finals.recipes=1", "finals.seeds=1")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        cache = f"cache={place / 'cache'}"
        rows = {}
        for name, extra in (("ladder, offline teacher", ()), ("in full, live teacher", PLAIN)):
            settings = config_file.read(config, (*shared, cache, *extra))
            seconds, count = search_seconds(settings, place / name.split(",")[0].replace(" ", "-"))
            rows[name] = 3600 * count / seconds
            click.echo(f"{name:<26} {count} trials in {seconds:7.1f} s: {rows[name]:7.0f} trials an hour")
    fast, plain = rows.values()
    click.echo(f"{'ratio':<26} {fast / plain:.2f}")


if __name__ == "__main__":
    main()
