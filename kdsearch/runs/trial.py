"""One job, rung by rung. A generator: whoever drives it records each result and decides whether to go on."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Generator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch import proxies as proxy_room
from kdsearch.errors import TrialFailure
from kdsearch.runs import models
from kdsearch.runs.distil import Distilled, distil, examine
from kdsearch.runs.fidelity import FULL, Fidelity
from kdsearch.runs.jobs import FINAL, Failure, Job, Ladder, RungResult
from kdsearch.runs.settings import Seeds
from kdsearch.runs.sizes import Sizes, architecture
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import Recipe
from kdsearch.search_space.validity import problem

PROXY_BATCH = 64


class Runner:
    """Runs jobs in one world. Keeps what trials share in this process: sizes and proxy scores of student
    architectures.
    """

    def __init__(self, world: World, ladder: Ladder, folder: Path) -> None:
        self.world, self.ladder, self.folder = world, ladder, folder
        teacher = world.teacher.spec if world.teacher else None
        self._sizes = Sizes(world.data, teacher, world.cache, ladder.limits, ladder.batch)
        self._scores: dict[str, dict[str, float]] = {}

    def run(self, job: Job) -> Generator[RungResult, None, None]:
        """The job's rungs, one result at a time.

        Raises:
            TrialFailure: a deterministic failure of the recipe.
        """
        recipe = Recipe.from_dict(job.recipe)
        if job.kind == FINAL:
            yield self._final(job, recipe)
            return
        size = self.check(recipe)
        seeds = Seeds.search(job.seed)
        if not job.protected and recipe.distils:
            began = time.perf_counter()
            examine(recipe, self.world, seeds, *self.ladder.rejection)
            yield RungResult("rejection", math.nan, time.perf_counter() - began, trained=False)
        if self.ladder.proxies and job.scored:
            yield self._proxies(recipe, job.seed)
        for rung in self.ladder.rungs:
            checkpoint = self.folder / "work" / f"{recipe.hash}-{rung.name}-{job.seed}.pt"
            result = self._train(recipe, seeds, rung, checkpoint)
            result.size = size
            yield result

    def _train(self, recipe: Recipe, seeds: Seeds, rung: Fidelity, checkpoint: Path | None) -> RungResult:
        done = distil(recipe, self.world, seeds, rung, checkpoint=checkpoint)
        return _result(done, rung.name, self.world.metric)

    def _final(self, job: Job, recipe: Recipe) -> RungResult:
        name = f"{recipe.hash}-{job.seed}"
        checkpoint = self.folder / "work" / f"final-{name}.pt"
        done = distil(recipe, self.world, Seeds.finalist(self.world.seed, job.seed), FULL, checkpoint=checkpoint)
        path = self.folder / "finals" / f"{name}.safetensors"
        models.save(done.trained.module, path, {"recipe": recipe.hash, "seed": str(job.seed), **done.trained.metadata})
        result = _result(done, "final", self.world.metric)
        result.size = self.check(recipe)
        result.weights = str(path.relative_to(self.folder))
        return result

    def check(self, recipe: Recipe) -> dict[str, float]:
        """Rung 0: the recipe is valid, its student within the limits. Gives the student's size.

        Raises:
            TrialFailure: it is not ("invalid").
        """
        found = problem(recipe, self.world.teacher.spec if self.world.teacher else None, self.world.data.classes)
        if found:
            raise TrialFailure("invalid", found)
        over = self._sizes.over(recipe)
        if over:
            raise TrialFailure("invalid", over)
        return self.sizes(recipe)

    def sizes(self, recipe: Recipe) -> dict[str, float]:
        """Parameters, MACs and memory of the recipe's student, measured once per architecture."""
        return self._sizes.of(recipe)

    def _proxies(self, recipe: Recipe, seed: int) -> RungResult:
        began = time.perf_counter()
        scores = self.scores(recipe, seed)
        score = scores.get(self.ladder.prune_by or "", math.nan)
        return RungResult("proxies", score, time.perf_counter() - began, trained=False, metrics=dict(scores))

    def scores(self, recipe: Recipe, seed: int) -> dict[str, float]:
        """Training-free scores of the student beside the teacher. An architecture is scored once."""
        key = architecture(recipe)
        if key not in self._scores:
            data = self.world.data
            ids = _shown(data.train.labels)
            images, target = data.train.take(ids), data.train.labels[ids]
            teacher = self.world.teacher.network.module if self.world.teacher else None
            with torch.random.fork_rng(devices=[]):
                torch.random.default_generator.manual_seed(seed)
                module = models.student(recipe, data).to(data.device)
            images = F.interpolate(images, size=models.input_shape(recipe, data)[1:], mode="bilinear", antialias=True)
            normal = (images - data.mean.view(1, -1, 1, 1)) / data.std.view(1, -1, 1, 1)

            def score(name: str) -> float:
                try:
                    return proxy_room.create(name).score(module, teacher, normal, target, seed=seed)
                except ValueError:  # not defined for such a student: as bad as not finite, and no reason to fail
                    return -math.inf

            self._scores[key] = {name: score(name) for name in self.ladder.proxies}
        return self._scores[key]


def _shown(labels: Tensor) -> Tensor:
    """Ids of the images that proxies see, evenly over those that have a label; others where these are too few."""
    ids, others = ((labels < 0).eq(unknown).nonzero().squeeze(1) for unknown in (False, True))
    ids = torch.cat([ids, others[: max(0, PROXY_BATCH - len(ids))]])
    return ids[:: max(1, len(ids) // PROXY_BATCH)][:PROXY_BATCH]


def _result(done: Distilled, name: str, metric: str) -> RungResult:
    trained = done.trained
    score, nll = trained.metrics[metric], trained.metrics["nll"]
    if not math.isfinite(score) or math.isnan(nll):  # the last step may blow up behind losses that were finite
        raise TrialFailure("non-finite", f"{metric} = {score:g} and nll = {nll:g} after the last step")
    return RungResult(
        name,
        score,
        done.seconds,
        metrics=trained.metrics,
        curve=trained.curve,
        losses=trained.losses,
        assistants=done.assistants,
        charged=done.charged,
        notes=done.notes,
        tables=done.tables,
    )


def failure(error: BaseException) -> Failure:
    """What a job's exception means: the recipe's own fault, or the machine's."""
    if isinstance(error, TrialFailure):
        return Failure(error.reason, str(error), deterministic=True)
    trace = "".join(traceback.format_exception(error))
    line = str(error).splitlines()[0] if str(error) else ""
    # A full disk or a lost file system is not the recipe's fault; everything else would happen again.
    return Failure("raised", f"{type(error).__name__}: {line}", not isinstance(error, OSError), trace)
