"""What proxies let through: one proxy's quantile, or a combiner of them that has earned it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from optuna.trial import FrozenTrial

from kdsearch.proxies.combine import Combiner, Row, Standing, standing
from kdsearch.runs.config import COMBINED, ProxyConfig
from kdsearch.runs.ledger import FINISHED, RUNG
from kdsearch.runs.metrics import Direction
from kdsearch.search_space.narrowing import fixed
from kdsearch.search_space.space import SearchSpace

PROXIES = "proxies"


def one_student(space: SearchSpace) -> bool:
    """Whether a space has a single student architecture, so that there is nothing for proxies to tell apart."""
    slots = [space.options["student"], space.options["transform"]]
    return all(len(slot) == 1 for slot in slots) and all(
        fixed(parameter) for slot in slots for hyper in slot.values() for parameter in hyper.values()
    )


@dataclass
class Student:
    """What a run knows of one architecture: its proxy scores, and its trials' scores at the first trained rung."""

    row: Row
    results: list[float] = field(default_factory=list)


class Gate:
    """Stops students that proxies rank low. All it knows follows from the trials of the study.

    By one proxy: below the quantile of the scores of all trials so far. Combined: a combiner learns what the students
    of finished rungs scored (the median of a student's trials at the first trained rung, which every trial reaches that
    passes here: a recipe that blows up says nothing of its student), and a student predicted below the quantile of the
    students seen is stopped once the combiner has earned it on the students known by then. Proxies see architectures
    and not recipes, so a student is one network however often it is proposed, and cross-validation never has it on
    both sides.

    Args:
        first: name of the first trained rung.
        primary: which way the run's metric goes.
        alone: whether it is the only objective. Small students may lose accuracy where it is not, and the combiner
            stops none.
    """

    def __init__(self, settings: ProxyConfig, first: str, primary: Direction, *, alone: bool = True) -> None:
        self.settings, self.first, self.alone = settings, RUNG + first, alone
        self.sign = 1.0 if primary == "maximize" else -1.0
        self.combined = settings.prune_by == COMBINED
        self._scores: list[float] = []
        self._students: dict[str, Student] = {}
        self._learned: tuple[Combiner, Standing] | None = None

    def remember(self, trial: FrozenTrial) -> None:
        """Take in a trial of an earlier process of this run."""
        found = trial.user_attrs
        if trial.state not in FINISHED or "duplicate_of" in found or RUNG + PROXIES not in found:
            return
        self.see(found["recipe"], found[RUNG + PROXIES].get("metrics", {}), found[RUNG + PROXIES].get("score"))
        if self.first in found:
            self.learn(found["recipe"], found[self.first].get("score"))

    def see(self, recipe: Mapping[str, Any], scores: Row, score: float | None) -> None:
        """A student has been scored; `score` is that of the one proxy that prunes."""
        if score is not None and math.isfinite(score):
            self._scores.append(score)
        self._students.setdefault(_student(recipe), Student(dict(scores)))

    def learn(self, recipe: Mapping[str, Any], score: float | None) -> None:
        """A student has been trained to the first rung."""
        student = self._students.get(_student(recipe))
        if self.combined and student is not None and score is not None and math.isfinite(score):
            student.results.append(self.sign * score)
            self._learned = None

    @property
    def standing(self) -> Standing | None:
        """What the combiner has shown so far; None before enough students have been trained."""
        learned = self._combiner() if self.combined else None
        return None if learned is None else learned[1]

    def judge(self, scores: Row, score: float) -> tuple[bool, dict[str, Any] | None]:
        """Whether to stop a student with these scores, and what the combiner says of it, if it says anything."""
        if not self.combined:
            return self._below_quantile(score), None
        learned = self._combiner()
        if learned is None:
            return False, None
        combiner, shown = learned
        seen = combiner.predict([student.row for student in self._students.values()])
        own = float(combiner.predict([scores])[0])
        below = float((seen < own).mean())
        stops = shown.earned and self.alone and below < self.settings.quantile and own < float(seen.max())
        said = {"prediction": own, "below": below, "stops": stops}
        return stops, {**said, **{key: shown.to_dict()[key] for key in ("tau", "lower", "bar", "n", "earned")}}

    def _combiner(self) -> tuple[Combiner, Standing] | None:
        known = [student for student in self._students.values() if student.results]
        if len(known) < self.settings.minimum:
            return None
        if self._learned is None:
            rows, results = [student.row for student in known], [median(student.results) for student in known]
            threshold, minimum = self.settings.threshold, self.settings.minimum
            shown = standing(rows, results, threshold=threshold, minimum=minimum)
            self._learned = Combiner.fit(rows, results), shown
        return self._learned

    def _below_quantile(self, score: float) -> bool:
        settings = self.settings
        if settings.prune_by is None or len(self._scores) < settings.minimum:
            return False
        if not math.isfinite(score):
            return True
        worse = sum(other < score for other in self._scores)
        return worse < settings.quantile * len(self._scores) and score < max(self._scores)


def _student(recipe: Mapping[str, Any]) -> str:
    """The architecture that a recipe searches, however it is taught.

    `sizes.architecture` tells more networks apart, by what methods add to them: here these are one student, or its
    near-copies would stand on both sides of the cross-validation.
    """
    return json.dumps([recipe.get("student"), recipe.get("transform")], sort_keys=True)
