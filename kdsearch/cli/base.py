"""What every command shares: the group, how mistakes are reported, the options of a run, tables."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from kdsearch.errors import UserError

if TYPE_CHECKING:
    from kdsearch.runs.config import RunConfig


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


def read_config(path: str | None, overrides: tuple[str, ...], given: dict[str, Any]) -> RunConfig:
    from kdsearch.runs import config_file

    names = {"trials": "budget.trials", "budget": "budget.seconds", "seed": "seed"}
    names |= {"engine": "engine.name", "workers": "engine.workers"}
    settings = [f"{names[key]}={value}" for key, value in given.items() if value is not None]
    if given.get("budget") is not None and given.get("trials") is None:
        settings.append("budget.trials=null")
    return config_file.read(path, [*settings, *overrides])


def table(rows: list[dict[str, Any]]) -> str:
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
