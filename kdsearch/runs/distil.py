"""Carry out a recipe: train what its plan asks for beforehand, join student and teachers, train, and count the cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods import ModelSpec
from kdsearch.kd_methods.strategy import AVERAGE, HYBRID, PEERS, PIVOT, SELF, Plan, peer
from kdsearch.proxies.rejection import reject
from kdsearch.runs import assistants, models
from kdsearch.runs.assistants import Costs, Given, sized
from kdsearch.runs.checkpoint import made_of
from kdsearch.runs.classroom import Learner
from kdsearch.runs.data import Data
from kdsearch.runs.fidelity import FULL, Fidelity
from kdsearch.runs.growth import grow
from kdsearch.runs.network import Network
from kdsearch.runs.objective import Objective
from kdsearch.runs.offline import FixedTeacher, plan_supply
from kdsearch.runs.patches import PatchMasked, masks_patches
from kdsearch.runs.pivot import Pivot
from kdsearch.runs.preparation import Preparation
from kdsearch.runs.settings import Seeds
from kdsearch.runs.shares import layer_shares
from kdsearch.runs.subsets import chosen
from kdsearch.runs.training import Trained, Training
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.recipe import Node, Recipe
from kdsearch.search_space.students.transforms.net2net import Net2Net

Progress = Callable[[int, int, float], None]
SPECS = 64
_specs: dict[str, ModelSpec] = {}


@dataclass
class Distilled:
    """A trained student and what it cost.

    Attributes:
        seconds: of this training alone.
        assistants: seconds that the plan's other models cost when they were trained, whoever paid.
        charged: the part of `assistants` that was paid in this very training.
        notes: what a reader of the result should know: how signals were supplied, how the student was thinned.
        tables: rows of numbers by name, for the report.
    """

    trained: Trained
    seconds: float
    assistants: float = 0.0
    charged: float = 0.0
    notes: list[str] = field(default_factory=list)
    tables: dict[str, list[list[float]]] = field(default_factory=dict)


def distil(
    recipe: Recipe,
    world: World,
    seeds: Seeds,
    fidelity: Fidelity = FULL,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Distilled:
    """Train the recipe's student at a fidelity.

    Raises:
        TrialFailure: a deterministic failure, with its reason.
    """
    devices = [world.device] if world.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seeds.init)
        if plan_of(recipe, world).residuals:
            from kdsearch.runs.residual import distil_residually

            return distil_residually(recipe, world, seeds, fidelity)
        return _distil(recipe, world, seeds, fidelity, checkpoint, progress)


def train_apart(
    recipe: Recipe,
    world: World,
    seeds: Seeds,
    fidelity: Fidelity,
    plan: Plan,
    given: Given,
    checkpoint: Path,
    *,
    within: Callable[[nn.Module], nn.Module] | None = None,
    bare: bool = False,
) -> tuple[Trained, float]:
    """Train a model of somebody's plan under a plan of its own; `given` are its teachers that are no run's.

    Gives the result and its seconds, those of what was prepared for it included. A `bare` result is the student
    without what methods add to it.
    """
    devices = [world.device] if world.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seeds.init)
        training, costs, _ = _prepare(recipe, world, seeds, fidelity, checkpoint, None, plan, given, within)
        trained = training.run()
    if bare:
        trained = replace(trained, module=training.student.network.module, metadata={})
    return trained, trained.seconds + costs.charged


def _distil(
    recipe: Recipe, world: World, seeds: Seeds, fidelity: Fidelity, checkpoint: Path | None, progress: Progress | None
) -> Distilled:
    training, costs, notes = _prepare(recipe, world, seeds, fidelity, checkpoint, progress)
    trained = training.run()
    notes += training.curriculum.notes()
    return Distilled(trained, trained.seconds, costs.spent, costs.charged, notes)


def _prepare(
    recipe: Recipe,
    world: World,
    seeds: Seeds,
    fidelity: Fidelity,
    checkpoint: Path | None,
    progress: Progress | None,
    plan: Plan | None = None,
    given: Given | None = None,
    within: Callable[[nn.Module], nn.Module] | None = None,
) -> tuple[Training, Costs, list[str]]:
    """Everything up to the first step, and what the other models of the plan cost.

    Args:
        plan: in place of the recipe's own.
        given: models of that plan that are there already.
        within: puts the student into what is trained and evaluated in its place.
    """
    plan = plan or plan_of(recipe, world)
    notes: list[str] = []
    student, fidelity = _student(recipe, world, fidelity, seeds, notes)
    growth = grow(recipe, world, seeds, fidelity, student, plan, given or {})
    fidelity = growth.fidelity
    if within is not None:
        student = student.holding(within(student.module))
    suppliers, made, costs = assistants.suppliers(recipe, plan, world, seeds, fidelity, given or {})
    # Assistants draw from the generator too: the student's own stream starts afresh, so that all recipes share it.
    torch.manual_seed(seeds.init)
    shape = world.data.input_shape
    prepare = Preparation(world, suppliers)
    pivot = _pivot(plan, world)
    networks = _networks(recipe, plan, world, fidelity, seeds, student)
    fixed_specs: dict[str, ModelSpec] = {name: model.spec for name, model in suppliers.items()}
    shares = layer_shares(recipe, student, suppliers, world)
    learners = []
    for k, network in enumerate(networks):
        specs = {**fixed_specs, **_live_specs(plan, networks, shape, k)}
        if pivot is not None:
            specs[PIVOT] = pivot.spec
        spec, data, place = network.spec(shape), world.data_spec(), (k, len(networks))
        objective = (
            Objective(recipe, spec, specs, data, prepare, place=place, shares=shares)
            if k == 0 or plan.peers_learn
            else Objective(recipe.without_distillation(), spec, {}, data)
        )
        objective.parts.to(world.device)
        learners.append(Learner(network, objective))
    _check(plan, learners)
    ids, choosing = chosen(world, fidelity, seeds, notes)
    costs += choosing + growth.costs + prepare.costs
    fixed = {name: _fixed(name, model, learners[0].objective, world, seeds, notes) for name, model in suppliers.items()}
    whole = not fidelity.thins and fidelity.resolution >= 1  # a thinned student stands for itself alone
    training = Training(
        recipe,
        world.data,
        world.settings,
        seeds,
        fidelity,
        plan,
        learners,
        fixed,
        ids=ids,
        pivot=pivot,
        rate=growth.rate,
        members=[made[name].network.module for name in plan.members] if whole else [],
        state_file=checkpoint,
        made_of=made_of(recipe, world, seeds, fidelity, {**world.teachers, **suppliers}.values()),
        progress=progress,
        metric=world.judge,
        teacher_logits=None if world.teacher is None else world.teacher.validation(world.data),
        teacher_embeddings=world.reference(),
    )
    return training, costs, notes


def _networks(
    recipe: Recipe, plan: Plan, world: World, fidelity: Fidelity, seeds: Seeds, student: Network
) -> list[Network]:
    """The learners' networks, the student's first."""
    networks = [student]
    sizes = plan.peer_sizes or (plan.peer_size,) * plan.peers
    for k, size in enumerate(sizes):
        torch.manual_seed(seeds.init + 7919 * (k + 1))
        network = _peer(recipe, size, world, fidelity, seeds)
        if plan.alike:
            network.module.load_state_dict(student.module.state_dict())
        networks.append(network)
    return networks


def _live_specs(plan: Plan, networks: list[Network], shape: tuple[int, int, int], k: int) -> dict[str, ModelSpec]:
    """What learner k may know of those who learn beside it."""
    specs = {name: networks[k].spec(shape) for name in (AVERAGE, HYBRID, SELF) if name in plan.teachers}
    if PEERS in plan.teachers and plan.peer_sizes:
        specs |= {peer(j): network.spec(shape) for j, network in enumerate(networks) if j != k}
    elif PEERS in plan.teachers and len(networks) > 1:
        specs[PEERS] = networks[1].spec(shape)
    return specs


def _pivot(plan: Plan, world: World) -> Pivot | None:
    if not plan.pivot:
        return None
    if world.teacher is None:
        raise TrialFailure("invalid", "the teaching strategy trains the run's teacher on, and none was given")
    if world.teacher.spec.classes != world.data.classes:
        raise TrialFailure("invalid", "the teaching strategy trains the run's teacher on, and it knows other classes")
    return Pivot(world.teacher, plan.pivot)


def _check(plan: Plan, learners: list[Learner]) -> None:
    """What cannot be carried out together."""
    if HYBRID in plan.teachers and learners[0].objective.optimizer.split_gradients:
        name = learners[0].objective.optimizer.name
        raise TrialFailure("invalid", f"optimizer={name} takes losses apart, and the hybrid's belong to all learners")


def _peer(recipe: Recipe, size: float, world: World, fidelity: Fidelity, seeds: Seeds) -> Network:
    """A further learner: the student's own architecture at this fidelity, or one of the plan's size."""
    if not size:
        return _student(recipe, world, fidelity, seeds, [])[0]
    family = sized(recipe.student, size, world)
    shape = models.input_shape(recipe, world.data)
    node, none, asked = Node(family.name, family.hyper), plain(recipe).transform, models.branches(recipe)
    module = models.build(node, none, shape, world.data.classes, asked)
    return models.network(module, world.data, world.settings, side=shape[-1])


def plain(recipe: Recipe) -> Recipe:
    """The student's family with every policy neutral."""
    return Recipe.from_dict({"student": recipe.student.to_dict("family")})


def examine(recipe: Recipe, world: World, seeds: Seeds, low: float, high: float) -> None:
    """Loss rejection: one batch, before anything is trained. Assistants are not trained for it; the teacher stands in.

    Raises:
        TrialFailure: a loss is not finite, its gradient does not reach the student, or is out of all proportion to the
            cross-entropy's ("rejected").
    """
    plan = plan_of(recipe, world)
    neutral = plain(recipe)
    if plan.pretrain or plan.residuals:
        recipe = replace(recipe, policies={**recipe.policies, "teaching": neutral.policies["teaching"]})
    if recipe.transform.name == Net2Net.name:  # nor is a smaller student
        recipe = replace(recipe, transform=neutral.transform)
    devices = [world.device] if world.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seeds.init)
        training, _, _ = _prepare(recipe, world, seeds, FULL, None, None)
        try:
            reference, measured = training.gradient_norms()
        finally:
            for learner in training.learners:
                learner.network.close()
    for name, (loss, norm) in measured.items():
        reason = reject(loss, reference, norm, low=low, high=high)
        if reason:
            raise TrialFailure("rejected", f"{name}: {reason}")


def plan_of(recipe: Recipe, world: World) -> Plan:
    """What the recipe's strategy wants, in this world."""
    return assistants.expanded(recipe.strategy().plan(), world)


def _student(
    recipe: Recipe, world: World, fidelity: Fidelity, seeds: Seeds, notes: list[str]
) -> tuple[Network, Fidelity]:
    """The student's network at this fidelity. What cannot be thinned is shown less data at lower resolution instead,
    and what has no patches to leave out as many pixels less.
    """
    data = world.data
    if fidelity.thins:
        module, note = models.thinned(recipe, data, fidelity.keep, seeds.init)
        if note:
            notes.append(note)
            share = fidelity.kept
            resolution = fidelity.resolution * math.sqrt(share)
            fidelity = replace(fidelity, data=fidelity.data * share, keep=1.0, resolution=resolution)
    else:
        module = models.student(recipe, data)
    network = models.network(module, data, world.settings, side=_side(recipe, data, fidelity.resolution))
    spec = _described(network, recipe, world, fidelity, seeds)
    if fidelity.tokens < 1:
        if masks_patches(spec):
            network = PatchMasked.of(network, fidelity.tokens, seeds.order)
        else:
            fidelity = replace(fidelity, tokens=1.0, resolution=fidelity.resolution * math.sqrt(fidelity.tokens))
            network = models.network(module, data, world.settings, side=_side(recipe, data, fidelity.resolution))
            _described(network, recipe, world, fidelity, seeds)
    return network, fidelity


def _side(recipe: Recipe, data: Data, resolution: float) -> int:
    """The side of what the student sees, in pixels; eight are the fewest unless its recipe shows it fewer."""
    side = models.input_shape(recipe, data)[-1]
    return side if resolution >= 1 else min(side, max(8, round(side * resolution)))


def _described(network: Network, recipe: Recipe, world: World, fidelity: Fidelity, seeds: Seeds) -> ModelSpec:
    """The network's stages and sizes. Those of the last networks are known, for trials often have the same student."""
    shape = world.data.input_shape
    edits = sorted(models.branches(recipe))
    key = repr((recipe.student, recipe.transform, edits, shape, world.data.classes, network.side, fidelity.keep, seeds))
    if key not in _specs:
        while len(_specs) >= SPECS:
            _specs.pop(next(iter(_specs)))
        _specs[key] = network.spec(shape)
    network.known(_specs[key])
    return _specs[key]


def _fixed(
    name: str, model: TeacherModel, objective: Objective, world: World, seeds: Seeds, notes: list[str]
) -> FixedTeacher:
    """A frozen supplier with its signals planned: from files where they fit, live where not."""
    needs = objective.needs().teacher
    stages = objective.teacher_stages(name)
    settings, data = world.settings, world.data
    method = objective.data_method
    supply = plan_supply(
        objective.batch_needs(),
        model.spec,
        stages,
        samples=len(data.train),
        views=method.distinct_views(settings.views),
        limit=settings.cache_limit,
        labels=method.soft_labels(),
    )
    teacher = FixedTeacher(model.network, model.spec, supply, needs, stages)
    maker = {
        "teacher": model.hash,
        "data": data.fingerprint,
        "augmentation": str(data.augmentation),
        "policy": str(objective.data_method.policy()),
        "seed": seeds.views,
    }
    teacher.open(world.cache / "signals", len(data.train), maker)
    notes.append(f"{name}: {supply.describe()}")
    return teacher
