"""The command line: parse, call `runs`, print. Heavy imports stand inside the commands, so that `--help` is instant."""

from kdsearch.cli import bench, listings, searching, training  # noqa: F401 (each adds its commands to the group)
from kdsearch.cli.base import cli

__all__ = ["cli", "main"]


def main() -> None:
    """Entry point of the `kdsearch` command."""
    cli()
