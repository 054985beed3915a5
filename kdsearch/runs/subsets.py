"""Which samples a cheap training learns from, where the teacher's doubt has a say in it."""

from __future__ import annotations

import torch
from torch import Tensor

from kdsearch.runs import kept
from kdsearch.runs.assistants import Costs
from kdsearch.runs.data import Data
from kdsearch.runs.fidelity import Fidelity
from kdsearch.runs.metrics import predict
from kdsearch.runs.settings import Seeds
from kdsearch.runs.world import TeacherModel, World


def chosen(world: World, fidelity: Fidelity, seeds: Seeds, notes: list[str]) -> tuple[Tensor, Costs]:
    """Ids of the samples, sorted, and what it cost to know them. Without a teacher they are class-balanced."""
    if fidelity.data >= 1 or fidelity.select == "balanced":
        return world.data.subset(fidelity.data, seeds.order), Costs()
    if world.teacher is None:
        notes.append("samples are class-balanced: there is no teacher whose doubt could choose them")
        return world.data.subset(fidelity.data, seeds.order), Costs()
    found, costs = entropies(world.teacher, world)
    return world.data.subset(fidelity.data, seeds.order, found), costs


def entropies(teacher: TeacherModel, world: World) -> tuple[Tensor, Costs]:
    """Of the teacher's prediction of every training sample as it is [N], in nats: predicted once, kept by content."""
    path = world.cache / "entropies" / f"{teacher.hash}-{world.data.fingerprint}.safetensors"
    found = kept.tensors(path, lambda: {"entropies": _predicted(teacher, world.data)})
    assert found is not None
    return found[0]["entropies"], found[1]


def _predicted(teacher: TeacherModel, data: Data) -> Tensor:
    logs = predict(teacher.network, data.train).log_softmax(1)
    return torch.special.entr(logs.exp()).sum(1)
