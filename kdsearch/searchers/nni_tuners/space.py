"""What NNI knows of a define-by-run space: decisions, and which choice each hangs under, learnt from trials."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from kdsearch.searchers.evolution.seeded import Gene, Genome
from kdsearch.searchers.mcts.domain import Domain

Json = dict[str, Any]


class Place(NamedTuple):
    """A choice that a decision hangs under: the decision it belongs to, and its index there."""

    name: str
    choice: int


def legal(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value that was taken earlier, perhaps from another range, lies in this one."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        return False


def inward(distribution: BaseDistribution, value: Any) -> int | float:
    """A value as NNI sees it: the index of a choice; a number, on a linear grid counted from its lower end."""
    if isinstance(distribution, CategoricalDistribution):
        return int(distribution.to_internal_repr(value))
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return float(value) - distribution.low if _stepped(distribution) else float(value)


def outward(distribution: BaseDistribution, value: Any) -> Any:
    """What NNI proposes, as the objective is given it: on the grid, and inside the range whatever rounding did."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(value)]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    number = float(value) + distribution.low if _stepped(distribution) else float(value)
    if isinstance(distribution, IntDistribution) or distribution.step is not None:
        domain = Domain(distribution)
        number = domain.at(domain.place(number))
    return distribution.to_external_repr(min(max(number, distribution.low), distribution.high))


def declaration(distribution: BaseDistribution) -> Json:
    """A distribution without branches in NNI's words. A grid is `quniform` from 0: NNI's grids hold multiples only."""
    if isinstance(distribution, CategoricalDistribution):
        return {"_type": "choice", "_value": list(range(len(distribution.choices)))}
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high = distribution.low, distribution.high
    if _stepped(distribution):
        return {"_type": "quniform", "_value": [0, high - low, distribution.step]}
    if isinstance(distribution, IntDistribution):
        return {"_type": "qloguniform", "_value": [low, high, 1]}
    return {"_type": "loguniform" if distribution.log else "uniform", "_value": [low, high]}


def _stepped(distribution: IntDistribution | FloatDistribution) -> bool:
    return distribution.step is not None and not distribution.log


@dataclass(frozen=True)
class Space:
    """Decisions by name in the order of their first appearance, and the place of those that hang under a choice."""

    distributions: Mapping[str, BaseDistribution]
    places: Mapping[str, Place]

    def under(self, place: Place | None) -> Iterator[str]:
        """The decisions that hang under a choice; None for the root."""
        return (name for name in self.distributions if self.places.get(name) == place)

    def to_nni(self, place: Place | None = None) -> Json:
        """As an NNI search space; choices that decisions hang under are nested, their `_name` is their index."""
        space: Json = {}
        for name in self.under(place):
            space[name] = declaration(self.distributions[name])
            if self.branches(name):
                options = space[name]["_value"]
                space[name]["_value"] = [{"_name": str(k)} | self.to_nni(Place(name, k)) for k in options]
        return space

    def branches(self, name: str) -> bool:
        return any(place.name == name for place in self.places.values())

    def read(self, proposal: Mapping[str, Any]) -> Genome:
        """NNI's proposal, by name."""
        genome: Genome = {}
        for name, value in proposal.items():
            if name == "_name":
                continue
            index = int(value["_name"]) if isinstance(value, Mapping) else value
            genome[name] = Gene(self.distributions[name], outward(self.distributions[name], index))
            if isinstance(value, Mapping):
                genome |= self.read(value)
        return genome

    def holds(self, trial: FrozenTrial) -> bool:
        """Whether all that a trial decided lies in today's ranges."""
        return all(
            legal(self.distributions[name], value) for name, value in trial.params.items() if name in self.distributions
        )


def learn(trials: Sequence[FrozenTrial]) -> Space:
    """The space that finished trials show, with the latest distribution of every decision that leaves a choice.

    A decision hangs under the choice that all trials that took it had made before; where there are several such
    choices, under the one that the fewest trials made, then the one it is named after, then the last one. A decision
    that depends on more than that is proposed more often than it is asked for, which harms nothing. Only choices at the
    root have branches: NNI's TPE fails where a choice within a choice is not reached.
    """
    distributions: dict[str, BaseDistribution] = {}
    for trial in trials:
        distributions |= {name: d for name, d in trial.distributions.items() if not d.single()}
    made: dict[Place, int] = {}  # by which trials, as the bits of a whole number
    before: dict[str, list[Place]] = {}  # choices that were made before it in every trial so far
    for k, trial in enumerate(trials):
        way: dict[Place, None] = {}
        for name, value in trial.params.items():
            if name not in distributions:
                continue
            before[name] = [place for place in before[name] if place in way] if name in before else list(way)
            distribution = distributions[name]
            if isinstance(distribution, CategoricalDistribution) and legal(distribution, value):
                place = Place(name, int(distribution.to_internal_repr(value)))
                made[place] = made.get(place, 0) | 1 << k
                way[place] = None
    places: dict[str, Place] = {}
    for name, candidates in before.items():
        # What all trials did tells nothing.
        known = [p for p in candidates if p.name not in places and made[p].bit_count() < len(trials)]
        if known:
            places[name] = min(known, key=lambda p: (made[p].bit_count(), _unlike(name, p), -candidates.index(p)))
    return Space(distributions, places)


def _unlike(name: str, place: Place) -> bool:
    return not name.startswith(f"{place.name}.")


def numeric(space: Space, trials: Iterable[FrozenTrial]) -> Space:
    """The part that is flat: numbers that every trial decided."""
    names = [name for name, d in space.distributions.items() if not isinstance(d, CategoricalDistribution)]
    shared = set(names).intersection(*(trial.params for trial in trials))
    return Space({name: space.distributions[name] for name in names if name in shared}, {})
