"""The objective of one learner: its terms bound to the layers they read, and the sum of its losses in a step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods import LOSS_SLOTS, METHODS, Batch, DataSpec, KDMethod, ModelSpec, Need, Needs, Signals, Stage
from kdsearch.kd_methods.label_loss import label_loss
from kdsearch.kd_methods.signals import STAGED
from kdsearch.kd_methods.strategy import SELF, Lesson, TeachingStrategy
from kdsearch.search_space.pairing import pair
from kdsearch.search_space.recipe import Recipe

Prepare = Callable[[KDMethod, str, ModelSpec, list[int]], "dict[str, Tensor] | None"]
"""Work of a method on one supplier: (method, supplier's name, its spec at the paired stages, which these are)."""


def nothing_prepared(method: KDMethod, supplier: str, spec: ModelSpec, stages: list[int]) -> None:
    """For students that are only put together again: what was prepared lies in their files."""


@dataclass
class Bound:
    """A method joined to one supplier, or to one layer of it: an instance with its own parts, the stages it reads on
    either side, and its share beside the other suppliers'.
    """

    method: KDMethod
    student_stages: list[int]
    teacher_stages: list[int]
    share: float = 1.0


@dataclass
class Term:
    """One weighted loss of the objective, bound to every supplier of the plan."""

    slot: str
    name: str
    weight: float
    bound: dict[str, list[Bound]]

    @property
    def method(self) -> KDMethod:
        return next(iter(self.bound.values()))[0].method


@dataclass
class Losses:
    """What a step gives: task (label) losses and distillation losses, apart, and every term's value for the record."""

    task: Tensor
    distillation: Tensor | None
    values: dict[str, Tensor]


class Objective:
    """All terms of a recipe for one learner.

    Built from the measured specs of the student and of every supplier; `parts` holds what the methods train beside the
    student.

    Args:
        prepare: gives what a method wants prepared of a supplier.
        place: which learner this is, of how many.
        shares: by supplier, one for each layer pair of the recipe's pairing, where the strategy weighs them apart.

    Raises:
        TrialFailure: a method cannot join this student to this teacher ("invalid").
    """

    def __init__(
        self,
        recipe: Recipe,
        student: ModelSpec,
        suppliers: Mapping[str, ModelSpec],
        data: DataSpec,
        prepare: Prepare = nothing_prepared,
        *,
        place: tuple[int, int] = (0, 1),
        shares: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.recipe, self._prepare, self._shares = recipe, prepare, shares or {}
        methods: dict[str, Any] = dict(recipe.methods())
        self.strategy: TeachingStrategy = methods["teaching"]
        self.strategy.place = place
        for slot, method in methods.items():
            if data.partly and method.reads_labels:
                reason = "reads the label of every sample, and some have none"
                raise TrialFailure("invalid", f"{slot}={method.name} {reason}")
        self.temperature: Any = methods["temperature"]
        self.targets: Any = methods["targets"]
        self.schedule: Any = methods["schedule"]
        self.data_method: Any = methods["data"]
        self.optimizer: Any = methods["optimizer"]
        self.parts = nn.ModuleDict()
        self._student, self._suppliers = student, dict(suppliers) or {SELF: student}
        self.strategy.suppliers = tuple(self._suppliers)
        self.terms: list[Term] = []
        for slot in (*LOSS_SLOTS, "targets"):
            if slot in methods and "weight" in methods[slot].parameters:
                self.terms.append(self._term(slot, methods[slot], data))
        reference = next(iter(self._suppliers.values()))
        for slot, method in (("temperature", self.temperature), ("teaching", self.strategy)):
            self._attach(slot, method, student, reference, data)
        self.softens = recipe.policies["temperature"].name != "constant"
        self.own_lesson = self.strategy.own_objective and not any(t.slot == "logits" for t in self.terms)
        # The strategy's own label losses have shares of their own; what scales labels at large scales them too.
        self.supervision = recipe.ce_weight * self.targets.label_weight() * self.data_method.label_weight()
        self.label_weight = self.supervision * self.strategy.label_weight()

    def _term(self, slot: str, method: KDMethod, data: DataSpec) -> Term:
        bound: dict[str, list[Bound]] = {}
        for k, (name, spec) in enumerate(self._suppliers.items()):
            shares = self._shares.get(name, [1.0])
            s_stages, t_stages = self._paired(slot, method, spec)
            layers = [(s_stages, t_stages, fmean(shares))]
            if method.additive and method.pairing is None and len(shares) == len(s_stages) > 1:
                layers = [([a], [b], share) for a, b, share in zip(s_stages, t_stages, shares, strict=True)]
            bound[name] = []
            for layer, (own, theirs, share) in enumerate(layers):
                # Every supplier has its own projectors and banks: suppliers differ in their stages.
                instance = method if not bound[name] and len(bound) == 1 else METHODS[method.name](**method.hyper)
                instance.supplier, instance.place = name, (k, len(self._suppliers))
                key = f"{slot}-{name}" if len(layers) == 1 else f"{slot}-{name}-{layer}"
                self._bind(key, name, instance, spec, (own, theirs), data)
                bound[name].append(Bound(instance, own, theirs, share))
        return Term(slot, method.name, float(method.hyper["weight"]), bound)

    def _paired(self, slot: str, method: KDMethod, teacher: ModelSpec) -> tuple[list[int], list[int]]:
        """The stages that a method reads of the student and of a supplier."""
        student = self._student
        if not (method.needs.student | method.needs.teacher) & STAGED:
            return [], []
        try:
            policy = method.pairing or self.recipe.pairing
            if method.needs.teacher & STAGED:
                return pair(student.stages, teacher.stages, policy, spatial=method.spatial)
            return pair(student.stages, student.stages, policy, spatial=method.spatial)[0], []
        except ValueError as error:
            raise TrialFailure("invalid", f"{slot}={method.name}: {error}") from None

    def _bind(
        self,
        key: str,
        supplier: str,
        method: KDMethod,
        teacher: ModelSpec,
        stages: tuple[list[int], list[int]],
        data: DataSpec,
    ) -> None:
        student, teacher = _with_stages(self._student, stages[0]), _with_stages(teacher, stages[1])
        if type(method).prepare is not KDMethod.prepare:
            method.prepared = self._prepare(method, supplier, teacher, stages[1])
        self._attach(key, method, student, teacher, data)

    def _attach(self, key: str, method: KDMethod, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> None:
        try:
            method.parts = method.bind(student, teacher, data)
        except ValueError as error:
            raise TrialFailure("invalid", f"{key}={method.name}: {error}") from None
        if method.parts is not None:
            self.parts[key] = method.parts

    def describe_suppliers(self) -> str:
        """The suppliers' specs as JSON: with the recipe, all that `bind` needs."""
        return json.dumps({name: asdict(spec) for name, spec in self._suppliers.items()})

    @property
    def methods(self) -> list[KDMethod]:
        """One instance of everything that reads signals."""
        return [*(term.method for term in self.terms), self.temperature, self.strategy]

    def needs(self) -> Needs:
        """Signals that some method reads; of the student the logits always."""
        total = Needs.of(student=(Need.LOGITS,))
        for method in self.methods:
            total = total | method.needs
        return total

    def batch_needs(self) -> frozenset[Need]:
        """Signals of a teacher that are read at the batch itself or at companions, not in live views alone."""
        return frozenset[Need]().union(*(m.needs.teacher for m in self.methods if not m.views_only))

    def student_stages(self) -> list[int]:
        """Stages of the student to tap: all of them where the strategy itself reads stages."""
        if STAGED & self.strategy.needs.student:
            return list(range(len(self._student.stages)))
        return sorted({k for term in self.terms for b in term.bound.values() for one in b for k in one.student_stages})

    def teacher_stages(self, supplier: str) -> list[int]:
        """Stages of a supplier to tap."""
        return sorted({k for term in self.terms for one in term.bound[supplier] for k in one.teacher_stages})

    def stages(self) -> list[tuple[Stage, str | None]]:
        """The training's stages with the term that asks for each; one plain stage where no method is staged.

        Where several terms are staged, one that works alone first comes before all others' joint stage, which is kept
        once. A policy's stages (labels last, say) take the joint stage's place; where several policies have stages, the
        first one's count, in the order schedule, temperature, targets.
        """
        staged: list[tuple[Stage, str | None]] = []
        for term in self.terms:
            staged += [(stage, term.name) for stage in term.method.stages()]
        policies = [method.stages() for method in (self.schedule, self.temperature, self.targets)]
        alone = [entry for entry in staged if entry[0].terms == "own"]
        joint = [entry for entry in staged if entry[0].terms != "own"][:1]
        phases = next(([(stage, None) for stage in stages] for stages in policies if stages), joint)
        if not alone and not phases:
            return [(Stage("all", 1.0), None)]
        return [*alone, *phases]

    def active(self, stage: Stage, owner: str | None) -> list[Term]:
        """The terms that are optimised in a stage."""
        if stage.terms == "none":
            return []
        if owner is None or stage.terms == "all":
            return self.terms
        return [term for term in self.terms if (term.name == owner) == (stage.terms == "own")]

    @property
    def taught(self) -> bool:
        """Whether anybody's signals but the student's own are read."""
        return any(method.needs.teacher for method in self.methods)

    def __call__(
        self,
        student: Signals,
        teachers: dict[str, list[Signals]],
        batch: Batch,
        terms: list[Term],
        *,
        labels: bool,
        own: bool,
        student_tapped: list[int],
        tapped: Mapping[str, list[int]],
    ) -> Losses:
        """All losses of a step. The last two say which stages the student's and each supplier's signals hold."""
        values: dict[str, Tensor] = {}
        if self.softens:
            batch.soften = self.temperature.soften
        task = student.logits.new_zeros(())
        if labels and self.label_weight:
            values["ce"] = label_loss(student.logits, batch)
            task = self.label_weight * values["ce"]
        supervised = self.strategy.supervise(student, batch) if labels and self.supervision else None
        if supervised is not None:
            values[f"{self.strategy.name} labels"] = supervised
            task = task + self.supervision * supervised
        lessons = self.strategy.lessons(student, teachers, batch) if teachers else [Lesson(student, student)]
        factor = self.schedule.distillation_weight(batch.progress) * self.strategy.distillation_weight(batch.progress)
        total: Tensor | None = None
        for term in terms:
            of_labels = getattr(term.method, "of_labels", False)
            if of_labels and not labels:
                continue
            value = self._value(term, student, lessons, batch, student_tapped, tapped)
            values[term.name] = value
            if of_labels:
                task = task + term.weight * self.recipe.ce_weight * value
                continue
            total = _plus(total, term.weight * factor * value)
        if own and self.own_lesson:
            value = _total([(self._weight(le), self.strategy.loss(le.student, le.teacher, batch)) for le in lessons])
            values[self.strategy.name] = value
            total = _plus(total, float(self.strategy.hyper.get("weight", 1.0)) * factor * value)
        return Losses(task, total, values)

    def _weight(self, lesson: Lesson) -> float | Tensor:
        shares = self._shares.get(lesson.supplier)
        return lesson.weight * fmean(shares) if shares else lesson.weight

    def _value(
        self,
        term: Term,
        main: Signals,
        lessons: list[Lesson],
        batch: Batch,
        student_tapped: list[int],
        tapped: Mapping[str, list[int]],
    ) -> Tensor:
        if not term.method.needs.teacher:  # it reads the student itself, whoever teaches and whatever exits learn
            bound = next(iter(term.bound.values()))[0]
            return bound.method.loss(_at(main, bound.student_stages, student_tapped), main, batch)
        losses: list[tuple[float | Tensor, Tensor]] = []
        for lesson in lessons:
            for bound in term.bound.get(lesson.supplier) or next(iter(term.bound.values())):
                student = _at(lesson.student, bound.student_stages, student_tapped)
                teacher = _at(lesson.teacher, bound.teacher_stages, tapped.get(lesson.supplier, []))
                losses.append((lesson.weight * bound.share, bound.method.loss(student, teacher, batch)))
        return _total(losses)


def _at(signals: Signals, stages: list[int], tapped: list[int]) -> Signals:
    """The signals of a term's stages, out of those that were tapped."""
    return signals.select([tapped.index(k) for k in stages]) if stages else signals


def _plus(total: Tensor | None, value: Tensor) -> Tensor:
    return value if total is None else total + value


def _total(weighted: list[tuple[float | Tensor, Tensor]]) -> Tensor:
    first, *rest = weighted
    whole = not isinstance(first[0], Tensor) and first[0] == 1.0
    value = first[1] if whole else first[0] * first[1]
    for weight, loss in rest:
        value = value + weight * loss
    return value


def _with_stages(spec: ModelSpec, stages: list[int]) -> ModelSpec:
    return replace(spec, stages=tuple(spec.stages[k] for k in stages)) if stages else spec
