"""Proxy scores of given students, outside any search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdsearch.errors import TrialFailure, UserError
from kdsearch.runs import assemble
from kdsearch.runs.config import RunConfig
from kdsearch.runs.jobs import Ladder
from kdsearch.runs.settings import pick_device
from kdsearch.runs.teacher import untrained
from kdsearch.runs.trial import Runner
from kdsearch.runs.truth import parse_student
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace


def scores(config: RunConfig, students: Sequence[str]) -> list[dict[str, Any]]:
    """One row per student: size and every proxy of the config. Without students, the families of its space, each at
    the space's defaults.

    Proxies are training-free: an untrained teacher of the config's architecture stands beside the students, unless a
    checkpoint is given.
    """
    data, settings = assemble.data(config, pick_device(config.engine.device)), assemble.settings(config)
    teacher = untrained(config, data, settings)
    given = [parse_student(text) for text in students]
    if not given:
        space = SearchSpace.from_dict(config.space)
        nodes = [space.default(student=name).student for name in space.options["student"]]
        given = [{"family": node.name, **node.hyper} for node in nodes]
    world = World(data, teacher, settings, Path(), config.metric, config.seed)
    runner = Runner(world, Ladder(proxies=tuple(config.proxies.names)), Path())
    rows = []
    for student in given:
        try:
            recipe = Recipe.from_dict({"student": student})
            rows.append({"student": repr_of(recipe), **runner.sizes(recipe), **runner.scores(recipe, config.seed)})
        except (ValueError, TrialFailure) as error:
            raise UserError(f"--student: {error}") from None
    return rows


def repr_of(recipe: Recipe) -> str:
    """A student as the command line writes it."""
    return recipe.student.name + ":" + ",".join(f"{k}={v}" for k, v in recipe.student.hyper.items())
