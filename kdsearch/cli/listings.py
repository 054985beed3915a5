"""Commands that print tables of everything registered, and the tree of decisions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from kdsearch.cli.base import cli, read_config, reported, table
from kdsearch.errors import UserError


@cli.command()
@click.argument("config", required=False)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the config.")
@click.option("--yaml", "as_yaml", is_flag=True, help="As YAML that a config's `space` takes.")
@click.option("--sample", type=click.IntRange(min=1), help="Print so many random recipes instead.")
@reported
def space(config: str | None, overrides: tuple[str, ...], as_yaml: bool, sample: int | None) -> None:
    """Print the search space of a config."""
    from kdsearch import yaml_text
    from kdsearch.search_space.space import SearchSpace

    found = SearchSpace.from_dict(read_config(config, overrides, {}).space)
    if sample:
        for seed in range(sample):
            click.echo(found.sample(seed).equation())
    else:
        click.echo(yaml_text.dump(found.to_dict()) if as_yaml else found.describe())


def _listing(name: str, help_text: str) -> None:
    @cli.command(name, help=help_text)
    @click.option("--plugin", "plugins", multiple=True, metavar="MODULE", help="Import this module first.")
    @click.option("--json", "as_json", is_flag=True, help="As JSON.")
    @reported
    def show(plugins: tuple[str, ...], as_json: bool) -> None:
        from kdsearch import listing
        from kdsearch.registry import load_plugins

        try:
            load_plugins(plugins)
        except ValueError as error:
            raise UserError(f"--plugin: {error}") from None
        rows: Callable[[], list[dict[str, Any]]] = getattr(listing, name)
        click.echo(json.dumps(rows()) if as_json else table(rows()))


_listing("methods", "List the catalogue of distillation methods.")
_listing("students", "List the student families and transformations.")
_listing("proxies", "List the training-free proxies.")
_listing("searchers", "List the searchers.")
