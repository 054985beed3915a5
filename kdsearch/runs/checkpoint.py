"""The state of a long training on disk: weights, optimiser, memory banks, generators, and how far it has come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.identity import IDLE, shares
from kdsearch.runs.settings import Seeds
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.recipe import Recipe, content_hash

if TYPE_CHECKING:
    from kdsearch.runs.training import Training


def made_of(recipe: Recipe, world: World, seeds: Seeds, fidelity: Fidelity, teachers: Iterable[TeacherModel]) -> str:
    """What a training comes from, by content: a state of anything else is of no use to it."""
    return content_hash(
        {
            "recipe": recipe.hash,
            "data": world.data.fingerprint,
            "augmentation": str(world.data.augmentation),
            "teachers": [teacher.hash for teacher in teachers],
            "settings": {key: value for key, value in asdict(world.settings).items() if key not in IDLE},
            "seeds": asdict(seeds),
            "fidelity": shares(fidelity),
            "metric": world.judge,
        }
    )


def save(training: Training, seconds: float) -> None:
    """Write the whole state; the file appears whole or not at all."""
    assert training.state_file is not None
    average, pivot = training.classroom.average, training.classroom.pivot
    state = {
        "made_of": training.made_of,
        "done": training.done,
        "steps": training.steps,
        "seconds": seconds,
        "curve": training.curve,
        "generator": training.generator.get_state(),
        "losses": training.losses.state_dict(),
        "best": training.best,
        "curriculum": training.curriculum.state_dict(),
        "modules": [learner.network.module.state_dict() for learner in training.learners],
        "parts": [learner.objective.parts.state_dict() for learner in training.learners],
        "optimizers": [learner.optimizer.state_dict() for learner in training.learners],
        "average": average.module.state_dict() if average is not None else {},
        "pivot": [pivot.network.module.state_dict(), pivot.optimizer.state_dict()] if pivot is not None else [],
    }
    training.state_file.parent.mkdir(parents=True, exist_ok=True)
    partial = training.state_file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(training.state_file)


def restore(training: Training) -> dict[str, Any] | None:
    """Pick up where a killed process stopped. A state of another training, or a torn one, is left aside."""
    if training.state_file is None or not training.state_file.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(training.state_file, map_location=training.device, weights_only=True)
    except Exception:
        return None
    if state.get("made_of") != training.made_of:
        return None
    for k, learner in enumerate(training.learners):
        learner.network.module.load_state_dict(state["modules"][k])
        learner.objective.parts.load_state_dict(state["parts"][k])
    if training.classroom.average is not None:
        training.classroom.average.module.load_state_dict(state["average"])
    if training.classroom.pivot is not None:
        training.classroom.pivot.network.module.load_state_dict(state["pivot"][0])
    training.generator.set_state(state["generator"].cpu())
    training.done, training.steps, training.spent = state["done"], state["steps"], state["seconds"]
    training.curve = [tuple(point) for point in state["curve"]]
    training.losses.load_state_dict(state["losses"])
    training.best = state["best"]
    training.curriculum.load_state_dict(state["curriculum"])
    return state
