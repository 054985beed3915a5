"""NNI's tuners, each told of a study from its beginning and asked once.

NNI's tuners keep a state of their own; here they live for one proposal. What they are told goes through their public
calls, but for one thing: a trial they have not proposed themselves is put where they keep those they have handed out.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from kdsearch.searchers.catalogue import MissingPackage
from kdsearch.searchers.nni_tuners import NNI
from kdsearch.searchers.nni_tuners.history import Event, result
from kdsearch.searchers.nni_tuners.space import Json, Place, Space, inward, numeric

MODULES = {
    "tpe": "tpe_tuner",
    "evolution": "evolution_tuner",
    "gp": "gp_tuner.gp_tuner",
    "random": "random_tuner",
    "anneal": "hyperopt_tuner",
}
_ONE = threading.Lock()
"""Tuners run one at a time: the standard output, a logger's level and Python's generator are the whole process's."""
Fill = Callable[[BaseDistribution, int, str], Any]
"""(distribution, trial's number, decision) -> a value, where a tuner needs one that the trial never had."""


@dataclass(frozen=True)
class Question:
    """All that a proposal follows from.

    Attributes:
        events: of the trials that the space holds.
        seed: of a trial or a text, 63 bits.
    """

    options: NNI
    space: Space
    events: list[Event]
    mode: str
    number: int
    seed: Callable[[int, str], int]
    fill: Fill


def module(tuner: str) -> Any:
    """NNI's module with a tuner.

    Raises:
        MissingPackage: NNI is not installed, or what the tuner needs beside it, in a version with which it runs.
    """
    try:
        importlib.import_module("nni")
    except ImportError:
        raise MissingPackage("searcher 'nni' needs the package nni: pip install kdsearch[nni]") from None
    if tuner == "anneal":
        _check_annealing()
    return importlib.import_module(f"nni.algorithms.hpo.{MODULES[tuner]}")


def _check_annealing() -> None:
    try:
        importlib.import_module("hyperopt")
    except ImportError as error:
        raise MissingPackage(
            f"searcher 'nni': tuner 'anneal' needs hyperopt ({error}): pip install hyperopt 'setuptools<81' 'numpy<2.4'"
        ) from None
    try:
        int(np.ones(1))  # hyperopt does this to the trials it picks
    except TypeError:
        raise MissingPackage(
            f"searcher 'nni': hyperopt's annealing needs NumPy < 2.4, not {np.__version__}; "
            "take another tuner: tpe, evolution, gp, random"
        ) from None


def ask(question: Question) -> Json | None:
    """A proposal in NNI's form; None where the tuner has none to make."""
    hpo = module(question.options.tuner)
    nothing = importlib.import_module("nni").NoMoreTrialError
    with _ONE, _quiet(), contextlib.suppress(nothing):
        return _ASKED[question.options.tuner](hpo, question)
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNI logs every seed and prints every duplicate to the standard output."""
    logger = logging.getLogger("nni")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _tpe(hpo: Any, question: Question) -> Json:
    options = question.options
    liar = None if options.liar == "none" else options.liar
    arguments = {
        "n_startup_jobs": options.startup,
        "n_ei_candidates": options.candidates,
        "constant_liar_type": liar,
    }

    def told() -> Any:
        seed = question.seed(question.number, "")
        tuner = hpo.TpeTuner(optimize_mode=question.mode, seed=seed, tpe_args=arguments)
        tuner.update_search_space(question.space.to_nni())
        for trial, told in question.events:
            if not told:
                tuner._running_params[trial.number] = formatted(tuner.space, trial, question.space)
            elif (value := result(trial)) is None:
                tuner.trial_end(trial.number, False)
            else:
                tuner.receive_trial_result(trial.number, None, value)
        return tuner

    return _new(hpo, question, told)


def _random(hpo: Any, question: Question) -> Json:
    def told() -> Any:
        tuner = hpo.RandomTuner(seed=question.seed(question.number, ""))
        tuner.update_search_space(question.space.to_nni())
        return tuner

    return _new(hpo, question, told)


def _new(hpo: Any, question: Question, told: Callable[[], Any]) -> Json:
    """What a tuner proposes; NNI replaces what has been proposed before by the next point of a grid.

    To tell NNI of all that has been takes longer than anything else, and changes nothing where the proposal is new.
    """
    tuner = told()
    proposal: Json = tuner.generate_parameters(question.number)
    earlier = [formatted(tuner.space, trial, question.space) for trial, told in question.events if not told]
    if not any(hpo.deformat_parameters(params, tuner.space) == proposal for params in earlier):
        return proposal
    tuner = told()
    for params in earlier:
        tuner.dedup.add_history(params)
    repeated: Json = tuner.generate_parameters(question.number)
    return repeated


def formatted(specs: Any, trial: FrozenTrial, space: Space) -> dict[tuple[Any, ...], float]:
    """A trial in the form in which NNI's TPE keeps it, without the decisions that it never took.

    Args:
        specs: NNI's own, by key.
    """
    found: dict[tuple[Any, ...], float] = {}
    for key, spec in specs.items():
        if spec.name not in trial.params or (spec.is_nested() and found.get(key[:-2]) != key[-2]):
            continue
        value = inward(space.distributions[spec.name], trial.params[spec.name])
        found[key] = float(np.log(value)) if spec.log_distributed else value
    return found


def _evolution(hpo: Any, question: Question) -> Json | None:
    """NNI's evolution draws whom it removes, so that its whole life is lived again, each trial under its own seed.

    It uses Python's global generator, which is given back as it was found.
    """
    size = question.options.population
    state = random.getstate()
    try:
        tuner = hpo.EvolutionTuner(optimize_mode=question.mode, population_size=size)
        tuner.update_search_space(question.space.to_nni())
        tuner.random_state.seed(question.seed(-1, "population") % 2**32)
        tuner.population.clear()
        for _ in range(size):
            tuner._random_generate_individual()
        for trial, told in question.events:
            if not told:
                _generation(tuner, question, trial.number)
                config = completed(question.space, trial, question.fill)
                tuner.running_trials[trial.number] = hpo.Individual(config=config)
            elif (value := result(trial)) is None:
                tuner.trial_end(trial.number, False)
            else:
                tuner.receive_trial_result(trial.number, None, value)
        return _generation(tuner, question, question.number)
    finally:
        random.setstate(state)


def _generation(tuner: Any, question: Question, number: int) -> Json | None:
    """One more individual; None where all are being tried, in which case NNI would make its user wait."""
    if not tuner.population:
        return None
    random.seed(question.seed(number, ""))
    tuner.random_state.seed(question.seed(number, "") % 2**32)
    return tuner.generate_parameters(number)


def completed(space: Space, trial: FrozenTrial, fill: Fill, place: Place | None = None) -> Json:
    """A trial in the form in which NNI's evolution and annealing keep it.

    They know no trial without a value for each decision of its branches: one that the trial was not asked for is drawn.
    """
    config: Json = {}
    for name in space.under(place):
        distribution = space.distributions[name]
        known = trial.params[name] if name in trial.params else fill(distribution, trial.number, name)
        value = inward(distribution, known)
        if isinstance(distribution, CategoricalDistribution):
            nested = space.branches(name)
            branch = {"_name": str(value)} | completed(space, trial, fill, Place(name, int(value))) if nested else value
            config[name] = {"_index": value, "_value": branch}
        else:
            config[name] = value
    return config


def _anneal(hpo: Any, question: Question) -> Json:
    tuner = hpo.HyperoptTuner("anneal", optimize_mode=question.mode)
    tuner.update_search_space(question.space.to_nni())
    for trial, told in question.events:
        if not told:
            tuner.total_data[trial.number] = completed(question.space, trial, question.fill)
            tuner.rval.trials.new_trial_ids(1)  # hyperopt adds how many were proposed to its seed
        elif (value := result(trial)) is not None:
            tuner.receive_trial_result(trial.number, None, value)
    tuner.rval.rstate.seed(question.seed(question.number, "") % 2**32)
    return tuner.generate_parameters(question.number)


def _gp(hpo: Any, question: Question) -> Json | None:
    scored = [(trial, value) for trial, told in question.events if told and (value := result(trial)) is not None]
    space = numeric(question.space, (trial for trial, _ in scored))
    if not scored or not space.distributions:
        return None
    options = question.options
    tuner = hpo.GPTuner(
        optimize_mode=question.mode,
        cold_start_num=options.cold_start,
        selection_num_warm_up=options.warm_up,
        selection_num_starting_points=0,
    )
    tuner._random_state.seed(question.seed(question.number, "") % 2**32)
    tuner.update_search_space(space.to_nni())
    for trial, value in scored:
        flat = {name: inward(d, trial.params[name]) for name, d in space.distributions.items()}
        tuner.receive_trial_result(trial.number, flat, value)
    return tuner.generate_parameters(question.number)


_ASKED: dict[str, Callable[[Any, Question], Json | None]] = {
    "tpe": _tpe,
    "evolution": _evolution,
    "gp": _gp,
    "random": _random,
    "anneal": _anneal,
}
