"""Commands on a run: start it, go on, look at it, take its best away."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdsearch.cli.base import cli, read_config, reported, run_options
from kdsearch.errors import UserError

if TYPE_CHECKING:
    from kdsearch.runs.run import Run


@cli.command()
@click.argument("config", required=False)
@run_options
@click.option("--run-dir", metavar="DIR", help="Where the run lives; a new folder under runs/ without it.")
@click.option("--from", "earlier", metavar="RUN", help="Begin with what an earlier run found (warm_start.run).")
@click.option("--dry-run", is_flag=True, help="Print what the run would do and cost, and stop.")
@click.option("--quiet", is_flag=True, help="Print the result alone.")
@click.option("--json", "as_json", is_flag=True, help="Progress and result as JSON lines.")
@reported
def run(
    config: str | None,
    overrides: tuple[str, ...],
    run_dir: str | None,
    earlier: str | None,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Search for the best recipe. Without CONFIG, on the embedded handwritten digits."""
    if earlier is not None:  # as JSON, so that YAML reads any name as text
        overrides = (f"warm_start.run={json.dumps(str(Path(earlier).absolute()))}", *overrides)
    settings = read_config(config, overrides, given)
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
    """Go on with a run that was stopped, killed or finished; a budget named here replaces the one it had."""
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
    from kdsearch.runs.report.front import front_rows, front_table
    from kdsearch.runs.report.tables import finals_rows, finals_table

    rows = finals_rows(run)
    front = front_rows(run, rows)
    if as_json:
        best = run.best
        result = {"event": "result", "run": str(run.path), "best": best.to_dict() if best else None}
        click.echo(json.dumps(result | {"finals": rows, "front": front}))
        return
    best = run.best
    if best is None:
        click.echo("no trial has finished; there is no best recipe. See the report for the reasons.")
    else:
        click.echo(finals_table(run))
        if front:
            click.echo(f"\n{front_table(front, run.config.metric, run.config.minimise)}\n")
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
        elif isinstance(value, list):
            value = ", ".join(f"trial {entry['trial']}" for entry in value) or "-"
        click.echo(f"{key:<8}  {value if value is not None else '-'}")


@cli.command()
@click.argument("run_dir", metavar="RUN")
@click.option("-o", "--output", metavar="FILE", help="Where to write it; the run's report.html without it.")
@click.option("--tree", metavar="FILE", help="Write the search tree instead: JSON (- prints it), or a picture (.svg).")
@reported
def report(run_dir: str, output: str | None, tree: str | None) -> None:
    """Write a run's report: one HTML file that needs no network."""
    from kdsearch import searchers
    from kdsearch.runs.report import write
    from kdsearch.runs.run import Run
    from kdsearch.searchers.mcts.drawing import svg

    if tree is None:
        click.echo(write(Run(run_dir), Path(output) if output else None))
        return
    root = searchers.tree(Run(run_dir).study)
    text = svg(root) if tree.endswith(".svg") else json.dumps(root.to_dict())
    if tree == "-":
        click.echo(text)
        return
    Path(tree).write_text(text, encoding="utf-8")
    click.echo(tree)


@cli.command()
@click.argument("run_dir", metavar="RUN")
@click.option("--trial", type=click.IntRange(min=0), metavar="N", help="This trial's recipe, such as one of the front.")
@click.option("--format", "form", type=click.Choice(["kdsearch", "onnx"]), default="kdsearch", help="What to write.")
@click.option("-o", "--output", metavar="FILE", required=True, help="Where to write it.")
@reported
def export(run_dir: str, trial: int | None, form: str, output: str) -> None:
    """Export a run's best recipe with its provenance, or its student as ONNX; or the recipe of any complete trial."""
    from kdsearch.runs.export.files import of_trial, write_recipe
    from kdsearch.runs.run import Run

    opened = Run(run_dir)
    if trial is not None and form == "onnx":
        raise UserError("--trial: a trial of the search leaves a recipe and no student; export it, `kdsearch train` it")
    winner = opened.finals.winner() if trial is None else of_trial(opened, trial)
    if winner is None:
        raise UserError(f"{run_dir}: no finalist has finished; there is no best recipe to export")
    if form == "onnx":
        from kdsearch.runs.export.onnx import write_onnx

        write_onnx(opened.path, Path(output))
    else:
        write_recipe(opened, winner, Path(output))
    click.echo(output)


@cli.command()
@click.argument("run_dir", metavar="RUN")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@reported
def dashboard(run_dir: str, port: int) -> None:
    """Open a run's studies in optuna-dashboard (loopback only)."""
    from kdsearch.runs.dashboard import serve

    serve(run_dir, port)
