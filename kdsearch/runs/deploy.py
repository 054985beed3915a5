"""The network that is evaluated and handed out, where a method keeps more of itself than the trained student.

A reused classifier or a joint head is built from the recipe and from what the student was joined to; its weights lie in
the student's file, and so does that second part, as metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from kdsearch.kd_methods import METHODS, DataSpec, KDMethod, ModelSpec, Need, StageSpec
from kdsearch.kd_methods.strategy import Plan
from kdsearch.kd_methods.tap import probe
from kdsearch.runs import models
from kdsearch.runs.objective import Objective
from kdsearch.search_space.recipe import NEUTRAL, Node, Recipe

InputShape = tuple[int, int, int]
Suppliers = Mapping[str, ModelSpec]


@dataclass(frozen=True)
class Joined:
    """What a student was joined to, beside its recipe: the suppliers' specs, and how many networks stand beside it."""

    suppliers: Suppliers = field(default_factory=dict)
    members: int | None = None


def exporting(recipe: Recipe) -> list[str]:
    """The slots whose method hands out more than the student."""
    nodes = {**recipe.terms, **recipe.policies}
    found = [slot for slot, node in nodes.items() if METHODS[node.name].export is not KDMethod.export]
    plan = recipe.strategy().plan()
    return [*found, "teaching"] if (plan.members or plan.residuals) and "teaching" not in found else found


def deployed(recipe: Recipe, student: nn.Module, shape: InputShape, classes: int, joined: Joined) -> nn.Module:
    """The student within what its recipe's methods add to it, weights as they come.

    Where `joined` does not say how many networks stand beside it, it is as many as there can be.

    Raises:
        TrialFailure: a method cannot join this student to these suppliers ("invalid").
    """
    slots = exporting(recipe)
    if not slots:
        return student
    plan = recipe.strategy().plan()
    beside = max(len(plan.members), plan.residuals) if joined.members is None else joined.members
    if plan.residuals:
        first = deployed(plainly_taught(recipe), student, shape, classes, joined)
        return _corrected(recipe, plan, first, shape, classes, beside) if beside else first
    alone = replace(
        recipe,
        terms={slot: node for slot, node in recipe.terms.items() if slot in slots},
        policies={slot: node if slot in slots else _neutral(slot) for slot, node in recipe.policies.items()},
    )
    objective = Objective(alone, probe(student, shape), joined.suppliers, DataSpec(1, classes, shape))
    for method in objective.methods:
        student = method.export(student)
    if beside:
        bare = plainly_taught(recipe)
        members = [
            deployed(bare, models.build_of(recipe, shape, classes), shape, classes, joined) for _ in range(beside)
        ]
        student = objective.strategy.combine(members, student)
    return student


def _corrected(
    recipe: Recipe, plan: Plan, student: nn.Module, shape: InputShape, classes: int, beside: int
) -> nn.Module:
    """The student with its residual students, `beside` of them."""
    strategy = recipe.strategy()
    further = models.residual(on_logits(plainly_taught(recipe)), plan.residual_size)
    members = [student, *(models.build_of(further, shape, classes) for _ in range(beside - 1))]
    return strategy.combine(members, models.build_of(further, shape, classes))


def plainly_taught(recipe: Recipe) -> Recipe:
    """The recipe under the one fixed teacher."""
    return replace(recipe, policies={**recipe.policies, "teaching": _neutral("teaching")})


def on_logits(recipe: Recipe) -> Recipe:
    """What residual students learn by: the logit term alone, as a sum has nothing but logits; plain KD without one."""
    bare = recipe.plain_kd()
    node = recipe.terms.get("logits")
    if node is None or METHODS[node.name](**node.hyper).needs.student - {Need.LOGITS}:
        return bare
    kept = {slot: recipe.policies[slot] for slot in ("temperature", "schedule", "data")}
    return replace(bare, ce_weight=recipe.ce_weight, terms={"logits": node}, policies={**bare.policies, **kept})


def _neutral(slot: str) -> Node:
    name = NEUTRAL[slot]
    return Node(name, METHODS[name].check({}))


def joined(weights: Path) -> Joined:
    """What a student's file says it was joined to; nothing for a plain student."""
    if weights.suffix != ".safetensors" or not weights.is_file():
        return Joined(members=0)
    from safetensors import safe_open

    with safe_open(str(weights), "pt") as file:
        metadata = file.metadata() or {}
    specs = {name: _spec(data) for name, data in json.loads(metadata.get("suppliers", "{}")).items()}
    return Joined(specs, int(metadata.get("members", 0)))


def _spec(data: dict[str, Any]) -> ModelSpec:
    whole = data["map"]
    return ModelSpec(
        **{
            **data,
            "stages": tuple(_stage(stage) for stage in data["stages"]),
            "input_shape": tuple(data["input_shape"]),
            "map": None if whole is None else _stage(whole),
        }
    )


def _stage(data: dict[str, Any]) -> StageSpec:
    return StageSpec(**{**data, "size": tuple(data["size"])})
