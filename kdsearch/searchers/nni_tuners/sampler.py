"""NNI's tuners as an Optuna sampler, for any define-by-run objective."""

from __future__ import annotations

from typing import Any

from optuna.distributions import BaseDistribution
from optuna.study import Study, StudyDirection
from optuna.trial import TrialState

from kdsearch.searchers.evolution.seeded import Genome, SeededSampler
from kdsearch.searchers.mcts.domain import Domain
from kdsearch.searchers.nni_tuners import NNI
from kdsearch.searchers.nni_tuners.history import events
from kdsearch.searchers.nni_tuners.space import learn
from kdsearch.searchers.nni_tuners.tuners import Question, ask, module


class NNISampler(SeededSampler):
    """What a tuner of NNI proposes when it is told of this study.

    For every trial a tuner is made, told of all trials so far in the order in which they were handed out and ended,
    given the trial's own seed, and asked once. With one space and one seed per trial this is what NNI's tuner proposes
    in an experiment of its own. Decisions on a grid are told as the rounded values that were run, as NNI itself does
    when it resumes an experiment. Trials with a value outside the present ranges are left out.

    What each tuner makes of it: `tpe` models every value on its own, from the trials that took it, and counts running
    trials as its liar says; `evolution` mutates one decision of the better of two individuals and forgets the other;
    `anneal` draws near good trials, ever nearer; `gp` knows the numbers that every trial decides, and no running
    trials; `random` knows which trials there were and repeats none.

    Args:
        options: as declared by `NNI`.
        seed: of the draws; None draws one.

    Raises:
        MissingPackage: NNI or what the tuner needs beside it is not installed, in a version with which it runs.
        ValueError: while searching: several objectives.
    """

    def __init__(self, options: NNI, *, seed: int | None = None) -> None:
        super().__init__(seed=seed)
        self.options = options
        module(options.tuner)

    def propose(self, study: Study, number: int) -> Genome:
        if len(study.directions) > 1:
            raise ValueError("searcher 'nni' does not support multi-objective studies")
        trials = study.get_trials(deepcopy=False)
        finished = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        space = learn(finished)
        if not space.distributions:
            return {}
        mode = "maximize" if study.directions[0] == StudyDirection.MAXIMIZE else "minimize"
        known = [t for t in trials if t.number != number and t.state != TrialState.WAITING and space.holds(t)]
        proposal = ask(Question(self.options, space, events(known), mode, number, self.entropy, self._fill))
        return space.read(proposal) if proposal else {}

    def _fill(self, distribution: BaseDistribution, number: int, name: str) -> Any:
        value = Domain(distribution).draw(self.rng(number, f"unasked {name}"))
        return distribution.to_external_repr(value)
