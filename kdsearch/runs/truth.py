"""Students whose accuracies are known: what proxies are held against."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdsearch.errors import UserError
from kdsearch.runs.named import parse_named
from kdsearch.search_space.students import family
from kdsearch.search_space.students.family import InputShape

S1 = "resnet_s1"
S1_INPUT, S1_CLASSES = (3, 32, 32), 100
SELECTED_ON = {S1: ("autodas",)}
"""Proxies that were found by their agreement with these very networks, so that it is no evidence for them."""


@dataclass(frozen=True)
class Truth:
    """A ground truth.

    Attributes:
        students: (what the file calls it, family and hyper-parameters) of each network.
        accuracy: theirs, in any unit, higher being better.
        input_shape, classes: of the networks, where the file says so; otherwise the config's data decide.
    """

    students: tuple[tuple[str, family.StudentFamily], ...]
    accuracy: tuple[float, ...]
    input_shape: InputShape | None = None
    classes: int | None = None

    @property
    def selected(self) -> tuple[str, ...]:
        """Proxies that were selected on these networks."""
        families = {student.name for _, student in self.students}
        return tuple(name for key, names in SELECTED_ON.items() if families == {key} for name in names)


def parse_student(text: str, where: str = "--student") -> dict[str, Any]:
    """`resnet:depth=20,width=1` as a student's mapping.

    Raises:
        UserError: not of that form.
    """
    name, options = parse_named(text, where, "FAMILY")
    return {"family": name, **options}


def read(path: str | Path) -> Truth:
    """Read a ground truth, by the end of its name.

    `.json`: a list of {student, accuracy}, or a mapping with that list under `students` and, if it likes, `input`
    ([channels, height, width]) and `classes`. `.csv`: columns `student` and `accuracy`. Both write a student as
    `family:key=value,...`. Anything else: lines of `713 71.01`, networks of S1 by their names.

    Raises:
        UserError: unreadable, fewer than two networks, or one of them twice; the message names the file and the line or
            entry.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--truth: cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None
    if path.suffix == ".json":
        return _of_json(text, path)
    if path.suffix == ".csv":
        lines = csv.DictReader(text.splitlines())
        return _listed([(f"line {lines.line_num}", row) for row in lines], path)
    return _of_codes(text, path)


def _of_codes(text: str, path: Path) -> Truth:
    from kdsearch.search_space.students.families.resnet_s1 import ResNetS1

    students: list[tuple[str, family.StudentFamily]] = []
    accuracy: list[float] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{path} line {number}"
        if len(words) != 2:
            raise UserError(f"{where}: expected a network of S1 and its accuracy, such as '713 71.01', not {line!r}")
        try:
            students.append((words[0], ResNetS1.from_code(words[0])))
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        accuracy.append(_number(words[1], where))
    return _checked(Truth(tuple(students), tuple(accuracy), S1_INPUT, S1_CLASSES), path)


def _of_json(text: str, path: Path) -> Truth:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    about = data if isinstance(data, Mapping) else {"students": data}
    entries, shape, classes = about.get("students"), about.get("input"), about.get("classes")
    if not isinstance(entries, list):
        raise UserError(f"{path}: must be a list of students, or a mapping that has one under 'students'")
    if (shape is None) != (classes is None):
        raise UserError(f"{path}: give input and classes, or neither")
    if shape is not None and not (
        isinstance(shape, list) and len(shape) == 3 and all(isinstance(side, int) and side > 0 for side in shape)
    ):
        raise UserError(f"{path}: input must be [channels, height, width], not {shape!r}")
    if classes is not None and not (isinstance(classes, int) and classes > 1):
        raise UserError(f"{path}: classes must be a whole number above 1, not {classes!r}")
    found = _listed([(f"students.{k}", entry) for k, entry in enumerate(entries)], path)
    return Truth(found.students, found.accuracy, tuple(shape) if shape else None, classes)


def _listed(entries: list[tuple[str, Any]], path: Path) -> Truth:
    students: list[tuple[str, family.StudentFamily]] = []
    accuracy: list[float] = []
    for place, entry in entries:
        where = f"{path} {place}"
        if not isinstance(entry, Mapping) or not {"student", "accuracy"} <= set(entry):
            raise UserError(f"{where}: needs a student, such as 'resnet:depth=20', and an accuracy")
        given = parse_student(str(entry["student"]), where)
        try:
            students.append((str(entry["student"]), family.create(given.pop("family"), **given)))
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        accuracy.append(_number(entry["accuracy"], where))
    return _checked(Truth(tuple(students), tuple(accuracy)), path)


def _number(text: Any, where: str) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: the accuracy must be a number, not {text!r}")
    return value


def _checked(truth: Truth, path: Path) -> Truth:
    if len(truth.students) < 2:
        raise UserError(f"{path}: holds {len(truth.students)} students; an order needs two or more")
    seen: dict[str, str] = {}
    for name, student in truth.students:
        if repr(student) in seen:  # on both sides of a cross-validation it would know its own accuracy
            raise UserError(f"{path}: {name!r} is the student of {seen[repr(student)]!r} again; give its mean accuracy")
        seen[repr(student)] = name
    return truth
