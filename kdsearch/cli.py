"""The command line: parse, call `runs`, print. Heavy imports stand inside the commands, so that `--help` is instant."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdsearch.errors import UserError

if TYPE_CHECKING:
    from kdsearch.runs.config import RunConfig
    from kdsearch.runs.run import Run


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="kdsearch")
@click.option("--debug", is_flag=True, help="Show the traceback of a user's mistake, too.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Automated search for knowledge-distillation recipes."""
    context.obj = debug


def reported(command: Callable[..., Any]) -> Callable[..., Any]:
    """A user's mistake is one clear line a problem on standard error, and exit status 2."""

    @wraps(command)
    @click.pass_context
    def wrapper(context: click.Context, *args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            if context.obj:
                raise
            for line in str(error).splitlines():
                click.echo(f"kdsearch: {line}", err=True)
            sys.exit(2)
        except OSError as error:
            if context.obj or error.errno is None:
                raise
            where = f" ({error.filename})" if error.filename else ""
            click.echo(f"kdsearch: {error.strerror}{where}; what was finished before is kept", err=True)
            sys.exit(2)

    return wrapper


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the config."),
        click.option("--trials", type=click.IntRange(min=1), help="How many trials."),
        click.option("--budget", metavar="DURATION", help="How long to search: 90s, 30m, 1h30m."),
        click.option("--seed", type=click.IntRange(min=0), help="Seed of everything."),
        click.option("--engine", type=click.Choice(["local", "ray"]), help="Where trials run."),
        click.option("--workers", type=click.IntRange(min=1), help="How many trials at a time."),
    ):
        command = option(command)
    return command


def _config(path: str | None, overrides: tuple[str, ...], given: dict[str, Any]) -> RunConfig:
    from kdsearch.runs import config as configs

    names = {"trials": "budget.trials", "budget": "budget.seconds", "seed": "seed"}
    names |= {"engine": "engine.name", "workers": "engine.workers"}
    settings = [f"{names[key]}={value}" for key, value in given.items() if value is not None]
    if given.get("budget") is not None and given.get("trials") is None:
        settings.append("budget.trials=null")
    return configs.read(path, [*settings, *overrides])


@cli.command()
@click.argument("config", required=False)
@run_options
@click.option("--run-dir", metavar="DIR", help="Where the run lives; a new folder under runs/ without it.")
@click.option("--dry-run", is_flag=True, help="Print what the run would do and cost, and stop.")
@click.option("--quiet", is_flag=True, help="Print the result alone.")
@click.option("--json", "as_json", is_flag=True, help="Progress and result as JSON lines.")
@reported
def run(
    config: str | None,
    overrides: tuple[str, ...],
    run_dir: str | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Search for the best recipe. Without CONFIG, on the embedded handwritten digits."""
    settings = _config(config, overrides, given)
    if dry_run:
        from kdsearch.runs.forecast import forecast

        _show_forecast(forecast(settings), as_json)
        return
    from kdsearch.runs.folder import fresh
    from kdsearch.runs.run import Run

    _execute(Run(run_dir or fresh(), settings).claim(new=True), quiet, as_json)


@cli.command()
@click.argument("run_dir", metavar="RUN")
@click.option("--trials", type=click.IntRange(min=1), help="New total number of trials.")
@click.option("--budget", metavar="DURATION", help="New total search time: 90s, 30m, 1h30m.")
@click.option("--quiet", is_flag=True, help="Print the result alone.")
@click.option("--json", "as_json", is_flag=True, help="Progress and result as JSON lines.")
@reported
def resume(run_dir: str, trials: int | None, budget: str | None, quiet: bool, as_json: bool) -> None:
    """Go on with a run that was stopped, killed or finished; also with more trials or time."""
    from kdsearch.runs.config import parse_duration
    from kdsearch.runs.run import resume as reopen

    try:
        seconds = parse_duration(budget) if budget else None
    except ValueError as error:
        raise UserError(f"--budget: {error}") from None
    _execute(reopen(run_dir, trials=trials, seconds=seconds), quiet, as_json)


def _execute(run: Run, quiet: bool, as_json: bool) -> None:
    from kdsearch.runs.progress import choose

    progress = choose(run.config, quiet=quiet, as_json=as_json)
    try:
        run.execute(progress)
    except KeyboardInterrupt:
        progress.close()
        click.echo(f"\nstopped; everything finished is kept. Go on with: kdsearch resume {run.path}", err=True)
        sys.exit(130)
    finally:
        progress.close()
        run.place.release()
    _show_result(run, as_json)


def _show_result(run: Run, as_json: bool) -> None:
    from kdsearch.runs.report.tables import finals_rows, finals_table

    if as_json:
        best = run.best
        result = {"event": "result", "run": str(run.path), "best": best.to_dict() if best else None}
        click.echo(json.dumps(result | {"finals": finals_rows(run)}))
        return
    best = run.best
    if best is None:
        click.echo("no trial has finished; there is no best recipe. See the report for the reasons.")
    else:
        click.echo(finals_table(run))
        click.echo(f"best recipe  {best.equation()}")
        click.echo(f"             {run.place.best}")
        click.echo(f"student      {run.place.student}")
    click.echo(f"report       {run.place.report}")


def _show_forecast(lines: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(lines))
        return
    width = max(len(key) for key in lines)
    for key, value in lines.items():
        click.echo(f"{key:<{width}}  {value}")


@cli.command()
@click.argument("run_dir", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@reported
def status(run_dir: str, as_json: bool) -> None:
    """Where a run stands, running or not."""
    from kdsearch.runs.run import Run

    state = Run(run_dir).state()
    if as_json:
        click.echo(json.dumps(state))
        return
    for key, value in state.items():
        if isinstance(value, dict):
            value = ", ".join(f"{v} {k}" for k, v in value.items()) or "none"
        click.echo(f"{key:<8}  {value if value is not None else '-'}")


@cli.command()
@click.argument("run_dir", metavar="RUN")
@click.option("-o", "--output", metavar="FILE", help="Where to write it; the run's report.html without it.")
@reported
def report(run_dir: str, output: str | None) -> None:
    """Write a run's report: one HTML file that needs no network."""
    from kdsearch.runs.report import write
    from kdsearch.runs.run import Run

    click.echo(write(Run(run_dir), Path(output) if output else None))


@cli.command()
@click.argument("run_dir", metavar="RUN")
@click.option("--format", "form", type=click.Choice(["kdsearch", "onnx"]), default="kdsearch", help="What to write.")
@click.option("-o", "--output", metavar="FILE", required=True, help="Where to write it.")
@reported
def export(run_dir: str, form: str, output: str) -> None:
    """Export a run's best recipe with its provenance, or its student as ONNX."""
    from kdsearch.runs.export.files import write_recipe
    from kdsearch.runs.run import Run

    opened = Run(run_dir)
    winner = opened.finals.winner()
    if winner is None:
        raise UserError(f"{run_dir}: no finalist has finished; there is no best recipe to export")
    if form == "onnx":
        from kdsearch.runs.export.onnx import write_onnx

        write_onnx(opened.path, Path(output))
    else:
        write_recipe(opened, winner, Path(output))
    click.echo(output)


@cli.command()
@click.argument("recipe")
@click.option("--config", help="The run config to train under; the recipe file's own without it.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of that config.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Finalist seed k.")
@click.option("--out", default="trained", show_default=True, metavar="DIR", help="Where the student goes.")
@reported
def train(recipe: str, config: str | None, overrides: tuple[str, ...], seed: int, out: str) -> None:
    """Train a recipe file in full and save the student alone. A second call goes on where the first was killed."""
    from kdsearch.runs import config as configs
    from kdsearch.runs.export.files import read_recipe
    from kdsearch.runs.retrain import config_of, distill, write_student

    found, provenance = read_recipe(recipe)
    settings = configs.read(config, overrides) if config else config_of(provenance, overrides)
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
    metric = settings.metric
    click.echo(f"validation {metric} {student.validation[metric]:.4f}   test {metric} {student.test[metric]:.4f}")
    reported_scores = (provenance.get("validation") or {}).get("seeds") or []
    if seed < len(reported_scores):
        click.echo(f"reported for this seed: validation {metric} {reported_scores[seed]:.4f}")
    click.echo(str(folder / "student.safetensors"))


@cli.command()
@click.argument("config", required=False)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the config.")
@click.option("--student", "students", multiple=True, metavar="FAMILY[:KEY=VALUE,...]", help="A student to score.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@reported
def score(config: str | None, overrides: tuple[str, ...], students: tuple[str, ...], as_json: bool) -> None:
    """Training-free proxy scores of students beside the config's teacher."""
    from kdsearch.runs.scoring import scores

    rows = scores(_config(config, overrides, {}), students)
    click.echo(json.dumps(rows) if as_json else _table(rows))


@cli.command()
@click.argument("config", required=False)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the config.")
@click.option("--yaml", "as_yaml", is_flag=True, help="As YAML that a config's `space` takes.")
@click.option("--sample", type=click.IntRange(min=1), help="Print so many random recipes instead.")
@reported
def space(config: str | None, overrides: tuple[str, ...], as_yaml: bool, sample: int | None) -> None:
    """Print the search space of a config."""
    import yaml

    from kdsearch.search_space.space import SearchSpace

    found = SearchSpace.from_dict(_config(config, overrides, {}).space)
    if sample:
        for seed in range(sample):
            click.echo(found.sample(seed).equation())
    else:
        click.echo(yaml.safe_dump(found.to_dict(), sort_keys=False) if as_yaml else found.describe())


@cli.command()
@click.argument("run_dir", metavar="RUN")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@reported
def dashboard(run_dir: str, port: int) -> None:
    """Open a run's studies in optuna-dashboard (loopback only)."""
    from kdsearch.runs.dashboard import serve

    serve(run_dir, port)


def _listing(name: str, rows: Callable[[], list[dict[str, Any]]], help_text: str) -> None:
    @cli.command(name, help=help_text)
    @click.option("--json", "as_json", is_flag=True, help="As JSON.")
    @reported
    def show(as_json: bool) -> None:
        found = rows()
        click.echo(json.dumps(found) if as_json else _table(found))


def _methods() -> list[dict[str, Any]]:
    from kdsearch.listing import methods

    return methods()


def _students() -> list[dict[str, Any]]:
    from kdsearch.listing import students

    return students()


def _proxies() -> list[dict[str, Any]]:
    from kdsearch.listing import proxies

    return proxies()


def _searchers() -> list[dict[str, Any]]:
    from kdsearch.listing import searchers

    return searchers()


_listing("methods", _methods, "List the catalogue of distillation methods.")
_listing("students", _students, "List the student families and transformations.")
_listing("proxies", _proxies, "List the training-free proxies.")
_listing("searchers", _searchers, "List the searchers.")


def _table(rows: list[dict[str, Any]]) -> str:
    """Plain columns, as wide as their content; long cells wrap to the terminal's width."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in rows[0] if rows else []:
        table.add_column(key, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console = Console(width=None if sys.stdout.isatty() else 160)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return str(value)


def main() -> None:
    """Entry point of the `kdsearch` command."""
    cli()
