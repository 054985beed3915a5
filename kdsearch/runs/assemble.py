"""From a config to the things it names: settings, data, teacher, world, ladder, space, engine."""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from kdsearch.errors import UserError
from kdsearch.kd_methods import METHODS, ModelSpec
from kdsearch.runs import datasets, teacher
from kdsearch.runs.config import RunConfig
from kdsearch.runs.data import Data
from kdsearch.runs.engines import Engine
from kdsearch.runs.engines.local import LocalEngine
from kdsearch.runs.engines.pool import PoolEngine
from kdsearch.runs.folder import RunFolder
from kdsearch.runs.jobs import Ladder
from kdsearch.runs.settings import Settings, pick_device
from kdsearch.runs.sizes import PLAIN, Sizes
from kdsearch.runs.trial import Runner
from kdsearch.runs.world import World
from kdsearch.search_space.recipe import NEUTRAL
from kdsearch.search_space.space import SearchSpace


def settings(config: RunConfig) -> Settings:
    fidelity = config.fidelity
    return Settings(
        epochs=fidelity.epochs,
        batch_size=fidelity.batch_size,
        views=fidelity.views or fidelity.epochs,
        precision=fidelity.precision,
        channels_last=fidelity.channels_last,
        evaluations=fidelity.evaluations,
        cache_limit=int(min(fidelity.cache_limit_mib * 2**20, sys.maxsize)),  # infinite where nothing limits it
        checkpoint_seconds=fidelity.checkpoint_seconds,
    )


def data(config: RunConfig, device: torch.device) -> Data:
    given = config.data
    return datasets.load(
        given.name,
        root=given.root,
        validation=given.validation,
        samples=given.samples,
        image_size=given.image_size,
        shift=given.shift,
        flip=given.flip,
        crop=given.crop,
        labelled=given.labelled,
        unlabelled=given.unlabelled,
        loader_workers=given.loader_workers,
        device=device,
    )


def ladder(config: RunConfig) -> Ladder:
    rungs = tuple(rung.fidelity() for rung in config.fidelity.rungs)
    limits = config.limits
    return Ladder(
        rungs,
        config.proxies.scored,
        config.proxies.prune_by,
        limits={name: limit for name, limit in limits.given().items() if name in PLAIN},
        batch=limits.batch,
    )


def cache(config: RunConfig, folder: Path) -> Path:
    return Path(config.cache).expanduser() if config.cache else folder / "cache"


def world(config: RunConfig, folder: Path, device: str, progress: teacher.Progress | None = None) -> World:
    """Data and teacher on a device. The teacher is trained here if it is not there yet."""
    target = pick_device(device)
    loaded, how = data(config, target), settings(config)
    place = cache(config, folder)
    model = teacher.prepare(config, loaded, how, place, progress)
    others = teacher.further(config, loaded, how, place, progress)
    return World(loaded, model, how, place, config.metric, config.seed, others=others)


def runner(folder: str, device: str) -> Runner:
    """What a worker process builds: everything from the run's folder."""
    place = RunFolder(folder)
    config = place.read()
    return Runner(world(config, place.path, device), ladder(config), place.path)


def sizes(config: RunConfig, loaded: Data, model: ModelSpec | None, folder: Path) -> Sizes:
    """What measures students beside the limits; `folder` is where latencies are kept."""
    return Sizes(loaded, model, folder, config.limits.given(), config.limits.batch)


def space(whole: SearchSpace, model: ModelSpec | None, classes: int, *, partly: bool = False) -> SearchSpace:
    """The space without what compares logits class by class where the teacher has other classes, and without what
    reads every label where the data is labelled in part.

    Raises:
        UserError: nothing is left of a slot.
    """
    found = SearchSpace(whole.options, ce_weight=whole.ce_weight, pairing=whole.pairing, max_terms=whole.max_terms)
    others = model is not None and model.classes != classes
    for slot, entries in found.options.items():
        if slot in ("student", "transform"):
            continue
        unfit = [
            name
            for name in entries
            if name in METHODS and ((others and METHODS[name].same_classes) or (partly and METHODS[name].reads_labels))
        ]
        if unfit and len(unfit) == len(entries):
            reason = "reads every label, and some are missing" if partly else "compares logits class by class"
            raise UserError(f"space.{slot}: each of {', '.join(unfit)} {reason}; add an entry that does not")
        for name in unfit:
            del entries[name]
    return found


def workers(config: RunConfig) -> list[str]:
    """The devices of the local workers: a core each, or a GPU each where there are several."""
    engine = config.engine
    device = pick_device(engine.device)
    gpus = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 0
    if gpus > 1:
        count = engine.workers or gpus
        return [f"cuda:{k % gpus}" for k in range(count)]
    count = engine.workers or (len(os.sched_getaffinity(0)) if device.type == "cpu" else 1)
    return [str(device)] * count


def engine(config: RunConfig, place: RunFolder, here: World) -> Engine:
    """The engine of the config.

    Raises:
        UserError: Ray is asked for and not installed.
    """
    if config.engine.name == "ray":
        if find_spec("ray") is None:
            raise UserError("engine.name: ray is not installed; pip install 'kdsearch[ray]'")
        from kdsearch.runs.engines.ray import RayEngine

        return RayEngine(partial(runner, str(place.path)), config.engine)
    devices = workers(config)
    if len(devices) == 1:
        return LocalEngine(Runner(here, ladder(config), place.path))
    return PoolEngine(partial(runner, str(place.path)), devices)


NEUTRAL_WEIGHT = 2.0  # how much likelier a neutral choice is; on kdbench more than a hint costs more than it saves


def priors(found: SearchSpace) -> dict[str, dict[str, float]]:
    """Weights of the choices of each slot: plain recipes first, so that one departure at a time is tried."""
    weights: dict[str, dict[str, float]] = {}
    for slot, entries in found.options.items():
        neutral = NEUTRAL.get(slot, "none")
        if neutral in entries and len(entries) > 1:
            own = NEUTRAL_WEIGHT if slot != "logits" else 1.0
            decision = "student.transform" if slot == "transform" else slot
            weights[decision] = {name: own if name == neutral else 1.0 for name in entries}
    return weights


def knowledge(found: SearchSpace) -> dict[str, dict[str, Any]]:
    """What a run tells searchers of its space, by the name under which they ask for it."""
    return {"defaults": defaults(found), "priors": dict(priors(found))}


def defaults(found: SearchSpace) -> dict[str, object]:
    """The published answers of a space by decision: what a searcher may try first at each."""
    answers: dict[str, object] = {}
    for slot, entries in found.options.items():
        prefix = "student" if slot in ("student", "transform") else slot
        for name, hyper in entries.items():
            answers |= {f"{prefix}.{name}.{key}": parameter.default for key, parameter in hyper.items()}
    return answers
