"""The page itself: everything the template shows, gathered from the run, and rendered."""

from __future__ import annotations

import json
import shlex
import time
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from kdsearch import searchers, yaml_text
from kdsearch.runs.address import without_password
from kdsearch.runs.config import RunConfig
from kdsearch.runs.front import front
from kdsearch.runs.progress import clock
from kdsearch.runs.report import agreement, figures, ladder
from kdsearch.runs.report.agreement import tau_text
from kdsearch.runs.report.decisions import table
from kdsearch.runs.report.failures import failures
from kdsearch.runs.report.figures.rungs import duration
from kdsearch.runs.report.front import front_rows
from kdsearch.runs.report.headline import headline, search_baselines
from kdsearch.runs.report.likeness import Likeness, likeness
from kdsearch.runs.report.notes import notes
from kdsearch.runs.report.outcomes import KINDS, Outcome, outcomes, plural
from kdsearch.runs.report.tables import finals_rows, mean_text
from kdsearch.runs.sizes import number

if TYPE_CHECKING:
    from kdsearch.runs.report.figures import Panel
    from kdsearch.runs.run import Run

SHOWN_NOTES = 30


def page(run: Run) -> str:
    """The report as HTML, with Plotly's script and all data inside."""
    rows = finals_rows(run)
    attributes = run.study.user_attrs
    found = notes(run)
    trials = outcomes(run.search_ledger, [rung.name for rung in run.config.fidelity.rungs])
    alike = likeness(run, rows, trials)
    context: dict[str, Any] = {
        "run": run,
        "config": run.config,
        "counts": counts(run),
        "elapsed": float(attributes.get("elapsed", 0.0)),
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "headline": headline(run, rows),
        "rows": rows,
        "likeness": alike,
        "front": front_rows(run, rows),
        "ladder": ladder.rungs(run),
        "agreements": (pairs := agreement.agreements(run)),
        "poor": agreement.warnings(pairs),
        "combiner": agreement.combiner(run),
        "notes": found[:SHOWN_NOTES],
        "more_notes": len(found) - SHOWN_NOTES,
        "failures": failures(run),
        "warnings": [without_password(str(attributes[key])) for key in sorted(attributes) if key.startswith("warning")],
        "phases": attributes.get("phases", {}),
        "test_seen": int(run.finals_ledger.study.user_attrs.get("test_seen", 0)),
        "environment": environment(run),
        "resolved": resolved(run.config),
        "storage": without_password(run.config.study.storage or "study.db in the run's folder"),
        "panels": {panel.key: panel for panel in panels(run, rows, pairs, trials, alike)},
        "plotly": Markup(_plotly()),
    }
    return _templates().get_template("report.html.j2").render(context)


def panels(
    run: Run,
    rows: list[dict[str, Any]],
    pairs: list[agreement.Agreement],
    trials: list[Outcome],
    alike: Likeness,
) -> list[Panel]:
    """Every figure of the report."""
    config, ledger = run.config, run.search_ledger
    metric, maximise = config.metric, ledger.primary == "maximize"
    rungs = [rung.name for rung in config.fidelity.rungs]
    chosen = table(trials, rungs)
    weights = figures.importances(chosen)
    attributes = ledger.study.user_attrs
    teacher = attributes.get(f"teacher_{metric}")
    drawn = [
        figures.history(trials, metric, maximise=maximise, lines=search_baselines(run), teacher=teacher),
        figures.finalists(rows, metric),
        figures.likeness(alike),
        figures.agreement(pairs),
        figures.costs(ladder.rungs(run), attributes.get("phases", {})),
        figures.importance(chosen, weights, metric),
        figures.parallel(chosen, weights, metric, maximise=maximise),
        figures.reasons(failures(run)),
    ]
    curve = figures.adaptive(run, rows)
    if curve is not None:
        drawn.append(curve)
    if config.minimise:
        on_front = {trial.number for trial in front(ledger)}
        drawn.append(figures.pareto(trials, on_front, metric, config.minimise, maximise=maximise))
    if config.searcher.name == "mcts":
        drawn.append(figures.tree(searchers.tree(ledger.study)))
    return drawn


def counts(run: Run) -> dict[str, int]:
    """Trials of the search by outcome."""
    found = Counter(trial.kind for trial in outcomes(run.search_ledger, []))
    return {kind: found[kind] for kind in KINDS if found[kind]}


def environment(run: Run) -> dict[str, Any]:
    """What the run was made of; empty where its record is missing or damaged."""
    try:
        found = json.loads((run.path / "environment.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def resolved(config: RunConfig) -> str:
    """The config as YAML, without a password."""
    # Wide, so that no URL is broken over two lines, where its password would not be known for one.
    text = yaml_text.dump(config.model_dump(mode="json"), width=10**6)
    return without_password(text)


@cache
def _templates() -> Environment:
    # StrictUndefined: a report with a hole in it is an error here, not a surprise for its reader.
    made = Environment(
        loader=PackageLoader("kdsearch.runs.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"mean": mean_text, "signed": _signed, "duration": duration, "clock": clock, "plot": embedded}
    made.filters |= {"quantity": lambda value, name: number(name, value)}
    made.filters |= {"count": _count, "quoted": shlex.quote, "plural": plural, "tau": tau_text}
    return made


def _signed(split: dict[str, Any] | None) -> str:
    return mean_text(split, signed=True)


def _count(value: float | None) -> str:
    """A whole number with its thousands apart."""
    return "–" if value is None else f"{value:,.0f}"


def embedded(panel: Panel) -> Markup:
    """A figure as JSON that may stand inside a script element: Plotly escapes every angle bracket."""
    assert panel.figure is not None
    return Markup(panel.figure.to_json())


@cache
def _plotly() -> str:
    """Plotly's script, as Plotly ships it."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs()).replace("</script", "<\\/script")
