"""A search space whose numbers have cells, so that all its recipes can be trained beforehand and none is made up.

A searcher sees the space as it is, ranges and all. What it proposes is answered by the recipe at the centre of the
proposal's cell, which was trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kdsearch.kd_methods import LOSS_SLOTS
from kdsearch.parameters import Choices, IntRange, Parameter, Value
from kdsearch.registry import nearest
from kdsearch.search_space.narrowing import count, suggest
from kdsearch.search_space.reading import NONE
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace


class Grid:
    """A space with so many cells for each of its numeric decisions, evenly spread on the decision's own scale.

    Args:
        cells: decision name -> number of cells. Choices and whole numbers that are left out keep all their values.
    """

    def __init__(self, space: SearchSpace, cells: Mapping[str, int]) -> None:
        self.space, self.cells = space, dict(cells)

    def options(self, name: str, parameter: Parameter) -> tuple[Value, ...]:
        """All values of a decision, in order.

        Raises:
            ValueError: a continuous decision without cells.
        """
        if isinstance(parameter, Choices):
            return tuple(parameter.searched or parameter.options)
        n = self.cells.get(name)
        if n is None:
            if not isinstance(parameter, IntRange):
                raise ValueError(f"decision {name!r} is continuous and has no cells; {nearest(name, self.cells)}")
            size = count(parameter)
            assert size is not None
            return tuple(parameter.low + k * parameter.step for k in range(size))
        return tuple(_centre(parameter, k, n) for k in range(n))

    def snap(self, name: str, parameter: Parameter, value: Any) -> Value:
        """The value that stands for the cell in which `value` lies."""
        n = self.cells.get(name)
        if n is None or isinstance(parameter, Choices):
            return value
        low, high, at = (_scaled(parameter, v) for v in (parameter.low, parameter.high, value))
        return _centre(parameter, min(n - 1, max(0, int((at - low) / (high - low) * n))), n)

    def suggest(self, trial: Any) -> Recipe:
        """The tabulated recipe that an Optuna trial's proposal stands for."""
        return self.space.walk(lambda name, parameter: self.snap(name, parameter, suggest(trial, name, parameter)))

    def snapped(self, recipe: Recipe) -> Recipe:
        """The tabulated recipe that stands for one of the space."""
        answers = self.space.params_of(recipe)
        return self.space.walk(lambda name, parameter: self.snap(name, parameter, answers[name]))

    def baselines(self) -> list[dict[str, Value]]:
        """Answers that lead to no distillation and to kd alone at its defaults' cells, as far as the space has them."""
        nothing = {slot: NONE for slot in LOSS_SLOTS if NONE in self.space.options[slot]}
        asked = [nothing, {**nothing, "logits": "kd"}] if "kd" in self.space.options["logits"] else [nothing]
        return [self.space.params_of(self.snapped(self.space.default(**answers))) for answers in asked]

    def recipes(self) -> Iterator[Recipe]:
        """Every recipe of the table, in the order of the tree."""
        taken: list[int] = []  # which option of each decision on the way; the last that can go on does so
        while True:
            recipe, left = self._walked(taken)
            yield recipe
            while left and not left[-1]:
                left.pop()
            if not left:
                return
            taken = [*taken, *[0] * len(left)][: len(left)]
            taken[-1] += 1

    def _walked(self, taken: Sequence[int]) -> tuple[Recipe, list[int]]:
        """The recipe of these options, first ones after their end; and how many are left at each decision."""
        left: list[int] = []

        def choose(name: str, parameter: Parameter) -> Value:
            found = self.options(name, parameter)
            k = taken[len(left)] if len(left) < len(taken) else 0
            left.append(len(found) - 1 - k)
            return found[k]

        return self.space.walk(choose), left


def _scaled(parameter: Any, value: float) -> float:
    return math.log(value) if parameter.log else float(value)


def _centre(parameter: Any, k: int, n: int) -> Value:
    """The middle of cell k of n, to four digits: recipes are told apart by their numbers."""
    low, high = _scaled(parameter, parameter.low), _scaled(parameter, parameter.high)
    value = low + (high - low) * (k + 0.5) / n
    value = math.exp(value) if parameter.log else value
    return round(value) if isinstance(parameter, IntRange) else float(f"{value:.4g}")
