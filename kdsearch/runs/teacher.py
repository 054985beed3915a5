"""The run's teacher: from a checkpoint, or trained here once and found again by content; evaluated before anything
else.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdsearch.errors import TrialFailure, UserError
from kdsearch.kd_methods.strategy import EVERY, PIVOT, TEACHER, TeachingStrategy
from kdsearch.runs import deploy, models
from kdsearch.runs.config import RunConfig, TeacherConfig, teacher_node
from kdsearch.runs.data import Data
from kdsearch.runs.distil import distil
from kdsearch.runs.metrics import measure, predict
from kdsearch.runs.network import Network
from kdsearch.runs.settings import Seeds, Settings, threads
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.recipe import Recipe, content_hash
from kdsearch.search_space.students.family import STUDENTS
from kdsearch.search_space.validity import problem

log = logging.getLogger(__name__)
Progress = Callable[[int, int, float], None]


def prepare(
    config: RunConfig, data: Data, settings: Settings, cache: Path, progress: Progress | None = None
) -> TeacherModel:
    """The teacher of a config, ready to teach.

    Raises:
        UserError: no such architecture, a checkpoint of another one, a recipe that cannot train it, or a teacher near
            chance.
    """
    recipe = training_recipe(config.teacher)
    try:
        if config.teacher.checkpoint is not None:
            module = _module(recipe, data, config.teacher.classes or data.classes)
            models.load(module, Path(config.teacher.checkpoint).expanduser())
            seconds = 0.0
        else:
            module, seconds = _trained(config, recipe, data, settings, cache, progress)
    except TrialFailure as error:
        key = "teacher.recipe" if config.teacher.recipe else "teacher.model"
        raise UserError(f"{key}: {error}") from None
    return adopt(module, str(recipe.student.name), config, data, settings, seconds)


def further(
    config: RunConfig, data: Data, settings: Settings, cache: Path, progress: Progress | None = None
) -> dict[str, TeacherModel]:
    """The teachers beside the first, by the names under which they teach: teacher2, teacher3, ...

    Raises:
        UserError: as `prepare`; or one that knows other classes than the data's.
    """
    found: dict[str, TeacherModel] = {}
    for k, own in enumerate(config.teachers):
        try:
            model = prepare(config.model_copy(update={"teacher": own}), data, settings, cache, progress)
        except UserError as error:
            raise UserError(f"teachers.{k}: {error}") from None
        if model.spec.classes != data.classes:
            raise UserError(f"teachers.{k}: knows {model.spec.classes} classes, and the data has {data.classes}")
        found[f"{TEACHER}{k + 2}"] = model
    return found


def untrained(config: RunConfig, data: Data, settings: Settings) -> TeacherModel:
    """The teacher's architecture with random weights (or its checkpoint's): for proxies and timings."""
    recipe = teacher_node(config.teacher)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(config.seed)
        module = _module(recipe, data, config.teacher.classes or data.classes)
    if config.teacher.checkpoint is not None:
        models.load(module, Path(config.teacher.checkpoint).expanduser())
    module.eval().requires_grad_(False)
    network = models.network(module, data, settings)
    return TeacherModel(network, network.spec(data.input_shape), models.state_hash(module), recipe.student.name)


def adopt(
    module: nn.Module, name: str, config: RunConfig, data: Data, settings: Settings, seconds: float = 0.0
) -> TeacherModel:
    """Any module as the run's teacher: frozen, under its own normalisation, measured and checked."""
    mean, std = (
        _channels(values, data, key) for values, key in ((config.teacher.mean, "mean"), (config.teacher.std, "std"))
    )
    last = settings.use_channels_last(data.device, data.input_shape[-1])
    network = Network(module, data.mean if mean is None else mean, data.std if std is None else std, channels_last=last)
    module.eval().requires_grad_(False)
    spec = network.spec(data.input_shape)
    metrics: dict[str, float] = {}
    predictions = None
    if spec.classes == data.classes:
        predictions = predict(network, data.validation)
        metrics = measure(predictions, data.validation.labels)
        _above_chance(metrics, data)
    digest = content_hash(
        [models.state_hash(module), network.shift.flatten().tolist(), network.scale.flatten().tolist()]
    )
    return TeacherModel(network, spec, digest, name, metrics, seconds, predictions)


def _channels(values: list[float] | None, data: Data, key: str) -> torch.Tensor | None:
    if values is None:
        return None
    if len(values) != data.input_shape[0]:
        raise UserError(f"teacher.{key}: needs {data.input_shape[0]} numbers, one per channel, not {len(values)}")
    return torch.tensor(values, device=data.device)


def _module(recipe: Recipe, data: Data, classes: int) -> nn.Module:
    family = STUDENTS[recipe.student.name](**recipe.student.hyper)
    try:
        return family.build(data.input_shape, classes, branches=models.branches(recipe))
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"teacher.model: {str(error).splitlines()[0]}") from None


def _above_chance(metrics: dict[str, float], data: Data) -> None:
    chance = 1 / data.classes
    if metrics["accuracy"] < min(2 * chance, (1 + chance) / 2):
        raise UserError(
            f"teacher: its validation accuracy is {metrics['accuracy']:.1%}, near chance ({chance:.1%}). "
            "Check teacher.mean and teacher.std (its normalisation) and the order of the classes"
        )


def training_recipe(config: TeacherConfig) -> Recipe:
    """What the teacher is trained by: its architecture under `teacher.recipe`, on labels alone without one.

    Raises:
        UserError: unknown family, slot, method or hyper-parameter.
    """
    plain = teacher_node(config)
    if not config.recipe:
        return plain
    try:
        return Recipe.from_dict({**config.recipe, "student": plain.student.to_dict("family")})
    except ValueError as error:
        raise UserError(f"teacher.recipe: {error}") from None


def _trained(
    config: RunConfig, recipe: Recipe, data: Data, settings: Settings, cache: Path, progress: Progress | None
) -> tuple[nn.Module, float]:
    """Train the teacher by its recipe, or find it where an earlier run with the same content left it.

    Gives the seconds it cost, those of the ordinary teacher that its recipe asked for among them.
    """
    above, before = None, 0.0
    needed = _taught(recipe)
    found = problem(recipe, untrained(config, data, settings).spec if needed else None, data.classes)
    if found:
        raise TrialFailure("invalid", found)
    if needed:
        module, before = _trained(config, recipe.without_distillation(), data, settings, cache, progress)
        above = adopt(module, f"ordinary {recipe.student.name}", config, data, settings, before)
    mine = replace(settings, epochs=config.teacher.epochs, views=config.teacher.epochs)
    seed = config.seed if config.teacher.seed is None else config.teacher.seed
    made_of: dict[str, Any] = {
        "recipe": recipe.to_dict(),
        "data": data.fingerprint,
        "augmentation": str(data.augmentation),
        "epochs": mine.epochs,
        "batch": mine.batch_size,
        "seed": seed,
    }
    if above is not None:
        made_of["teacher"] = above.hash
    path = cache / "teacher" / f"{content_hash(made_of)}.safetensors"
    meta = path.with_suffix(".json")
    if path.exists() and meta.exists():
        try:
            seconds = float(json.loads(meta.read_text())["seconds"])
            return _stored(recipe, data, path), before + seconds
        except (UserError, ValueError, KeyError):
            log.warning("the stored teacher %s is damaged; it is trained again", path.name)
    world = World(data, above, mine, cache, config.metric, seed)
    with threads(data.device, data.input_shape[-1]):
        done = distil(recipe, world, Seeds.search(seed), checkpoint=path.with_suffix(".pt"), progress=progress)
    models.save(done.trained.module, path, done.trained.metadata)
    seconds = done.seconds + done.charged
    partial = meta.with_suffix(".partial")
    partial.write_text(json.dumps({"seconds": seconds, "metrics": done.trained.metrics}))
    partial.replace(meta)
    return done.trained.module, before + seconds


def _taught(recipe: Recipe) -> bool:
    """Whether the recipe reads a teacher that has to be there before."""
    methods: dict[str, Any] = dict(recipe.methods())
    strategy: TeachingStrategy = methods["teaching"]
    plan = strategy.plan()
    reads = any(method.needs.teacher for method in methods.values())
    fixed = {TEACHER, EVERY, PIVOT} & set(plan.teachers)
    return reads and (not strategy.own_objective or bool(fixed or plan.pretrain))


def _stored(recipe: Recipe, data: Data, path: Path) -> nn.Module:
    """A teacher's network of its file, with what its recipe's methods keep in it."""
    module = _module(recipe, data, data.classes)
    module = deploy.deployed(recipe, module, data.input_shape, data.classes, deploy.joined(path))
    models.load(module, path)
    return module
