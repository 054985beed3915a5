"""What a run tells while it runs: a live table in a terminal, plain lines elsewhere, JSON lines or nothing on
request.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from kdsearch.runs.config import RunConfig
from kdsearch.runs.driver import Tally


class Progress:
    """Base and quiet form: says nothing."""

    def phase(self, text: str) -> None:
        """A phase begins."""

    def training(self, done: int, total: int, score: float) -> None:
        """The teacher's training: epochs done of all, validation score."""

    def search(self, tally: Tally, elapsed: float) -> None:
        """A trial changed state."""

    def line(self, text: str) -> None:
        """One event."""

    def close(self) -> None:
        """The run is over."""


class Plain(Progress):
    """Plain lines on standard error, for logs and pipes."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._last = ""

    def phase(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def training(self, done: int, total: int, score: float) -> None:
        print(f"  epoch {done}/{total}: {self.config.metric} {score:.4f}", file=sys.stderr, flush=True)

    def search(self, tally: Tally, elapsed: float) -> None:
        text = f"  {summary(tally, self.config, elapsed)}; {tally.last}"
        if tally.last != self._last:
            self._last = tally.last
            print(text, file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)


class Json(Progress):
    """One JSON object a line on standard output."""

    def _say(self, **event: Any) -> None:
        print(json.dumps({"time": time.time(), **event}), flush=True)

    def phase(self, text: str) -> None:
        self._say(event="phase", text=text)

    def training(self, done: int, total: int, score: float) -> None:
        self._say(event="training", epoch=done, epochs=total, score=score)

    def search(self, tally: Tally, elapsed: float) -> None:
        self._say(event="search", elapsed=elapsed, **vars(tally))

    def line(self, text: str) -> None:
        self._say(event="line", text=text)


class Live(Progress):
    """A table that is redrawn in place."""

    def __init__(self, config: RunConfig) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self.config = config
        self.console = Console(stderr=True)
        self._phase, self._note = "", ""
        self._tally, self._elapsed = Tally(), 0.0
        self._live = RichLive(console=self.console, refresh_per_second=4, transient=True)
        self._live.start()

    def phase(self, text: str) -> None:
        self._phase, self._note = text, ""
        self.console.print(f"[bold]{text}[/bold]")
        self._draw()

    def training(self, done: int, total: int, score: float) -> None:
        self._note = f"epoch {done}/{total}: {self.config.metric} {score:.4f}"
        self._draw()

    def search(self, tally: Tally, elapsed: float) -> None:
        self._tally, self._elapsed, self._note = tally, elapsed, tally.last
        self._draw()

    def line(self, text: str) -> None:
        self._note = text
        self._draw()

    def _draw(self) -> None:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        tally = self._tally
        if tally.done or tally.running:
            budget = self.config.budget
            of = f" of {budget.trials}" if budget.trials else ""
            table.add_row(
                "trials",
                f"{tally.done}{of}: {tally.complete} complete, {tally.pruned} pruned, "
                f"{tally.failed} failed, {tally.running} running",
            )
            table.add_row("best", best(tally))
            table.add_row("time", remaining(tally, self.config, self._elapsed))
        table.add_row("", f"[dim]{self._note}[/dim]")
        self._live.update(table)

    def close(self) -> None:
        self._live.stop()


def best(tally: Tally) -> str:
    """Best so far against the baselines."""
    parts = [f"{tally.best:.4f} (trial {tally.best_number})" if tally.best is not None else "none yet"]
    names = {"none": "no distillation", "kd": "plain KD"}
    parts += [f"{names.get(k, k)} {v:.4f}" for k, v in tally.baselines.items()]
    return " · ".join(parts)


def remaining(tally: Tally, config: RunConfig, elapsed: float) -> str:
    """Time used, and what is left by the trial or the time budget, whichever ends first."""
    lefts = []
    if config.budget.trials and tally.done:
        lefts.append(elapsed / tally.done * max(config.budget.trials - tally.done, 0))
    if config.budget.seconds:
        lefts.append(max(config.budget.seconds - elapsed, 0))
    left = f", about {clock(min(lefts))} left" if lefts else ""
    return f"{clock(elapsed)}{left}"


def summary(tally: Tally, config: RunConfig, elapsed: float) -> str:
    of = f"/{config.budget.trials}" if config.budget.trials else ""
    counts = f"{tally.done}{of} trials ({tally.pruned} pruned, {tally.failed} failed)"
    return f"{counts}, best {best(tally)}, {remaining(tally, config, elapsed)}"


def clock(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def choose(config: RunConfig, *, quiet: bool = False, as_json: bool = False) -> Progress:
    """The form that suits the terminal."""
    if quiet:
        return Progress()
    if as_json:
        return Json()
    return Live(config) if sys.stderr.isatty() else Plain(config)
