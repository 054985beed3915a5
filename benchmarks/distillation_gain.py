"""What plain KD gains over no distillation on the embedded digits, paired by seed.

python benchmarks/distillation_gain.py [--seeds N] [--channels C]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import fmean, stdev

import click
import torch
from scipy.stats import t as student_t

from kdsearch.runs import assemble, config_file
from kdsearch.runs.distil import distil
from kdsearch.runs.metrics import evaluate
from kdsearch.runs.settings import Seeds
from kdsearch.search_space.space import SearchSpace


@click.command()
@click.option("--seeds", default=10, show_default=True)
@click.option("--channels", default=4, show_default=True)
def main(seeds: int, channels: int) -> None:
    torch.set_num_threads(1)
    config = config_file.read()
    space = SearchSpace.from_dict(config.space)
    kd = space.default(student__cnn__channels=channels).plain_kd()
    with tempfile.TemporaryDirectory() as folder:
        world = assemble.world(config, Path(folder), "cpu")
        assert world.teacher is not None
        test = evaluate(world.teacher.network, world.data.test)["accuracy"]
        click.echo(f"teacher          validation {world.teacher.metrics['accuracy']:.4f}   test {test:.4f}")
        scores: dict[str, list[tuple[float, float]]] = {}
        for name, recipe in (("no distillation", kd.without_distillation()), ("plain KD", kd)):
            for k in range(seeds):
                done = distil(recipe, world, Seeds.finalist(config.seed, k)).trained
                on_test = evaluate(done.network, world.data.test)["accuracy"]
                scores.setdefault(name, []).append((done.metrics["accuracy"], on_test))
            for split, column in (("validation", 0), ("test", 1)):
                values = [row[column] for row in scores[name]]
                click.echo(
                    f"{name:<16} {split:<10} {fmean(values):.4f}   standard deviation {stdev(values):.4f}   n = {seeds}"
                )
    for split, column in (("validation", 0), ("test", 1)):
        gains = [b[column] - a[column] for a, b in zip(*scores.values(), strict=True)]
        half = student_t.ppf(0.975, seeds - 1) * stdev(gains) / seeds**0.5
        click.echo(f"gain of plain KD {split:<10} {fmean(gains):+.4f} ± {half:.4f} (95 %, paired)")


if __name__ == "__main__":
    main()
