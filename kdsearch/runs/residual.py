"""Residual students: trained one after the other on the sum of those before, until the gap to the teacher is small."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods.strategy import TEACHER, Plan
from kdsearch.kd_methods.teaching._residual import adaptive_curve, choose, energy
from kdsearch.runs import assistants, deploy, models
from kdsearch.runs.assistants import Costs, Kept
from kdsearch.runs.data import spread
from kdsearch.runs.distil import Distilled, plan_of, train_apart
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.metrics import predict
from kdsearch.runs.network import Network
from kdsearch.runs.settings import Seeds
from kdsearch.runs.training import Trained
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe, content_hash
from kdsearch.search_space.students import measure

BETWEEN = 15_485_863  # between the seeds of residual students
POINTS = 64  # of an accuracy-cost curve
Combine = Callable[[nn.Module], nn.Module]


def distil_residually(recipe: Recipe, world: World, seeds: Seeds, fidelity: Fidelity) -> Distilled:
    """The first student by the recipe from the run's teacher, then residual students; all are kept by content.

    Thinning is left aside: a thinned student leaves another gap. The result is the sum of all.

    Raises:
        TrialFailure: there is no teacher ("invalid"), or a training fails.
    """
    if world.teacher is None or (answers := world.teacher.validation(world.data)) is None:
        raise TrialFailure("invalid", "residual students close a gap to a teacher of the data's classes, and none is")
    plan, strategy = plan_of(recipe, world), recipe.strategy()
    fidelity = Fidelity("residual", epochs=fidelity.epochs, data=fidelity.data)
    first = deploy.plainly_taught(recipe)
    key = assistants.key_of(first, Plan(), {}, world, seeds, fidelity)
    last = _kept(key, first, world, seeds, fidelity, None)
    network = _network(assistants.rebuilt(first, world, last.path), first, world)
    costs, members = Costs(), [network.module]
    energies = [_energy(network, answers, world)]
    further = models.residual(deploy.on_logits(first), plan.residual_size)
    for k in range(plan.residuals):
        if strategy.enough(energies):
            break
        costs += last.costs  # what the last training costs is the trial's own
        combine = partial(strategy.combine, members)
        later = (k + 1) * BETWEEN
        own = replace(seeds, init=seeds.init + later, order=seeds.order + later)
        key = content_hash([key, assistants.key_of(further, Plan(), {}, world, own, fidelity)])
        last = _kept(key, further, world, own, fidelity, combine)
        student = _fresh(further, world)
        combined = combine(student)
        models.load(combined, last.path)
        network = _network(combined, first, world)
        energies.append(_energy(network, answers, world))
        members = [*members, student]
    return _result(recipe, network, last, costs, energies, members, world)


def _kept(key: str, recipe: Recipe, world: World, seeds: Seeds, fidelity: Fidelity, combine: Combine | None) -> Kept:
    """The training of a recipe's student within the sum, or of the first alone: done here, or found."""

    def train(state: Path) -> tuple[Trained, float]:
        return train_apart(recipe, world, seeds, fidelity, Plan(), {}, state, within=combine)

    return assistants.kept(key, world.cache / "models", train)


def _fresh(recipe: Recipe, world: World) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return models.student(recipe, world.data)


def _network(module: nn.Module, recipe: Recipe, world: World) -> Network:
    side = models.input_shape(recipe, world.data)[-1]
    return models.network(module.requires_grad_(False).eval(), world.data, world.settings, side=side)


def _energy(network: Network, answers: Tensor, world: World) -> float:
    return energy(answers - predict(network, world.data.validation)).item()


def _result(
    recipe: Recipe,
    network: Network,
    last: Kept,
    costs: Costs,
    energies: list[float],
    members: list[nn.Module],
    world: World,
) -> Distilled:
    """The sum as the trial's result, with what it costs to leave networks out."""
    assert world.teacher is not None
    told: dict[str, Any] = last.meta
    data, shape = world.data, models.input_shape(recipe, world.data)
    macs = [float(measure.macs(module, shape)) for module in members]
    split = data.validation
    answers = [predict(network.holding(module), split).cpu() for module in members]  # float64 does not exist everywhere
    curve = adaptive_curve(torch.stack(answers).cumsum(0).unbind(), split.labels.cpu(), macs)
    curve = curve[spread(torch.arange(len(curve)), POINTS)]
    point = choose(curve)
    metrics = {
        **last.metrics,
        "networks": float(len(members)),
        "adaptive_threshold": point.threshold,
        "adaptive_accuracy": point.accuracy,
        "adaptive_macs": point.cost,
    }
    if not last.paid:
        costs += last.costs
    seconds = last.costs.charged
    fall = " → ".join(f"{value:.3g}" for value in energies)
    spares = f"accuracy {point.accuracy:.4f} at {point.cost:,.0f} of {sum(macs):,.0f} MACs a sample"
    notes = [
        f"energy of the gap to the teacher: {fall}",
        f"adaptive inference, entropy threshold {point.threshold:.3g}: {spares}",
    ]
    trained = Trained(
        network,
        metrics,
        [(int(epoch), float(score)) for epoch, score in told["curve"]],
        told["losses"],
        {},
        seconds,
        int(told["epochs"]),
        int(told["steps"]),
        network.module,
        {"members": str(len(members) - 1), "suppliers": json.dumps({TEACHER: asdict(world.teacher.spec)})},
    )
    return Distilled(trained, seconds, costs.spent, costs.charged, notes, {"adaptive": curve.tolist()})
