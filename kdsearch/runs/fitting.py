"""Which students of a space are within the limits, found before any trial, and the space that is left of it.

A family without a student that fits leaves the space, a listed value that occurs in none leaves its list, and the
default students are ones that fit. What is left may still combine into a student that does not: such a proposal costs
nothing, and `share` says how often to expect one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, product
from math import prod
from typing import Any

from kdsearch.errors import TrialFailure, UserError
from kdsearch.parameters import Choices, FloatRange, Parameter, Value
from kdsearch.runs.sizes import Sizes, amount, number
from kdsearch.search_space.narrowing import count
from kdsearch.search_space.reading import read_slot, written
from kdsearch.search_space.recipe import Node, Recipe, student_text
from kdsearch.search_space.space import SearchSpace

LISTED = 128  # a family with at most so many students is measured whole
EXTREME, DRAWN = 16, 16  # of a larger one: single departures from the default, so many extremes and random ones
SAMPLED = 64  # random students that tell the share that fits
SLOTS = ("student", "transform")

Hyper = Mapping[str, Parameter]


@dataclass(frozen=True)
class Fitting:
    """What is left of a space within its limits. Plain data that the study keeps: a resumed run has the same space.

    Attributes:
        student, transform: the two slots as a space's YAML has them.
        defaults: the default of each hyper-parameter, by slot, name and key.
        share: of random students of what is left, how many fit.
        fit, tried: students that fit, of those that were measured; `whole` where these were all there are.
        smallest, largest: parameters of those that fit.
    """

    student: Mapping[str, Mapping[str, Any]]
    transform: Mapping[str, Mapping[str, Any]]
    defaults: Mapping[str, Mapping[str, Mapping[str, Value]]]
    share: float
    fit: int
    tried: int
    whole: bool
    smallest: float
    largest: float

    def to_dict(self) -> dict[str, Any]:
        """Read back by `Fitting(**data)`."""
        return asdict(self)

    def within(self, space: SearchSpace) -> SearchSpace:
        """The space with these students alone."""
        options: dict[str, Mapping[str, Hyper]] = dict(space.options)
        problems: list[str] = []
        for slot in SLOTS:
            read = read_slot(slot, getattr(self, slot), problems)
            if problems:
                raise UserError(f"study: the students of its space cannot be read: {problems[0]}")
            options[slot] = {
                name: {key: replace(p, default=self.defaults[slot][name][key]) for key, p in hyper.items()}  # type: ignore[arg-type]
                for name, hyper in read.items()
            }
        return SearchSpace(options, ce_weight=space.ce_weight, pairing=space.pairing, max_terms=space.max_terms)

    def describe(self) -> str:
        """One line for people."""
        of = f"{self.fit:,} of {self.tried:,} {'students' if self.whole else 'sampled ones'} lie within the limits"
        return f"{of}, {self.smallest:,.0f} to {self.largest:,.0f} parameters"


def fitting(space: SearchSpace, sizes: Sizes) -> Fitting:
    """Measure the students of a space: all of a family, or extremes and random ones where it has too many.

    Raises:
        UserError: none of them is within the limits.
    """
    found = {family: _students(space, family) for family in space.options["student"]}
    looked = [recipe for recipes in found.values() for recipe in recipes]
    kept = {family: [r for r in recipes if _fits(r, sizes)] for family, recipes in found.items()}
    kept = {family: recipes for family, recipes in kept.items() if recipes}
    if not kept:
        raise UserError(_none(sizes, looked))
    weight = {r: sizes.of(r, "parameters")["parameters"] for recipes in kept.values() for r in recipes}
    chosen = {family: _default(space, recipes, weight) for family, recipes in kept.items()}
    first = next(iter(chosen.values()))
    whole = all(_listed(space, family) for family in found)
    transforms = [first.transform.name, *(name for name in space.options["transform"] if name != first.transform.name)]
    if whole:
        transforms = [name for name in transforms if any(r.transform.name == name for r in weight)]
    seen = {name: [r.transform.hyper for r in weight if r.transform.name == name] for name in transforms}
    options = {
        "student": {
            name: _left(space.options["student"][name], [r.student.hyper for r in kept[name]], _listed(space, name))
            for name in kept
        },
        "transform": {name: _left(space.options["transform"][name], seen[name], whole) for name in transforms},
    }
    beside = {name: hypers[0] if hypers else _published(space, "transform", name) for name, hypers in seen.items()}
    beside[first.transform.name] = first.transform.hyper
    defaults = {
        "student": {name: dict(recipe.student.hyper) for name, recipe in chosen.items()},
        "transform": {name: dict(hyper) for name, hyper in beside.items()},
    }
    left = Fitting(
        {name: {key: written(p) for key, p in hyper.items()} for name, hyper in options["student"].items()},
        {name: {key: written(p) for key, p in hyper.items()} for name, hyper in options["transform"].items()},
        defaults,
        1.0,
        len(weight),
        len(looked),
        whole,
        min(weight.values()),
        max(weight.values()),
    )
    return replace(left, share=_share(left.within(space), sizes))


def _students(space: SearchSpace, family: str) -> list[Recipe]:
    """Plain recipes, one a student, the default one first."""
    alone = SearchSpace({**space.options, "student": {family: space.options["student"][family]}})
    default = alone.default().without_distillation()
    listed = _listed(space, family)
    every = _combined(space, family, _values if listed else _ends)
    recipes = [default, *(_with(default, *nodes) for nodes in (every if listed else islice(every, EXTREME)))]
    if not listed:
        recipes += _departures(space, default)
        drawn = [alone.sample(seed) for seed in range(DRAWN)]
        recipes += [_with(default, recipe.student, recipe.transform) for recipe in drawn]
    return list(dict.fromkeys(recipes))


def _departures(space: SearchSpace, default: Recipe) -> Iterator[Recipe]:
    """The default student with one of its hyper-parameters at an end of its range."""
    for key, parameter in space.options["student"][default.student.name].items():
        for value in _ends(parameter):
            student = Node(default.student.name, {**default.student.hyper, key: value})
            yield _with(default, student, default.transform)


def _combined(
    space: SearchSpace, family: str, values: Callable[[Parameter], Sequence[Value]]
) -> Iterator[tuple[Node, Node]]:
    for transform, changes in space.options["transform"].items():
        hyper = space.options["student"][family]
        for answers in product(*map(values, (*hyper.values(), *changes.values()))):
            own = dict(zip(hyper, answers, strict=False))
            yield Node(family, own), Node(transform, dict(zip(changes, answers[len(hyper) :], strict=True)))


def _with(recipe: Recipe, student: Node, transform: Node) -> Recipe:
    # Read anew: values that the declarations want as fractions become fractions.
    nodes = {"student": student.to_dict("family"), "transform": transform.to_dict()}
    return Recipe.from_dict({**recipe.to_dict(), **nodes})


def _listed(space: SearchSpace, family: str) -> bool:
    """Whether all students of a family are measured."""
    ways = [_ways(hyper) for hyper in space.options["transform"].values()]
    own = _ways(space.options["student"][family])
    return own is not None and None not in ways and own * sum(n for n in ways if n is not None) <= LISTED


def _ways(hyper: Hyper) -> int | None:
    counts = [count(parameter) for parameter in hyper.values()]
    return None if None in counts else prod(n for n in counts if n is not None)


def _values(parameter: Parameter) -> Sequence[Value]:
    """Every value of a parameter that has finitely many."""
    if isinstance(parameter, Choices):
        return parameter.searched or parameter.options
    if isinstance(parameter, FloatRange):
        return (parameter.low,)
    return range(parameter.low, parameter.high + 1, 1 if parameter.log else parameter.step)


def _ends(parameter: Parameter) -> Sequence[Value]:
    if isinstance(parameter, Choices):
        return parameter.searched or parameter.options
    return (parameter.low, parameter.high) if parameter.low < parameter.high else (parameter.low,)


def _fits(recipe: Recipe, sizes: Sizes) -> bool:
    try:
        return sizes.over(recipe) is None
    except TrialFailure:
        return False


def _default(space: SearchSpace, recipes: Sequence[Recipe], weight: Mapping[Recipe, float]) -> Recipe:
    """The student with the fewest departures from the default one; the largest of several."""
    first = next(iter(space.options["transform"]))

    def departures(recipe: Recipe) -> tuple[int, float]:
        inside = 0
        for slot, node in zip(SLOTS, (recipe.student, recipe.transform), strict=True):
            published = _published(space, slot, node.name)
            inside += sum(value != published[key] for key, value in node.hyper.items())
        return inside + (recipe.transform.name != first), -weight[recipe]

    return min(recipes, key=departures)


def _published(space: SearchSpace, slot: str, name: str) -> dict[str, Value]:
    return {key: parameter.default for key, parameter in space.options[slot][name].items()}


def _left(hyper: Hyper, seen: Sequence[Mapping[str, Value]], listed: bool) -> dict[str, Parameter]:
    """A declaration's ranges without the values that occur in no student that fits."""
    return {key: _narrow(p, [values[key] for values in seen]) if listed else p for key, p in hyper.items()}


def _narrow(parameter: Parameter, values: Sequence[Value]) -> Parameter:
    if isinstance(parameter, Choices):
        options = tuple(v for v in parameter.searched or parameter.options if v in values)
        return replace(parameter, default=options[0], searched=options)
    low, high = min(values), max(values)
    return replace(parameter, default=low, low=low, high=high)  # type: ignore[arg-type]


def _share(space: SearchSpace, sizes: Sizes) -> float:
    plain = space.default().without_distillation()
    drawn = [space.sample(seed) for seed in range(SAMPLED)]
    hits = sum(_fits(_with(plain, recipe.student, recipe.transform), sizes) for recipe in drawn)
    return max(hits, 0.5) / SAMPLED


def _none(sizes: Sizes, looked: Sequence[Recipe]) -> str:
    """That nothing fits, and the student that comes closest."""
    best: tuple[float, str, str] | None = None
    problem = ""
    for recipe in looked:
        try:
            found = sizes.of(recipe, *sizes.limits)
        except TrialFailure as error:
            problem = problem or str(error)
            continue
        name = max(sizes.limits, key=lambda name: found[name] / sizes.limits[name])
        excess, limit = found[name] / sizes.limits[name], number(name, sizes.limits[name])
        if best is None or excess < best[0]:
            best = excess, student_text(recipe), f"has {amount(name, found[name])}; the limit is {limit}"
    of = f"none of the {len(looked):,} students that were measured is within them"
    if best is None:
        return f"limits: {of}: {problem}"
    return f"limits: {of}; the closest, {best[1]}, {best[2]}"
