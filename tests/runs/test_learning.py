"""Every loss does its work: trained by it alone on real digits, the student comes to have less of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdsearch.kd_methods import LOSS_SLOTS, METHODS, Batch, Need, Signals
from kdsearch.parameters import FloatRange
from kdsearch.runs.data import Data
from kdsearch.runs.distil import _prepare, distil
from kdsearch.runs.fidelity import FULL
from kdsearch.runs.metrics import predict
from kdsearch.runs.settings import Seeds, Settings
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.recipe import Node, Recipe

from .tiny import QUICK, of_transformers

REGULARISERS = ["label_smoothing", "tolerant_teacher"]
LOSSES = [
    cls.name
    for cls in METHODS
    if "weight" in cls.parameters and cls.slot in (*LOSS_SLOTS, "targets") and cls.name not in REGULARISERS
]
FALL = {"nkd": 0.03, "deit": 0.03, "cskd": 0.05, "irg": 0.05}
"""By how much a loss has to fall where a tenth cannot be asked: nkd is not zero at student = teacher, a few epochs of a
transformer do little, and irg's vertices fall slowly."""

HEAVY = {"semckd", "makd", "reviewkd", "freekd"}
"""Their projectors cost several times the student."""

STEEPER = 30.0
"""The most that a published weight is multiplied by."""


def alone(name: str) -> Recipe:
    cls = METHODS[name]
    whole = {"staged": False} if "staged" in cls.parameters else {}
    of_labels = getattr(cls, "of_labels", False)
    slots = {cls.slot: {"method": name, **whole, **QUICK.get(name, {})}, "ce": {"weight": 1.0 if of_labels else 0.0}}
    if of_transformers(name):
        return Recipe.from_dict({"student": "vit", "optimizer": "adamw", **slots})
    return Recipe.from_dict({"student": {"family": "cnn", "channels": 6}, **slots})


def weighted(recipe: Recipe, name: str, weight: float) -> Recipe:
    """The recipe with another weight of the loss, as far as its domain goes."""
    slot = METHODS[name].slot
    declared = METHODS[name].parameters["weight"]
    assert isinstance(declared, FloatRange)
    node = recipe.terms.get(slot) or recipe.policies[slot]
    node = Node(name, {**node.hyper, "weight": min(max(weight, declared.domain[0]), declared.domain[1])})
    if slot in recipe.terms:
        return replace(recipe, terms={slot: node})
    return replace(recipe, policies={**recipe.policies, slot: node})


@pytest.mark.parametrize("name", LOSSES)
def test_a_student_trained_by_the_loss_alone_has_less_of_it(
    name: str, digits: Data, teacher: TeacherModel, transformer: TeacherModel, tmp_path: Path
) -> None:
    epochs = 3 if of_transformers(name) or name in HEAVY else 8
    teacher = transformer if Need.QKV in METHODS[name].needs.teacher else teacher
    world = World(digits, teacher, Settings(epochs=epochs, views=epochs, evaluations=1), tmp_path)
    recipe = alone(name)
    training, _, _ = _prepare(recipe, world, Seeds.search(0), FULL, None, None)
    reference, measured = training.gradient_norms()
    before, norm = measured[name]
    for learner in training.learners:
        learner.network.close()
    # As steep at the start as the cross-entropy, so that one learning rate suits all. Not much steeper than published:
    # a likelihood such as vid's grows steeper as it learns.
    default = METHODS[name].parameters["weight"].default
    assert isinstance(default, float)
    recipe = weighted(recipe, name, default * min(reference / norm, STEEPER))
    training, _, _ = _prepare(recipe, world, Seeds.search(0), FULL, None, None)
    training.run()
    training.classroom.listen()
    after = training.gradient_norms()[1][name][0]
    assert after < before - FALL.get(name, 0.1) * abs(before), (before, after)


@pytest.mark.parametrize("name", REGULARISERS)
def test_a_regulariser_leaves_less_of_its_loss_than_plain_training(
    name: str, digits: Data, teacher: TeacherModel, tmp_path: Path
) -> None:
    world = World(digits, teacher, Settings(epochs=8, views=8, evaluations=1), tmp_path)
    student = {"family": "cnn", "channels": 6}
    left = []
    for targets in ({"method": name, "weight": 0.4}, "labels"):
        done = distil(Recipe.from_dict({"student": student, "targets": targets}), world, Seeds.search(0))
        logits, labels = predict(done.trained.network, digits.validation), digits.validation.labels
        loss = METHODS[name]().loss(Signals(logits), Signals(logits), Batch(labels, torch.arange(len(labels))))
        left.append(loss.item())
    assert left[0] < 0.9 * left[1]
