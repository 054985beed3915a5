"""Searches in virtual time: any sampler and pruner against a table, with any number of workers."""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import Trial, TrialState

from kdsearch.runs.bench.table import Entry, Table


@dataclass
class Trace:
    """What a search did, trial by trial in the order in which they ended.

    Attributes:
        regret: after each trial, how far what would be handed out then is truly behind the best of the table.
        seconds: virtual processor seconds that all workers had spent when the trial ended, on others still under way
            too.
        clock: virtual time when it ended.
        recipes: by hash; "" for proposals that no table holds, since they are invalid.
        states: how each trial ended.
        incumbents: what would be handed out after each trial, "" before any is complete.
    """

    regret: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    recipes: list[str] = field(default_factory=list)
    states: list[TrialState] = field(default_factory=list)
    incumbents: list[str] = field(default_factory=list)

    def at_cost(self, seconds: Sequence[float]) -> NDArray[np.float64]:
        """The regret when so many processor seconds had been spent; the first trial's before it ended."""
        at = np.searchsorted(np.array(self.seconds), np.asarray(seconds), side="right") - 1
        return np.array(self.regret)[np.maximum(at, 0)]


@dataclass
class _Running:
    """A trial under way: what it will find, rung by rung."""

    trial: Trial
    recipe: str
    entry: Entry | None
    rung: int


def replay(
    table: Table,
    sampler: optuna.samplers.BaseSampler,
    *,
    trials: int,
    workers: int = 1,
    seed: int | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    reduction: int = 3,
    finalists: int = 6,
    baselines: bool = True,
) -> Trace:
    """Search the table's space as a run would, answered by the table.

    Every proposal counts as a trial, repeated ones included. A searcher is shown the validation score of one seed. As
    in a run, the best of what it has seen are compared over all seeds, and the winner is what is handed out; regret is
    of its mean over all seeds on the test split.

    Args:
        seed: whose scores are shown; the table's first without it.
        pruner: asked after every rung, but not of the baselines; without one, trials are trained in full at once.
        reduction: rung k reports at step reduction ** k.
        finalists: how many recipes are compared in the end; 1 hands out what scored best in the search.
        baselines: whether no distillation and plain KD are the first trials, as in a run.
    """
    shown = table.seeds[0] if seed is None else seed
    rungs = [rung.name for rung in table.rungs] if pruner is not None else [table.rungs[-1].name]
    with _silent():
        study = optuna.create_study(
            direction="maximize" if table.maximise else "minimize",
            sampler=sampler,
            pruner=pruner or optuna.pruners.NopPruner(),
        )
        protected = table.grid.baselines() if baselines else []
        for answers in protected:
            study.enqueue_trial(answers)
    found, incumbent = Trace(), ""
    leading: dict[str, float] = {}  # the finalists as they stand
    events: list[tuple[float, int, _Running]] = []
    asked, spent, before = 0, 0.0, 0.0

    def start(now: float) -> None:
        nonlocal asked
        asked += 1
        trial = study.ask()
        recipe = table.grid.suggest(trial).hash
        entry = table.entries.get((recipe, shown))
        running = _Running(trial, recipe if entry else "", entry, 0)
        heapq.heappush(events, (now + _cost(running, rungs), trial.number, running))

    with _silent():
        for _ in range(min(workers, trials)):
            start(0.0)
        while events:
            busy = len(events)
            now, number, run = heapq.heappop(events)
            spent, before = spent + (now - before) * busy, now
            state = TrialState.PRUNED
            if run.entry is not None and run.entry.failure is None:
                name = rungs[run.rung]
                score = run.entry.scores[name]
                run.trial.report(score, reduction**run.rung)
                last = run.rung == len(rungs) - 1
                if not last and (number < len(protected) or not run.trial.should_prune()):
                    run.rung += 1
                    heapq.heappush(events, (now + _cost(run, rungs), number, run))
                    continue
                if last:
                    state = TrialState.COMPLETE
                    study.tell(run.trial, score)
                    leading[run.recipe] = score if table.maximise else -score
                    if len(leading) > finalists:
                        del leading[min(leading, key=lambda name: (leading[name], name))]
                    incumbent = table.confirmed(leading)
            if state == TrialState.PRUNED:
                study.tell(run.trial, state=TrialState.PRUNED)
            found.regret.append(table.regret(incumbent))
            found.seconds.append(spent)
            found.clock.append(now)
            found.recipes.append(run.recipe)
            found.states.append(state)
            found.incumbents.append(incumbent)
            if asked < trials:
                start(now)
    return found


def _cost(run: _Running, rungs: Sequence[str]) -> float:
    """Virtual seconds of a trial's present rung; invalid proposals cost nothing, failing ones their first rung's
    place in the queue alone.
    """
    if run.entry is None or run.entry.failure is not None:
        return 0.0
    return run.entry.seconds[rungs[run.rung]]


@contextmanager
def _silent() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
