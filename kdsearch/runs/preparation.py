"""What methods prepare of a frozen teacher: done once, kept by content, shared by trials and workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kdsearch.errors import TrialFailure
from kdsearch.kd_methods import DataSpec, KDMethod, ModelSpec, Need, Signals
from kdsearch.runs import kept
from kdsearch.runs.assistants import Costs
from kdsearch.runs.world import TeacherModel, World
from kdsearch.search_space.recipe import content_hash


class FrozenTeacher:
    """A teacher and the training data as `KDMethod.prepare` sees them (`kd_methods.Frozen`)."""

    def __init__(self, model: TeacherModel, spec: ModelSpec, stages: list[int], world: World) -> None:
        self.module, self.spec = model.network.module, spec
        self.seed, self.device = world.seed, world.device
        self.data: DataSpec = world.data_spec()
        self._model, self._stages, self._data = model, stages, world.data

    def signals(
        self,
        needs: frozenset[Need],
        *,
        order: Tensor | None = None,
        apply: Callable[[Tensor], Tensor] | None = None,
        batch_size: int = 256,
    ) -> Iterator[tuple[Tensor, Signals]]:
        """One pass over the training samples as they are: ids [B] and detached signals, in evaluation mode."""
        network = self._model.network
        network.module.eval()
        ids = torch.arange(len(self._data.train), device=self.device) if order is None else order.to(self.device)
        network.listen(needs, self._model.spec, self._stages)
        try:
            for part in ids.split(batch_size):
                images, target = self._data.train.take(part), self._data.train.labels[part]
                if apply is not None:
                    images = apply(images)
                    target = target.repeat_interleave(len(images) // len(part))
                with torch.no_grad():  # not around the yield: what is done with the signals may need gradients
                    signals = network(images, target).detach().float()
                yield part, signals
        finally:
            network.close()


class Preparation:
    """Carries out `KDMethod.prepare` for one training, and keeps account of what it cost.

    Attributes:
        costs: of the values prepared so far.
    """

    def __init__(self, world: World, suppliers: dict[str, TeacherModel]) -> None:
        self.world, self.suppliers = world, suppliers
        self.costs = Costs()

    def __call__(self, method: KDMethod, supplier: str, spec: ModelSpec, stages: list[int]) -> dict[str, Tensor] | None:
        """The prepared tensors, made here or found.

        Raises:
            TrialFailure: the supplier is no fixed network ("invalid").
        """
        world = self.world
        if supplier not in self.suppliers:
            raise TrialFailure("invalid", f"{method.name} prepares its teacher beforehand; {supplier} is no fixed one")
        model = self.suppliers[supplier]
        key = content_hash(
            {
                "method": method.name,
                "hyper": {name: method.hyper[name] for name in method.prepares},
                "teacher": model.hash,
                "data": world.data.fingerprint,
                "stages": stages,
                "seed": world.seed,
            }
        )
        path = world.cache / "prepared" / f"{method.name}-{key}.safetensors"
        found = kept.tensors(path, lambda: method.prepare(FrozenTeacher(model, spec, stages, world)), world.device)
        if found is None:
            return None
        self.costs += found[1]
        return found[0]
