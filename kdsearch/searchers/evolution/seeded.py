"""Samplers without a state of their own: what they draw follows from the study, the seed and the trial's number."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from kdsearch.searchers.mcts.domain import Domain


class Gene(NamedTuple):
    """One decision: its distribution and the value taken."""

    distribution: BaseDistribution
    value: Any


Genome = dict[str, Gene]
"""The decisions of a trial by name, in the order of its suggest calls."""


class SeededSampler(BaseSampler):
    """Draws values a trial has no proposal for at random; a subclass makes the proposals.

    `propose` is called once, when a trial begins. A decision that the proposal lacks, or whose range no longer holds
    the proposed value, goes to `draw`. Both see the study through `recall`, which reads it once per trial.

    Args:
        seed: of the draws; None draws one.
    """

    def __init__(self, *, seed: int | None = None) -> None:
        self.seed = secrets.randbits(63) if seed is None else seed
        self._proposed: dict[int, Genome] = {}  # between the two calls in which Optuna asks for them
        self._recalled: dict[int, Any] = {}  # of the trials that are under way in this process

    def propose(self, study: Study, number: int) -> Genome:
        """Values for decisions that the trial of this number may be asked for."""
        return {}

    def recall(self, study: Study) -> Any:
        """What a subclass has to know of the study."""
        return None

    def recalled(self, study: Study, number: int) -> Any:
        """`recall`, as the study stood when this trial began."""
        if number not in self._recalled:
            self._recalled[number] = self.recall(study)
        return self._recalled[number]

    def draw(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        """A value for a decision without a proposal: uniform over choices and cells, log-uniform on a log scale."""
        value = Domain(distribution).draw(self.rng(trial.number, name))
        return distribution.to_external_repr(value)

    def rng(self, number: int, name: str = "") -> Random:
        """The generator for one trial, or for one of its decisions."""
        return Random(self.entropy(number, name))

    def entropy(self, number: int, name: str = "") -> int:
        """63 bits that belong to this seed, trial and name."""
        digest = hashlib.blake2b(f"{self.seed}/{number}/{name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    def reseed_rng(self) -> None:
        """Nothing to do: draws are seeded by the trial's number, which no two workers share."""

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_proposed": {}, "_recalled": {}}

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._recalled.pop(trial.number, None)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._recalled.pop(trial.number, None)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        genome = self.propose(study, trial.number)
        self._proposed[trial.number] = genome
        return {name: gene.distribution for name, gene in genome.items()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        genome = self._proposed.pop(trial.number, {})
        return {name: gene.value for name, gene in genome.items() if name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.draw(study, trial, param_name, param_distribution)
