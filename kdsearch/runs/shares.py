"""How unlike the untrained student is to each teacher, layer by layer: what training-free shares are made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods import ModelSpec, Need, Signals
from kdsearch.kd_methods.strategy import TeachingStrategy
from kdsearch.runs.data import spread
from kdsearch.runs.network import Network
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.pairing import pair
from kdsearch.search_space.recipe import Recipe

SAMPLES = 256  # training images that are looked at


def layer_shares(
    recipe: Recipe, student: Network, suppliers: dict[str, TeacherModel], world: World
) -> dict[str, list[float]] | None:
    """The shares of the suppliers at each layer pair of the recipe's pairing, where its strategy weighs them.

    Raises:
        TrialFailure: the layers of student and teacher cannot be paired ("invalid").
    """
    strategy = recipe.strategy()
    if len(suppliers) < 2 or type(strategy).weigh is TeachingStrategy.weigh:
        return None
    return strategy.weigh(distances(recipe, student, suppliers, world))


@torch.no_grad()
def distances(
    recipe: Recipe, student: Network, suppliers: dict[str, TeacherModel], world: World
) -> dict[str, list[float]]:
    """By supplier, ‖G(student) - G(teacher)‖² at each layer pair.

    G is the matrix of inner products between the samples' stage outputs, its rows brought to length one: the relation
    distance of DisWOT (CVPR 2023), which needs neither equal channels nor equal sizes.
    """
    data = world.data
    images = data.train.take(spread(torch.arange(len(data.train), device=data.device), SAMPLES))
    spec = student.spec(data.input_shape)
    pairs = {}
    for name, model in suppliers.items():
        try:
            pairs[name] = pair(spec.stages, model.spec.stages, recipe.pairing)
        except ValueError as error:
            raise TrialFailure("invalid", f"teaching: {error}") from None
    wanted = sorted({k for own, _ in pairs.values() for k in own})
    own_features = dict(zip(wanted, _features(student, spec, wanted, images), strict=True))
    found: dict[str, list[float]] = {}
    for name, model in suppliers.items():
        own, theirs = pairs[name]
        stages = sorted(set(theirs))
        features = dict(zip(stages, _features(model.network, model.spec, stages, images), strict=True))
        gaps = [(_gram(own_features[a]) - _gram(features[b])).square().sum() for a, b in zip(own, theirs, strict=True)]
        found[name] = torch.stack(gaps).tolist()
    return found


def _features(network: Network, spec: ModelSpec, stages: list[int], images: Tensor) -> list[Tensor]:
    training = network.module.training
    network.module.eval()
    network.listen(frozenset({Need.LOGITS, Need.FEATURES}), spec, stages)
    try:
        signals: Signals = network(images)
        return [feature.float() for feature in signals.features]
    finally:
        network.close()
        network.module.train(training)


def _gram(feature: Tensor) -> Tensor:
    flat = feature.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)
