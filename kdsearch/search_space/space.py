"""The search space: the tree of decisions whose leaves are recipes.

The tree is one walk through the slots of a recipe. Whoever answers the walk's questions decides what comes out: an
Optuna trial (`suggest`), a random generator (`sample`), the published defaults (`default`), a given recipe
(`params_of`), or a counter (`size`, `describe`). Decisions are named by slot and method, never by position, and no
list of options depends on an earlier answer; a question is simply not asked where its answer could not matter.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kdsearch.kd_methods import LOSS_SLOTS, METHODS, Need
from kdsearch.kd_methods.signals import STAGED
from kdsearch.parameters import Choices, FloatRange, IntRange, Parameter, Value
from kdsearch.registry import nearest
from kdsearch.search_space.counting import Counter
from kdsearch.search_space.narrowing import fixed, suggest
from kdsearch.search_space.pairing import EXPLICIT, PAIRINGS
from kdsearch.search_space.reading import NONE, narrowed, read_slot, with_preset, written
from kdsearch.search_space.recipe import NEUTRAL, Node, Recipe
from kdsearch.search_space.students.family import STUDENTS

Choose = Callable[[str, Parameter], Value]
DEFAULT_CE = FloatRange(1.0, 0.1, 1.0, log=True, domain=(0.0, float("inf")))


def softens(logits: str) -> bool:
    """Whether a temperature policy acts on this logit method."""
    return "temperature" in METHODS[logits].parameters or bool(getattr(METHODS[logits], "softens", False))


def asks_for_pairing(slot: str, name: str) -> bool:
    """Whether this method leaves it to the recipe which stages go together."""
    return slot == "features" and METHODS[name].pairing is None and bool(METHODS[name].needs.student & STAGED)


def settled(slot: str, name: str) -> Callable[[Mapping[str, Value]], Mapping[str, Value]]:
    """What of an entry's hyper-parameters follows from those before them."""
    return METHODS[name].settled if slot in LOSS_SLOTS and name != NONE else lambda answers: {}


class SearchSpace:
    """Decisions and their ranges. Written in YAML (`from_dict`, `to_dict`); where that says nothing, everything
    registered.

    Attributes:
        options: slot -> name -> hyper-parameter -> declaration. Loss slots hold "none" as well.
        ce_weight, pairing: the two decisions that belong to no method.
        max_terms: at most so many loss slots are filled.
    """

    def __init__(
        self,
        options: Mapping[str, Mapping[str, Mapping[str, Parameter]]],
        *,
        ce_weight: Parameter = DEFAULT_CE,
        pairing: Parameter | None = None,
        max_terms: int = 3,
    ) -> None:
        self.options = {slot: dict(entries) for slot, entries in options.items()}
        self.ce_weight = ce_weight
        self.pairing = pairing or Choices(PAIRINGS[0], PAIRINGS)
        self.max_terms = max_terms

    @staticmethod
    def from_dict(data: Mapping[str, Any] | None = None) -> SearchSpace:
        """Read a space; slots that are left out hold everything registered, with its declared ranges.

        Raises:
            ValueError: all problems, one a line, each with its place and the nearest valid choice.
        """
        problems: list[str] = []
        data = with_preset(data or {}, problems)
        known = ["preset", "student", "transform", "ce", "pairing", "max_terms", *LOSS_SLOTS, *NEUTRAL]
        problems += [f"space has no slot {key!r}; {nearest(key, known)}" for key in data if key not in known]
        options: dict[str, dict[str, dict[str, Parameter]]] = {}
        for slot in ("student", "transform", *LOSS_SLOTS, *NEUTRAL):
            options[slot] = read_slot(slot, data.get(slot), problems)
        ce = data.get("ce") or {}
        if not isinstance(ce, Mapping) or set(ce) - {"weight"}:
            problems.append(f"space.ce holds only a weight, such as {{weight: [0.1, 1]}}, not {ce!r}")
            ce = {}
        weight = narrowed(DEFAULT_CE, ce.get("weight"), "space.ce.weight", problems)
        entry = data.get("pairing")
        asked = entry if isinstance(entry, list) else [entry]
        written_out = tuple(str(policy) for policy in asked if isinstance(policy, str) and EXPLICIT in policy)
        offered = Choices(PAIRINGS[0], (*PAIRINGS, *written_out), searched=PAIRINGS)
        pairing = narrowed(offered, entry, "space.pairing", problems)
        max_terms = data.get("max_terms", 3)
        if max_terms not in (1, 2, 3, 4):
            problems.append(f"space.max_terms must be 1 to 4, not {max_terms!r}")
        if problems:
            raise ValueError("\n".join(problems))
        return SearchSpace(options, ce_weight=weight, pairing=pairing, max_terms=max_terms)

    def to_dict(self) -> dict[str, Any]:
        """The space as plain data, every range spelt out; `from_dict` reads it back."""
        out: dict[str, Any] = {
            slot: {name: {key: written(p) for key, p in hyper.items()} for name, hyper in entries.items()}
            for slot, entries in self.options.items()
        }
        out["ce"] = {"weight": written(self.ce_weight)}
        out["pairing"] = written(self.pairing)
        out["max_terms"] = self.max_terms
        return out

    def walk(self, choose: Choose) -> Recipe:
        """Take every decision in order, `choose(name, parameter)` giving the answers."""

        def ask(name: str, parameter: Parameter) -> Any:
            return parameter.default if fixed(parameter) else choose(name, parameter)

        def pick(slot: str, name: str) -> str:
            known = tuple(self.options[slot])
            return str(ask(name, Choices(known[0], known)))

        def node(slot: str, name: str, prefix: str, skip: Iterable[str] = ()) -> Node:
            follows = settled(slot, name)
            hyper: dict[str, Value] = {}
            for key, parameter in self.options[slot][name].items():
                known = follows(hyper)
                if key in known:
                    hyper[key] = known[key]
                else:  # the default of a decision that is not taken is the published one
                    hyper[key] = parameter.default if key in skip else ask(f"{prefix}.{key}", parameter)
            return Node(name, hyper)

        family = pick("student", "student")
        student = node("student", family, f"student.{family}")
        transform_name = pick("transform", "student.transform")
        transform = node("transform", transform_name, f"student.{transform_name}")

        teaching_name = pick("teaching", "teaching")
        teaching = METHODS[teaching_name]
        supplies = getattr(teaching, "supplies", frozenset(Need))
        own = bool(getattr(teaching, "own_objective", False))

        chosen: dict[str, str] = {}
        for slot in LOSS_SLOTS:
            if len(chosen) >= self.max_terms or not self._offers(slot, family, supplies):
                continue
            name = pick(slot, slot)
            if name != NONE:
                chosen[slot] = name
        softened = "logits" in chosen and softens(chosen["logits"])
        temperature_name = pick("temperature", "temperature") if softened else NEUTRAL["temperature"]
        own_temperature = temperature_name == NEUTRAL["temperature"]

        terms: dict[str, Node] = {}
        pairing = str(self.pairing.default)
        for slot, name in chosen.items():
            skip = () if own_temperature or slot != "logits" else ("temperature",)
            terms[slot] = node(slot, name, f"{slot}.{name}", skip)
            if asks_for_pairing(slot, name):
                pairing = str(ask("features.pairing", self.pairing))
        policies = {
            "temperature": self._policy("temperature", temperature_name, ask),
            "targets": self._policy("targets", pick("targets", "targets"), ask),
            "teaching": self._policy("teaching", teaching_name, ask),
        }
        distils = bool(terms) or own or policies["targets"].name != NEUTRAL["targets"]
        for slot, matters in (("schedule", distils), ("data", "logits" in terms), ("optimizer", True)):
            name = pick(slot, slot) if matters else NEUTRAL[slot]
            policies[slot] = self._policy(slot, name, ask)
        ce_weight = float(ask("ce.weight", self.ce_weight)) if distils else 1.0
        return Recipe(student, transform, ce_weight, terms, pairing, policies)

    def _policy(self, slot: str, name: str, ask: Choose) -> Node:
        declared = self.options[slot].get(name)
        if declared is None:  # the neutral entry of a slot whose question was not asked
            return Node(name, METHODS[name].check({}))
        return Node(name, {key: ask(f"{slot}.{name}.{key}", p) for key, p in declared.items()})

    def _offers(self, slot: str, family: str, supplies: frozenset[Need]) -> bool:
        """Whether some method of a slot can work for this family of students under this teaching strategy."""
        supports = STUDENTS[family].supports
        methods = [METHODS[name] for name in self.options[slot] if name != NONE]
        return any(m.branches <= supports and m.needs.teacher <= supplies for m in methods)

    def suggest(self, trial: Any) -> Recipe:
        """Propose a recipe by an Optuna trial's define-by-run calls; any sampler can drive it."""
        return self.walk(lambda name, parameter: suggest(trial, name, parameter))

    def sample(self, seed: int) -> Recipe:
        """A random recipe, uniform over the answers of each decision (log-uniform where the declaration says so)."""
        generator = random.Random(seed)
        return self.walk(lambda name, parameter: _draw(parameter, generator))

    def default(self, **answers: Value) -> Recipe:
        """The recipe of published defaults; `answers` overrides single decisions, dots written as `__`."""
        given = {key.replace("__", "."): value for key, value in answers.items()}
        return self.walk(lambda name, parameter: given.get(name, parameter.default))

    def params_of(self, recipe: Recipe) -> dict[str, Value]:
        """The answers that lead to a recipe: what `study.enqueue_trial` takes.

        Raises:
            ValueError: the recipe does not lie in this space.
        """
        answers = _answers(recipe)
        taken: dict[str, Value] = {}

        def answer(name: str, parameter: Parameter) -> Value:
            value = answers.get(name, parameter.default)
            if not _inside(value, parameter):
                raise ValueError(f"the recipe's {name} = {value!r} lies outside the space: {parameter.describe()}")
            taken[name] = value
            return value

        reached = self.walk(answer)
        if reached != recipe:
            raise ValueError("the recipe lies outside the space: a value that the space holds fixed differs")
        return taken

    def published(self) -> list[Recipe]:
        """One recipe per method of the loss, temperature, teaching, targets and data slots at published defaults."""
        recipes: list[Recipe] = []
        base: dict[str, Value] = {slot: NONE for slot in LOSS_SLOTS if NONE in self.options[slot]}
        wanted = (*LOSS_SLOTS, "temperature", "targets", "teaching", "data", "schedule", "optimizer")
        for slot in wanted:
            for name in self.options[slot]:
                if name == NONE or (slot in NEUTRAL and name == NEUTRAL[slot]):
                    continue
                answers = dict(base) | {slot: name}
                if slot not in LOSS_SLOTS and "kd" in self.options["logits"]:
                    answers["logits"] = "kd"
                for key, entry in METHODS[name].preset.items():
                    beside = entry.get("method") if isinstance(entry, Mapping) else entry
                    if beside in self.options.get(key, ()):
                        answers[key] = str(beside)
                answers.setdefault("teaching", next(iter(self.options["teaching"])))
                published = min((METHODS[str(v)].ce_weight for k, v in answers.items() if v != NONE), default=1.0)
                recipe = self.walk(_answering(answers | {"ce.weight": published}))
                if recipe not in recipes:
                    recipes.append(recipe)
        return recipes

    def decisions(self) -> dict[str, Parameter]:
        """Every question that the walk may ask, by name; what the space holds fixed is never asked."""
        out: dict[str, Parameter] = {"ce.weight": self.ce_weight, "features.pairing": self.pairing}
        for slot, entries in self.options.items():
            first, *_ = known = tuple(entries)
            out["student.transform" if slot == "transform" else slot] = Choices(first, known)
            place = "student" if slot == "transform" else slot
            out |= {f"{place}.{name}.{key}": p for name, hyper in entries.items() for key, p in hyper.items()}
        return {name: parameter for name, parameter in out.items() if not fixed(parameter)}

    def size(self) -> tuple[int, int]:
        """Number of distinct discrete structures, and the largest number of continuous decisions in one of them."""
        return Counter(self).result()

    def describe(self) -> str:
        """The tree as indented text: every slot, its options, and their ranges."""
        lines = []
        for slot, entries in self.options.items():
            lines.append(slot)
            for name, hyper in entries.items():
                lines.append(f"  {name}")
                lines += [f"    {slot}.{name}.{key} = {p.describe()}" for key, p in hyper.items()]
        lines += [f"ce.weight = {self.ce_weight.describe()}", f"features.pairing = {self.pairing.describe()}"]
        structures, continuous = self.size()
        lines.append(
            f"{structures:,} discrete structures; up to {continuous} continuous decisions; "
            f"at most {self.max_terms} terms"
        )
        return "\n".join(lines)


def _answering(answers: Mapping[str, Value]) -> Choose:
    def choose(name: str, parameter: Parameter) -> Value:
        value = answers.get(name, parameter.default)
        return value if _inside(value, parameter) else parameter.default

    return choose


def _inside(value: Value, parameter: Parameter) -> bool:
    if isinstance(parameter, Choices):
        return value in (parameter.searched or parameter.options)
    return not isinstance(value, str) and parameter.low <= value <= parameter.high


def _answers(recipe: Recipe) -> dict[str, Value]:
    """Every decision a recipe can be said to have taken, by name."""
    answers: dict[str, Value] = {"student": recipe.student.name, "student.transform": recipe.transform.name}
    for node in (recipe.student, recipe.transform):
        answers |= {f"student.{node.name}.{key}": value for key, value in node.hyper.items()}
    answers |= dict.fromkeys(LOSS_SLOTS, NONE)
    for slot, node in (*recipe.terms.items(), *recipe.policies.items()):
        answers[slot] = node.name
        answers |= {f"{slot}.{node.name}.{key}": value for key, value in node.hyper.items()}
    return answers | {"ce.weight": recipe.ce_weight, "features.pairing": recipe.pairing}


def _draw(parameter: Parameter, generator: random.Random) -> Value:
    if isinstance(parameter, Choices):
        return generator.choice(parameter.searched or parameter.options)
    if parameter.log:
        value = math.exp(generator.uniform(math.log(parameter.low), math.log(parameter.high)))
    else:
        value = generator.uniform(parameter.low, parameter.high)
    if isinstance(parameter, IntRange):
        return (
            generator.randrange(parameter.low, parameter.high + 1, parameter.step)
            if not parameter.log
            else round(value)
        )
    return min(max(value, parameter.low), parameter.high)
