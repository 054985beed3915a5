"""Runs whose studies are written by hand: through the ledger, with real recipes and rung results, and no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from kdsearch.runs import config_file
from kdsearch.runs.jobs import Failure, RungResult
from kdsearch.runs.run import Run
from kdsearch.search_space.recipe import Recipe

from .tiny import TINY


def empty(folder: Path, **changes: Any) -> Run:
    """A claimed run of the tiny config in which nothing has happened yet."""
    given = {**TINY, "pruner": {"name": "none"}, "searcher": {"name": "random"}, **changes}
    run = Run(folder, config_file.check(given, "config")).claim(new=True)
    run.place.release()
    return run


def ask(run: Run, *, origin: str = "search", recipe: Recipe | None = None) -> Trial:
    """A proposed trial, as the driver notes it."""
    ledger = run.search_ledger
    if recipe is not None:
        ledger.study.enqueue_trial(run.space.params_of(recipe), user_attrs={"origin": origin})
    trial = ledger.study.ask()
    suggested = run.space.suggest(trial)
    ledger.note(trial, recipe=suggested.to_dict(), hash=suggested.hash, equation=suggested.equation(), origin=origin)
    return trial


def climb(
    run: Run, scores: Mapping[str, float], *, proxies: Mapping[str, float] | None = None, values: Sequence[float] = (),
    seconds: float = 1.0, beside: Mapping[str, float] | None = None, **how: Any
) -> Trial:  # fmt: skip
    """A trial up the rungs of `scores`: complete where the last one is among them, else stopped at its highest.

    `beside` is what was measured of it beside its teacher.
    """
    trial = ask(run, **how)
    ledger = run.search_ledger
    reached = "proxies"
    if proxies:
        ledger.record(trial, RungResult("proxies", 0.0, 0.5, trained=False, metrics=dict(proxies)))
    for rung, score in scores.items():
        notes = ["teacher: logits cached"]
        metrics = {run.config.metric: score, **(beside or {})}
        ledger.record(trial, RungResult(rung, score, seconds, metrics=metrics, notes=notes))
        reached = rung
    if "full" in scores:
        ledger.complete(trial, [scores["full"], *values])
    else:
        ledger.prune(trial, reached)
    return trial


def fail(run: Run, reason: str, message: str, *, trace: str = "") -> Trial:
    trial = ask(run)
    run.search_ledger.fail(trial, Failure(reason, message, deterministic=True, trace=trace))
    return trial


def duplicate(run: Run, of: Trial) -> Trial:
    """A second proposal of a known recipe, which takes the known result."""
    ledger = run.search_ledger
    known = next(t for t in ledger.trials() if t.number == of.number)
    trial = ledger.study.ask()
    ledger.note(trial, duplicate_of=of.number, free=True, **dict(known.user_attrs))
    if known.state == TrialState.COMPLETE:
        ledger.complete(trial, known.values)
    else:
        ledger.study.tell(trial, state=TrialState.PRUNED)
    return trial


def final(
    run: Run,
    recipe: Recipe,
    role: str,
    validation: Sequence[float],
    test: Sequence[float] = (),
    beside: Sequence[Mapping[str, float]] = (),
    **more: int,
) -> None:
    """One recipe of the finals: its scores seed by seed, and what was measured beside its teacher."""
    ledger, metric = run.finals_ledger, run.config.metric
    for seed, score in enumerate(validation):
        trial = ledger.study.ask()
        ledger.note(
            trial, recipe=recipe.to_dict(), hash=recipe.hash, equation=recipe.equation(), role=role, seed=seed, **more
        )
        size = {"parameters": 1234.0, "macs": 56789.0}
        metrics = {metric: score, **(beside[seed] if seed < len(beside) else {})}
        ledger.record(trial, RungResult("final", score, 2.0, metrics=metrics, size=size, weights="none"))
        ledger.complete(trial, [score])
        if seed < len(test):
            tested = dict(ledger.study.user_attrs.get("test", {}))
            tested[str(trial.number)] = {metric: test[seed]}
            ledger.study.set_user_attr("test", tested)


def inherited(run: Run) -> list[FrozenTrial]:
    """What it has taken over from an earlier run."""
    return run.search_ledger.inherited()


def source(trial: FrozenTrial) -> int:
    """The number in the earlier run of a trial that was taken over."""
    return int(trial.user_attrs["source"]["trial"])
