"""Students that begin as what a smaller one has learnt (Net2Net): the smaller one trained, or found, and grown."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods.strategy import Plan
from kdsearch.runs import assistants, models
from kdsearch.runs.assistants import Costs, Given
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.network import Network
from kdsearch.runs.settings import Seeds
from kdsearch.runs.training import Trained
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Node, Recipe
from kdsearch.search_space.students.family import STUDENTS
from kdsearch.search_space.students.transforms import TRANSFORMS
from kdsearch.search_space.students.transforms.net2net import Net2Net


@dataclass(frozen=True)
class Growth:
    """What is left for the student itself: its budget, the factor on its learning rate, and the costs before."""

    fidelity: Fidelity
    rate: float = 1.0
    costs: Costs = field(default_factory=Costs)


def grow(
    recipe: Recipe, world: World, seeds: Seeds, fidelity: Fidelity, student: Network, plan: Plan, given: Given
) -> Growth:
    """Fill the student from a smaller one that learns by the same recipe, where the recipe's transform says so.

    The smaller one is kept by content: trials that grow from the same one train it once. A thinned student begins with
    random weights: it stands for its architecture, not for the weights that it would have grown from.

    Raises:
        TrialFailure: the family has no smaller student, or none that this one can grow from ("invalid").
    """
    if recipe.transform.name != Net2Net.name or fidelity.thins:
        return Growth(fidelity)
    transform = TRANSFORMS[recipe.transform.name](**recipe.transform.hyper)
    assert isinstance(transform, Net2Net)
    family = STUDENTS[recipe.student.name](**recipe.student.hyper)
    try:
        small = transform.smaller(family)
    except ValueError as error:
        raise TrialFailure("invalid", f"transform=net2net: {error}") from None
    none = Recipe.from_dict({"student": recipe.student.to_dict("family")}).transform
    own = replace(recipe, student=Node(small.name, small.hyper), transform=none)
    _grown(transform, own, world, student, None, seeds)  # whether it can be grown does not depend on training
    before = replace(fidelity, epochs=fidelity.epochs * transform.share)
    key = assistants.key_of(own, plan, given, world, seeds, before) + "-bare"
    found = assistants.kept(
        key, world.cache / "models", lambda state: _train(own, world, seeds, before, plan, given, state)
    )
    _grown(transform, own, world, student, found.path, seeds)
    return Growth(replace(fidelity, epochs=fidelity.epochs * (1 - transform.share)), transform.rate, found.costs)


def _train(
    recipe: Recipe, world: World, seeds: Seeds, fidelity: Fidelity, plan: Plan, given: Given, state: Path
) -> tuple[Trained, float]:
    from kdsearch.runs.distil import train_apart

    return train_apart(recipe, world, seeds, fidelity, plan, given, state, bare=True)


def _grown(
    transform: Net2Net, small: Recipe, world: World, student: Network, weights: Path | None, seeds: Seeds
) -> None:
    module = models.student(small, world.data)
    if weights is not None:
        models.load(module, weights)
    try:
        transform.grow(module, student.module, models.input_shape(small, world.data), seeds.init)
    except ValueError as error:
        raise TrialFailure("invalid", f"transform=net2net: {error}") from None
