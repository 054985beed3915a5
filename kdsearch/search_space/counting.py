"""How many recipes a space holds, counted without listing them.

Options of a slot that leave the same questions to the other slots are one branch of the walk: it is followed once, and
what its members hold is added up.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import prod
from typing import TYPE_CHECKING

from kdsearch.kd_methods import LOSS_SLOTS, METHODS, KDMethod
from kdsearch.parameters import Choices, Parameter, Value
from kdsearch.search_space.narrowing import count
from kdsearch.search_space.recipe import NEUTRAL
from kdsearch.search_space.students.family import STUDENTS

if TYPE_CHECKING:
    from kdsearch.search_space.space import SearchSpace

SLOTS = {"student.transform": "transform"} | {slot: slot for slot in ("student", *LOSS_SLOTS, *NEUTRAL)}
"""The slot that a structural decision fills."""


class Counter:
    """Walks a space once for every way in which its decisions depend on one another."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def result(self) -> tuple[int, int]:
        """Number of distinct discrete structures, and the largest number of continuous decisions in one of them."""
        total, deepest = 0, 0
        stack: list[dict[str, list[str]]] = [{}]
        while stack:
            taken = stack.pop()
            slot, classes, structures, continuous = self._follow(taken)
            if slot is None:
                total += structures
                deepest = max(deepest, continuous)
            else:
                stack.extend({**taken, slot: members} for members in classes)
        return total, deepest

    def _follow(self, taken: dict[str, list[str]]) -> tuple[str | None, list[list[str]], int, int]:
        """Walk with the first member of each class that is taken; stop at the first new slot and give its classes."""
        rest: list[Parameter] = []
        asked: list[str] = []

        class Branch(Exception):
            pass

        def choose(name: str, parameter: Parameter) -> Value:
            slot = SLOTS.get(name)
            if slot is None:
                if name in ("ce.weight", "features.pairing"):
                    rest.append(parameter)
                return parameter.default
            asked.append(slot)
            if slot not in taken:
                assert isinstance(parameter, Choices)
                found.append((slot, self._classes(slot, parameter)))
                raise Branch
            return taken[slot][0]

        found: list[tuple[str, list[list[str]]]] = []
        try:
            recipe = self.space.walk(choose)
        except Branch:
            return *found[0], 0, 0
        # A slot whose question was not asked has a single answer.
        members = dict(taken)
        members.setdefault("student", [recipe.student.name])
        members.setdefault("transform", [recipe.transform.name])
        for slot, node in (*recipe.terms.items(), *recipe.policies.items()):
            if slot not in members and node.name in self.space.options[slot]:
                members[slot] = [node.name]
        own_temperature = recipe.policies["temperature"].name == NEUTRAL["temperature"]
        structures = prod(number for number in map(count, rest) if number is not None)
        continuous = sum(count(parameter) is None for parameter in rest)
        for slot, names in members.items():
            skip = ("temperature",) if slot == "logits" and not own_temperature else ()
            inside = [self._inside(slot, name, skip) for name in names]
            structures *= sum(number for number, _ in inside)
            continuous += max(free for _, free in inside)
        return None, [], structures, continuous

    def _inside(self, slot: str, name: str, skip: tuple[str, ...]) -> tuple[int, int]:
        """Discrete structures and continuous decisions of one entry's own hyper-parameters."""
        declared = {key: p for key, p in self.space.options[slot][name].items() if key not in skip}
        if slot not in LOSS_SLOTS or name == "none" or not _settles(METHODS[name]):
            numbers = [count(p) for p in declared.values()]
            return prod(number for number in numbers if number is not None), sum(number is None for number in numbers)
        leaves: list[tuple[dict[str, Value], int, int]] = [({}, 1, 0)]  # answers, structures, continuous decisions
        for key, parameter in declared.items():
            grown = []
            for answers, structures, continuous in leaves:
                follows = METHODS[name].settled(answers)
                if key in follows:
                    grown.append(({**answers, key: follows[key]}, structures, continuous))
                elif isinstance(parameter, Choices):
                    options = parameter.searched or parameter.options
                    grown += [({**answers, key: option}, structures, continuous) for option in options]
                else:
                    number = count(parameter)
                    more = (structures, continuous + 1) if number is None else (structures * number, continuous)
                    grown.append(({**answers, key: parameter.default}, *more))
            leaves = grown
        return sum(number for _, number, _ in leaves), max(free for _, _, free in leaves)

    def _classes(self, slot: str, parameter: Choices) -> list[list[str]]:
        groups: dict[Hashable, list[str]] = {}
        for option in parameter.searched or parameter.options:
            groups.setdefault(_footprint(slot, str(option)), []).append(str(option))
        return list(groups.values())


def _settles(method: type[KDMethod]) -> bool:
    """Whether some of a method's hyper-parameters follow from others."""
    return method.settled.__func__ is not KDMethod.settled.__func__  # type: ignore[attr-defined]


def _footprint(slot: str, name: str) -> Hashable:
    """What an option of a slot means for the questions of the others."""
    from kdsearch.search_space.space import asks_for_pairing, softens

    if slot == "student":
        return STUDENTS[name].supports
    if slot in ("transform", "schedule", "data", "optimizer"):
        return None
    if slot == "teaching":
        teaching = METHODS[name]
        return getattr(teaching, "supplies", None), getattr(teaching, "own_objective", False)
    if slot in NEUTRAL:
        return name == NEUTRAL[slot]
    if name == "none":
        return None
    return True, softens(name), asks_for_pairing(slot, name)
