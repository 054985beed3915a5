"""What the scores of a run depend on beside the recipe: whether two runs' trials may be compared at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from kdsearch.runs import models
from kdsearch.runs.data import Split
from kdsearch.runs.fidelity import FULL, Fidelity
from kdsearch.runs.settings import Settings
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.recipe import content_hash

IDLE = ("cache_limit", "channels_last", "checkpoint_seconds", "evaluations")
"""Settings that change how a training is computed and not what comes out."""

COMPARED = ("data", "teacher", "training")
"""What has to be the same for two scores of full trainings to be comparable. The trials of a search share their seed,
and with it its luck: those of another one are shifted as a whole, by as much as seeds differ.
"""

Identity = dict[str, Any]


def identity(world: World, rungs: Iterable[Fidelity]) -> Identity:
    """Plain data, by content and never by name: data, teachers, full training, seed, and what each rung is.

    Settings and shares are there where they depart from the defaults, so that a later version with more of them still
    knows an earlier one's runs.

    The metric and the minimised quantities are no part of it: a trial records all of them.
    """
    data, settings = world.data, asdict(world.settings)
    if settings["precision"] == "auto":
        settings["precision"] = "bf16" if world.device.type == "cuda" else "fp32"
    usual = asdict(Settings())
    return {
        "data": content_hash([data.fingerprint, _digest(data.validation), asdict(data.augmentation), data.classes]),
        "teacher": content_hash([teacher.hash for teacher in world.teachers.values()]),
        "given": [_given(teacher) for teacher in world.teachers.values()],
        "training": {k: v for k, v in settings.items() if k not in IDLE and v != usual[k]},
        "seed": world.seed,
        "rungs": {rung.name: shares(rung) for rung in rungs},
    }


def shares(rung: Fidelity) -> dict[str, object]:
    """How a rung departs from a full training, without its name: two with the same shares measure the same."""
    usual = FULL.to_dict()
    return {key: value for key, value in rung.to_dict().items() if key != "name" and value != usual[key]}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What keeps the scores of two runs from being comparable, by name; empty where nothing does."""
    return [name for name in COMPARED if old.get(name) != new.get(name)]


def departures(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What a resumed run no longer shares with its own trials, by name; empty where it may go on.

    Another device computes in another precision, and trains the run's teacher to slightly other weights: both may be.
    The worlds of earlier versions do not say whether their teacher was trained by the run.
    """

    def lasting(world: Mapping[str, Any]) -> Identity:
        training = {key: value for key, value in world["training"].items() if key != "precision"}
        return {"data": world["data"], "teacher": world["given"] if "given" in old else None, "training": training}

    return differences(lasting(old), lasting(new))


def same_seed(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return bool(old.get("seed") == new["seed"])


def matching(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """The old rungs that measure what a new one does: old name -> new name."""
    known = {content_hash(rung): name for name, rung in new["rungs"].items()}
    found = {name: known.get(content_hash(rung)) for name, rung in old["rungs"].items()}
    return {name: other for name, other in found.items() if other is not None}


def _given(teacher: TeacherModel) -> str:
    """The weights of a teacher that came from outside, which cost the run nothing; of one that it trains, which."""
    if teacher.seconds:
        return f"{teacher.name}, {teacher.spec.parameters} parameters"
    return models.state_hash(teacher.network.module)


def _digest(split: Split) -> str:
    digest = hashlib.sha256(split.labels.cpu().numpy().tobytes())
    digest.update(split.outline())
    return digest.hexdigest()[:12]
