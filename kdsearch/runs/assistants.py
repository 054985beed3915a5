"""Models that are trained for a plan before its student: each once per content, shared by trials and workers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods import METHODS
from kdsearch.kd_methods.strategy import EVERY, TEACHER, Plan, Pretrain
from kdsearch.parameters import Value
from kdsearch.runs import deploy, models
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.settings import Seeds
from kdsearch.runs.training import Trained
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.recipe import Node, Recipe, content_hash
from kdsearch.search_space.students.family import STUDENTS, StudentFamily

GENERATION = 104_729  # between the seeds of generations
AT_HAND = 8  # plan's models that stay in memory
Given = dict[str, TeacherModel]
Train = Callable[[Path], "tuple[Trained, float]"]
"""Trains with its state in this file; gives the result and its seconds, those of what it needed included."""


@dataclass(frozen=True)
class Costs:
    """Seconds that a plan's other models cost when they were trained, whoever paid, and what was paid just now."""

    spent: float = 0.0
    charged: float = 0.0

    def __add__(self, other: Costs) -> Costs:
        return Costs(self.spent + other.spent, self.charged + other.charged)


@dataclass
class Kept:
    """A training's result by its content: where its weights lie, what was measured, and whether it was paid now."""

    path: Path
    meta: dict[str, object]
    paid: bool

    @property
    def costs(self) -> Costs:
        seconds = float(self.meta["seconds"])  # type: ignore[arg-type]
        return Costs(seconds, seconds if self.paid else 0.0)

    @property
    def metrics(self) -> dict[str, float]:
        return dict(self.meta["metrics"])  # type: ignore[call-overload]


def kept(key: str, folder: Path, train: Train) -> Kept:
    """The result that goes by this key, trained here if nobody has yet.

    Of several workers that want it at once one trains and the others wait; the lock falls with its process.
    """
    path = folder / f"{key}.safetensors"
    meta = path.with_suffix(".json")
    found = _read(path, meta)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path.with_suffix(".lock"))):
        found = _read(path, meta)
        if found is not None:
            return found
        trained, seconds = train(path.with_suffix(".pt"))
        models.save(trained.module, path, trained.metadata)
        told = {
            "seconds": seconds,
            "metrics": trained.metrics,
            "curve": trained.curve,
            "losses": trained.losses,
            "epochs": trained.epochs,
            "steps": trained.steps,
        }
        partial = meta.with_suffix(".partial")
        partial.write_text(json.dumps(told))
        partial.replace(meta)
        return Kept(path, told, True)


def _read(path: Path, meta: Path) -> Kept | None:
    """What lies there; None where nothing does, or where it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        told = json.loads(meta.read_text())
        with safe_open(str(path), "pt"):
            return Kept(path, told, False) if isinstance(told, dict) and "seconds" in told else None
    except (OSError, ValueError, SafetensorError):
        return None


def key_of(recipe: Recipe, plan: Plan, given: Given, world: World, seeds: Seeds, fidelity: Fidelity) -> str:
    """Names what a training of this recipe under this plan gives.

    The run's teacher counts even where it does not teach: sizes in between are measured against it.
    """
    known = {**world.teachers, **given}
    return content_hash(
        {
            "recipe": _content(recipe),
            "teachers": [known[name].hash if name in known else name for name in plan.teachers],
            "pretrain": [asdict(model) for model in plan.pretrain],
            "teacher": None if world.teacher is None else world.teacher.hash,
            "data": world.data.fingerprint,
            "augmentation": str(world.data.augmentation),
            "epochs": round(world.settings.epochs * fidelity.epochs),
            "share": fidelity.data,
            "resolution": fidelity.resolution,
            **({} if fidelity.tokens == 1 else {"tokens": fidelity.tokens}),
            **({} if fidelity.select == "balanced" else {"select": fidelity.select}),
            "precision": world.settings.precision,
            "metric": world.metric,
            "views": world.settings.views,
            "batch": world.settings.batch_size,
            "seeds": asdict(seeds),
        }
    )


def _content(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what only says how many other models there are."""
    plain, node = recipe.to_dict(), recipe.policies["teaching"]
    shaping: tuple[str, ...] = getattr(METHODS[node.name], "shaping", ())
    plain["teaching"] = {name: value for name, value in plain["teaching"].items() if name not in shaping}
    return plain


def network_of(recipe: Recipe, world: World, weights: Path, key: str, name: str, found: Kept) -> TeacherModel:
    """A trained student of its file, as a frozen supplier.

    Raises:
        UserError: the file is damaged.
    """
    module = rebuilt(recipe, world, weights)
    side = models.input_shape(recipe, world.data)[-1]
    network = models.network(module.requires_grad_(False).eval(), world.data, world.settings, side=side)
    spec = network.spec(world.data.input_shape)
    return TeacherModel(network, spec, key, name, found.metrics, found.costs.spent)


def rebuilt(recipe: Recipe, world: World, weights: Path) -> nn.Module:
    """The module of a trained student's file."""
    data = world.data
    shape, module = models.input_shape(recipe, data), models.student(recipe, data)
    module = deploy.deployed(recipe, module, shape, data.classes, deploy.joined(weights))
    models.load(module, weights)
    return module


def expanded(plan: Plan, world: World) -> Plan:
    """The plan with the names of all of the run's teachers in place of EVERY."""
    if EVERY not in plan.teachers:
        return plan
    names: list[str] = []
    for name in plan.teachers:
        names += world.teachers if name == EVERY else [name]
    return replace(plan, teachers=tuple(dict.fromkeys(names)))


def suppliers(
    recipe: Recipe, plan: Plan, world: World, seeds: Seeds, fidelity: Fidelity, given: Given
) -> tuple[Given, Given, Costs]:
    """The frozen teachers of the plan, trained where they are not there yet, and everything trained for it.

    Args:
        given: models that whoever asks has trained already, by name.

    Raises:
        TrialFailure: a teacher that the run does not have ("invalid").
    """
    if not any(method.needs.teacher for _, method in recipe.methods()) and not plan.members:
        return {}, {}, Costs()
    made, costs = dict(given), Costs()
    for pretrain in plan.pretrain:
        made[pretrain.name], paid = _pretrained(pretrain, recipe, world, seeds, fidelity, made)
        costs += paid
    chosen: Given = {}
    for name in plan.teachers:
        if name in made:
            chosen[name] = made[name]
        elif name == TEACHER or name in world.teachers:
            if name not in world.teachers:
                raise TrialFailure("invalid", "the recipe needs a teacher and none was given")
            chosen[name] = world.teachers[name]
    return chosen, made, costs


def _pretrained(
    pretrain: Pretrain, recipe: Recipe, world: World, seeds: Seeds, fidelity: Fidelity, made: Given
) -> tuple[TeacherModel, Costs]:
    """A model of the plan, trained once per content.

    By "kd" it learns at published defaults, as the papers of assistant chains train it, so that it depends on nothing
    that a search varies but its size.
    """
    from kdsearch.runs.distil import train_apart

    own = recipe_of(pretrain, recipe, world)
    plan = Plan(teachers=pretrain.teachers)
    given = {name: made[name] for name in pretrain.teachers if name in made}
    share = Fidelity("assistant", epochs=fidelity.epochs)
    later = pretrain.generation * GENERATION
    seeds = replace(seeds, init=seeds.init + later, order=seeds.order + later)
    key = key_of(own, plan, given, world, seeds, share)
    if key in world.assistants:
        return world.assistants[key], Costs(world.assistants[key].seconds)
    found = kept(key, world.cache / "models", lambda state: train_apart(own, world, seeds, share, plan, given, state))
    name = f"{pretrain.name} ({STUDENTS[own.student.name](**own.student.hyper)!r})"
    model = network_of(own, world, found.path, key, name, found)
    while len(world.assistants) >= AT_HAND:  # the oldest goes; its file stays
        world.assistants.pop(next(iter(world.assistants)))
    world.assistants[key] = model
    return model, found.costs


def recipe_of(pretrain: Pretrain, recipe: Recipe, world: World) -> Recipe:
    """What a model of the plan learns by."""
    family = sized(recipe.student, pretrain.size, world)
    student = Node(family.name, family.hyper)
    if pretrain.by == "recipe":
        return replace(recipe, student=student)
    own = Recipe.from_dict({"student": student.to_dict("family")})
    if not pretrain.teachers:
        return own.without_distillation()
    own = own.plain_kd()
    if pretrain.by == "strategy":
        own = replace(own, policies={**own.policies, "teaching": recipe.policies["teaching"]})
    return own


def sized(student: Node, size: float, world: World) -> StudentFamily:
    """The student's family at a size between the student's (0) and the teacher's (1), on the scale of log
    parameters.

    Raises:
        TrialFailure: there is no teacher to measure by, or the family cannot be widened ("invalid").
    """
    family = STUDENTS[student.name](**student.hyper)
    if size <= 0:
        return family
    if world.teacher is None:
        raise TrialFailure("invalid", "an assistant's size is measured against the teacher, and none was given")
    data = world.data
    hyper = tuple(sorted(student.hyper.items()))
    found = _sized(student.name, hyper, size, world.teacher.spec.parameters, data.input_shape, data.classes)
    if found is None:
        raise TrialFailure("invalid", f"student family {family.name!r} cannot be widened to an assistant")
    return found


@lru_cache(maxsize=256)
def _sized(
    name: str, hyper: tuple[tuple[str, Value], ...], size: float, above: int, shape: models.InputShape, classes: int
) -> StudentFamily | None:
    """The family that comes nearest; None where it cannot be widened. Networks are built to be counted, and thrown
    away.
    """
    family = STUDENTS[name](**dict(hyper))

    def count(candidate: StudentFamily) -> int:
        with torch.random.fork_rng(devices=[]):
            return sum(p.numel() for p in candidate.build(shape, classes).parameters())

    low, high = math.log(count(family)), math.log(max(above, 1))
    wanted = low + size * (high - low)
    best, distance = family, abs(low - wanted)
    factor = 1.0
    while factor < 64:
        factor *= 1.25
        wider = family.widened(factor)
        if wider is None:
            return None
        here = math.log(count(wider))
        if abs(here - wanted) < distance:
            best, distance = wider, abs(here - wanted)
        if here > wanted:
            break
    return best
