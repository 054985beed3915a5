"""Proxies against a ground truth: how each orders students whose accuracies are known, the parameter count first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch import proxies as proxy_room
from kdsearch.errors import UserError
from kdsearch.proxies.agreement import Agreement, agreement, iso_accuracy
from kdsearch.proxies.combine import FOLDS, Combiner, cross_validated
from kdsearch.runs import assemble, models
from kdsearch.runs.config import RunConfig, teacher_node
from kdsearch.runs.named import parse_named
from kdsearch.runs.settings import pick_device
from kdsearch.runs.teacher import untrained
from kdsearch.runs.truth import Truth
from kdsearch.search_space.students import family
from kdsearch.search_space.students.family import InputShape

FIRST = ("params", "macs")
COMBINED = "combined"
REPEATS = 5  # times that the cross-validation is repeated with other folds
TEACHER = "teacher.model={family: resnet, depth: 110}"
"""Who stands beside students of a ground truth where no config names a teacher: what the literature distils from."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """What students are scored on: who teaches, and the shape of what they see. `batch` draws one under a seed."""

    teacher: nn.Module
    input_shape: InputShape
    classes: int
    images: str
    batch: Callable[[int], tuple[Tensor, Tensor]]


def rank(
    truth: Truth,
    config: RunConfig,
    *,
    named: bool,
    names: Sequence[str] = (),
    batch: int = 32,
    seeds: int = 1,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """How each proxy orders the students of a ground truth, and how a combiner of them does by cross-validation.

    Args:
        named: whether the config was given: its data and teacher are then used. Without one, students whose file says
            what they see are scored on N(0, 1) images under random labels.
        names: `name` or `name:option=value,...` of each proxy; all registered ones without any.
        batch, seeds: images of a score, or all that the data has; the seeds over which scores are averaged.

    Returns:
        Plain data: `rows`, one per proxy and last the combiner's; `scores`, per student; `undefined`, by proxy and
        student, why a proxy has no score of a student, which counts as its worst; what was scored on what.

    Raises:
        UserError: an unknown proxy, one that can score none of the students, or students that cannot be built for the
            data.
    """
    judges = _judges(names)
    stage = _stage(truth, config, named, batch)
    scores: dict[str, list[float]] = {name: [] for name in judges}
    spent = dict.fromkeys(judges, 0.0)
    students = [name for name, _ in truth.students]
    modules = [_built(student, stage, config.seed, name) for name, student in truth.students]
    drawn = [(seed, *stage.batch(seed)) for seed in range(config.seed, config.seed + seeds)]
    undefined: dict[str, dict[str, str]] = {}

    def score(name: str, k: int, images: Tensor, target: Tensor, seed: int) -> float:
        try:
            return judges[name].score(modules[k], stage.teacher, images, target, seed=seed)
        except ValueError as error:
            undefined.setdefault(name, {})[students[k]] = str(error)
            return -math.inf

    for name in judges:  # proxy by proxy: what a teacher says of a batch is asked once
        began = time.process_time()
        found = [[score(name, k, x, y, seed) for k in range(len(modules))] for seed, x, y in drawn]
        if len(reasons := undefined.get(name, {})) == len(modules):
            raise UserError(f"proxy {name}: {reasons[students[0]]}")
        scores[name] = [fmean(values) for values in zip(*found, strict=True)]
        spent[name] = (time.process_time() - began) / len(modules) / seeds
        say(f"{name}: {spent[name]:.3f} s a network")
    sizes = scores["params"]
    rows = [
        {"proxy": name, **_row(agreement(values, truth.accuracy, sizes)), "seconds": spent[name]}
        for name, values in scores.items()
    ]
    kept = {name: values for name, values in scores.items() if name.partition(":")[0] not in truth.selected}
    rows.append({**_combined(kept, truth, sizes), "seconds": sum(spent[name] for name in kept)})
    return {
        "students": len(students),
        "pairs": iso_accuracy(sizes, truth.accuracy, sizes)[1],
        "teacher": type(stage.teacher).__name__,
        "images": stage.images,
        "batch": len(drawn[0][1]),
        "seeds": seeds,
        "rows": rows,
        "left_out": [name for name in scores if name not in kept],
        "undefined": undefined,
        "scores": {
            student: {name: _plain(values[k]) for name, values in scores.items()} for k, student in enumerate(students)
        },
    }


def _judges(names: Sequence[str]) -> dict[str, proxy_room.Proxy]:
    """The proxies by what they are called on the command line, the sizes always and first."""
    asked = [*FIRST, *(names or proxy_room.names())]
    found: dict[str, proxy_room.Proxy] = {}
    for text in dict.fromkeys(asked):
        name, options = parse_named(text, "--proxy", "NAME")
        try:
            found[text] = proxy_room.create(name, **options)
        except ValueError as error:
            raise UserError(f"--proxy: {error}") from None
    return found


def _stage(truth: Truth, config: RunConfig, named: bool, batch: int) -> Stage:
    if not named and truth.input_shape is not None and truth.classes is not None:
        shape, classes = truth.input_shape, truth.classes
        node = teacher_node(config.teacher).student
        module = _built(family.create(node.name, **node.hyper), (shape, classes), config.seed, "teacher.model")
        if config.teacher.checkpoint is not None:
            models.load(module, Path(config.teacher.checkpoint).expanduser())

        def noise(seed: int) -> tuple[Tensor, Tensor]:
            generator = torch.Generator().manual_seed(seed)
            images = torch.randn(batch, *shape, generator=generator)
            return images, torch.randint(classes, (batch,), generator=generator)

        return Stage(module, shape, classes, "N(0, 1), random labels", noise)
    data = assemble.data(config, pick_device(config.engine.device))
    model = untrained(config, data, assemble.settings(config))
    if truth.input_shape is not None and (truth.input_shape, truth.classes) != (data.input_shape, data.classes):
        raise UserError(
            f"data: {config.data.name} has images {list(data.input_shape)} of {data.classes} classes; the students of "
            f"the ground truth are of {list(truth.input_shape)} and {truth.classes}"
        )

    def drawn(seed: int) -> tuple[Tensor, Tensor]:
        labels = data.train.labels
        ids = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
        ids = ids[(labels[ids] < 0).int().argsort(stable=True)[:batch]]  # what has no label comes last
        images = (data.train.take(ids) - data.mean.view(1, -1, 1, 1)) / data.std.view(1, -1, 1, 1)
        return images, labels[ids]

    return Stage(model.network.module, data.input_shape, data.classes, config.data.name, drawn)


def _built(student: family.StudentFamily, stage: Stage | tuple[InputShape, int], seed: int, name: str) -> nn.Module:
    shape, classes = stage if isinstance(stage, tuple) else (stage.input_shape, stage.classes)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        try:
            return student.build(shape, classes)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{name} cannot be built: {str(error).splitlines()[0]}") from None


def _combined(scores: Mapping[str, Sequence[float]], truth: Truth, sizes: Sequence[float]) -> dict[str, Any]:
    """The combiner's row: means over repeated cross-validations, with their spread and the proxies that joined."""
    table = [dict(zip(scores, values, strict=True)) for values in zip(*scores.values(), strict=True)]
    predicted = [cross_validated(table, truth.accuracy, seed=seed) for seed in range(REPEATS)]
    found = [_row(agreement(values, truth.accuracy, sizes)) for values in predicted]
    columns = {key: [v for row in found if (v := row[key]) is not None] for key in ("tau", "rho", "iso")}
    return {
        "proxy": COMBINED,
        **{key: fmean(values) if values else None for key, values in columns.items()},
        "spread": {key: pstdev(values) if values else None for key, values in columns.items()},
        "folds": FOLDS,
        "repeats": REPEATS,
        "of": Combiner.fit(table, truth.accuracy).proxies,
    }


def _row(found: Agreement) -> dict[str, float | None]:
    return {"tau": _plain(found.tau), "rho": _plain(found.rho), "iso": _plain(found.iso)}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def shown(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """The rows as a table's cells."""

    def text(value: float | None, form: str = ".3f") -> str:
        return "–" if value is None else format(value, form)

    return [
        {"proxy": row["proxy"], **{key: text(row[key]) for key in ("tau", "rho", "iso", "seconds")}}
        for row in found["rows"]
    ]


def notes(found: Mapping[str, Any]) -> list[str]:
    """What the table says of what, in lines."""
    combined = found["rows"][-1]
    spread, of = combined["spread"], combined["of"]
    of = ", ".join(of) or "no proxy: none predicts better than the mean"
    pairs = f"iso: accuracy among the {found['pairs']} pairs within 10 % parameters, 0.5 is chance"
    seen = f"{found['students']} students, batch {found['batch']}, {found['images']}, teacher {found['teacher']}"
    apart = f" (±{spread['tau']:.3f} tau)" if spread["tau"] is not None else ""
    drawn = f"{combined['folds']} folds, mean of {combined['repeats']} draws of them"
    lines = [
        f"{seen}, seeds {found['seeds']}; {pairs}",
        f"{COMBINED}: each student predicted without itself, {drawn}{apart}; of {of}",
    ]
    if found["left_out"]:
        lines.append(f"not in it: {', '.join(found['left_out'])}, which was selected on these very students")
    for name, reasons in found["undefined"].items():
        student, reason = next(iter(reasons.items()))
        lines.append(f"{name} has no score of {len(reasons)} students, which is its worst, such as {student}: {reason}")
    return lines
