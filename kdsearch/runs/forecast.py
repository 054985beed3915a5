"""What a run would do and cost, from a look at its parts and a three-step timing."""

from __future__ import annotations

import math
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods import Need
from kdsearch.runs import assemble
from kdsearch.runs.config import RunConfig
from kdsearch.runs.distil import distil
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.fitting import fitting
from kdsearch.runs.offline import plan_supply
from kdsearch.runs.progress import clock
from kdsearch.runs.settings import Seeds, pick_device, threads
from kdsearch.runs.sizes import Sizes
from kdsearch.runs.teacher import untrained
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.space import SearchSpace

SAMPLED = 64
TIMED_STEPS = 3


def forecast(config: RunConfig) -> dict[str, Any]:
    """The space's size, students within the limits, size of the cache, and estimated time; nothing is kept on disk.

    Raises:
        UserError: no student of the space is within the limits.
    """
    device = pick_device(config.engine.device)
    data, settings = assemble.data(config, device), assemble.settings(config)
    space = SearchSpace.from_dict(config.space)
    structures, continuous = space.size()
    lines: dict[str, Any] = {
        "data": f"{data.name}: {len(data.train):,} train, {len(data.validation):,} validation, {len(data.test):,} test",
        "space": f"{structures:,} discrete structures, up to {continuous} continuous decisions",
    }
    with tempfile.TemporaryDirectory() as folder:
        sizes = assemble.sizes(config, data, None, Path(folder))
        if sizes.limits:
            found = fitting(space, sizes)
            lines["students"], space = found.describe(), found.within(space)
        else:
            lines["students"] = _spread(space, sizes)
    teacher = untrained(config, data, settings)
    supply = plan_supply(
        frozenset({Need.LOGITS}),
        teacher.spec,
        [],
        samples=len(data.train),
        views=settings.views,
        limit=settings.cache_limit,
    )
    lines["offline teacher"] = supply.describe()
    seconds = _step_seconds(space.default().plain_kd(), teacher, config)
    steps = max(len(data.train) // settings.batch_size, 1)
    full = seconds * steps * settings.epochs
    lines["full training"] = f"about {clock(full)} ({seconds * 1e3:.1f} ms a step, {steps * settings.epochs:,} steps)"
    workers = max(len(assemble.workers(config)), 1)
    settings_of = config.finals
    tried = settings_of.candidates or 2 * settings_of.recipes
    finals = settings_of.seeds * (settings_of.recipes + 4) + settings_of.first * max(tried - settings_of.recipes, 0)
    upper = searching(config, full / workers) + finals * full / workers
    beside = "teachers, and what plans train beside the student, not counted"
    lines["whole run"] = f"about {clock(upper)} on {workers} worker(s) if nothing is stopped; {beside}"
    return lines


def searching(config: RunConfig, full: float) -> float:
    """Seconds of the search if nothing is stopped: its trials', or the budget's where that ends first.

    Args:
        full: seconds of a full training, shared by the workers.
    """
    trials, seconds = (math.inf if limit is None else limit for limit in (config.budget.trials, config.budget.seconds))
    return min(trials * full * sum(r.epochs * r.data for r in config.fidelity.rungs), seconds)


def _spread(space: SearchSpace, sizes: Sizes) -> str:
    """How large students are."""
    counts = []
    for seed in range(SAMPLED):
        with suppress(TrialFailure):
            counts.append(sizes.of(space.sample(seed).without_distillation(), "parameters")["parameters"])
    between = f", {min(counts):,.0f} to {max(counts):,.0f} parameters" if counts else ""
    return f"no limits; {len(counts)} of {SAMPLED} sampled ones can be built{between}"


def _step_seconds(recipe: Recipe, teacher: TeacherModel, config: RunConfig) -> float:
    """Seconds a step: the difference between a short training and a one-step one is the steps alone."""
    device = pick_device(config.engine.device)
    data = assemble.data(config, device)
    settings = replace(assemble.settings(config), evaluations=1)
    with tempfile.TemporaryDirectory() as folder:
        world = World(data, teacher, replace(settings, epochs=1), Path(folder), config.metric, config.seed)
        share = min(1.0, (TIMED_STEPS + 1) * settings.batch_size / len(data.train))
        with threads(device, data.input_shape[-1]):
            distil(recipe, world, Seeds.search(config.seed), Fidelity("warm-up", data=share / 2))
            began = time.perf_counter()
            done = distil(recipe, world, Seeds.search(config.seed), Fidelity("timing", data=share))
            return (time.perf_counter() - began) / max(done.trained.steps, 1)
