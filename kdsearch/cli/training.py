"""Commands that train or score networks by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kdsearch.cli.base import cli, read_config, reported, table
from kdsearch.errors import UserError


@cli.command()
@click.argument("recipe")
@click.option("--config", help="The run config to train under; the recipe file's own without it.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of that config.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Finalist seed k.")
@click.option("--out", default="trained", show_default=True, metavar="DIR", help="Where the student goes.")
@reported
def train(recipe: str, config: str | None, overrides: tuple[str, ...], seed: int, out: str) -> None:
    """Train a recipe file in full and save the student alone. A second call goes on where the first was killed."""
    from kdsearch.runs import config_file
    from kdsearch.runs.export.files import read_recipe
    from kdsearch.runs.retrain import config_of, distill, write_student

    given = config_file.read(config, overrides) if config else None  # first: it names the plugins
    found, provenance = read_recipe(recipe)
    settings = given or config_of(provenance, overrides)
    folder = Path(out)

    def show(done: int, total: int, score: float) -> None:
        click.echo(f"  epoch {done}/{total}: validation {settings.metric} {score:.4f}", err=True)

    student = distill(
        found,
        config=settings,
        seed=seed,
        cache=folder / "cache",
        checkpoint=folder / "work" / f"{found.hash}-{seed}.pt",
        progress=show,
    )
    write_student(student, settings, folder)
    for note in student.notes:
        click.echo(f"  {note}", err=True)
    metric = settings.metric
    click.echo(f"validation {metric} {student.validation[metric]:.4f}   test {metric} {student.test[metric]:.4f}")
    by_seed = (provenance.get("validation") or {}).get("seeds")
    if isinstance(by_seed, dict) and seed in by_seed:  # recipe files of earlier versions do not say which seed is which
        click.echo(f"reported for this seed: validation {metric} {by_seed[seed]:.4f}")
    click.echo(str(folder / "student.safetensors"))


@cli.command()
@click.argument("config", required=False)
@click.option("--with", "methods", multiple=True, metavar="METHOD[:KEY=VALUE,...]", help="A teacher trained so, too.")
@click.option("--seeds", type=click.IntRange(min=1), help="Students a teacher; as many as the finals' without it.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the config.")
@click.option("--out", default="teachers", show_default=True, metavar="DIR", help="Where the result and cache go.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@reported
def teachers(
    config: str | None,
    methods: tuple[str, ...],
    seeds: int | None,
    overrides: tuple[str, ...],
    out: str,
    as_json: bool,
) -> None:
    """Compare teachers by what students learn from them by plain KD. A second call finds what the first trained."""
    from kdsearch.runs import teachers as room
    from kdsearch.runs.report.teachers import rows

    def say(text: str) -> None:
        click.echo(f"  {text}", err=True)

    found = room.compare(read_config(config, overrides, {}), methods, seeds=seeds, folder=Path(out), say=say)
    path = room.write(found, Path(out))
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(table(rows(found)))
    click.echo(
        f"student {found['student']}, {found['seeds']} seeds; ± is the 95 % interval, differences are paired by seed"
    )
    click.echo(str(path))


@cli.command()
@click.argument("config", required=False)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the config.")
@click.option("--student", "students", multiple=True, metavar="FAMILY[:KEY=VALUE,...]", help="A student to score.")
@click.option("--truth", metavar="FILE", help="Students with known accuracies; how well each proxy orders them.")
@click.option("--proxy", "names", multiple=True, metavar="NAME[:KEY=VALUE,...]", help="With --truth: not all of them.")
@click.option("--seeds", type=click.IntRange(min=1), show_default="1", help="With --truth: averaged over.")
@click.option("--batch", type=click.IntRange(min=2), show_default="32", help="With --truth: images.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@reported
def score(
    config: str | None,
    overrides: tuple[str, ...],
    students: tuple[str, ...],
    truth: str | None,
    names: tuple[str, ...],
    seeds: int | None,
    batch: int | None,
    as_json: bool,
) -> None:
    """Training-free proxy scores of students beside the config's teacher; or of how much worth they are."""
    if truth is not None:
        if students:
            raise UserError("--student: the students are those of --truth; leave one of them out")
        _score_truth(config, overrides, truth, names, seeds or 1, batch or 32, as_json)
        return
    for option, value in (("--proxy", names), ("--seeds", seeds), ("--batch", batch)):
        if value:
            raise UserError(f"{option}: only with --truth")
    from kdsearch.runs.scoring import scores

    rows = scores(read_config(config, overrides, {}), students)
    click.echo(json.dumps(rows) if as_json else table(rows))


def _score_truth(
    config: str | None,
    overrides: tuple[str, ...],
    path: str,
    names: tuple[str, ...],
    seeds: int,
    batch: int,
    as_json: bool,
) -> None:
    from kdsearch.runs import ranking, truth

    known = truth.read(path)
    own = config is None and known.input_shape is not None  # the file says what its students see
    settings = read_config(config, ((ranking.TEACHER,) if own else ()) + overrides, {})
    named = not own or any(item.startswith("data") for item in overrides)

    def say(text: str) -> None:
        click.echo(f"  {text}", err=True)

    found = ranking.rank(known, settings, named=named, names=names, batch=batch, seeds=seeds, say=say)
    click.echo(json.dumps(found) if as_json else "\n".join([table(ranking.shown(found)), *ranking.notes(found)]))
