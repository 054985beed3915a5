"""What every training of a run shares: data, teacher, settings, and the folder of things made once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from kdsearch.errors import UserError
from kdsearch.kd_methods import DataSpec, ModelSpec
from kdsearch.kd_methods.strategy import TEACHER
from kdsearch.runs.data import Data
from kdsearch.runs.metrics import COMPARING, predict, represent
from kdsearch.runs.network import Network
from kdsearch.runs.settings import Settings


@dataclass
class TeacherModel:
    """A frozen network that can teach: its content hash addresses everything derived from it."""

    network: Network
    spec: ModelSpec
    hash: str
    name: str
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    predictions: Tensor | None = None
    representations: dict[str, Tensor] = field(default_factory=dict)

    def validation(self, data: Data) -> Tensor | None:
        """Its logits [N, C] on the validation split, predicted once; None where it knows other classes."""
        if self.predictions is None and self.spec.classes == data.classes:
            self.predictions = predict(self.network, data.validation)
        return self.predictions

    def embeddings(self, data: Data, split: str = "validation") -> Tensor:
        """Its embeddings [N, D] of the validation or test split, computed once."""
        if split not in self.representations:
            self.representations[split] = represent(self.network, getattr(data, split))[1]
        return self.representations[split]


@dataclass
class World:
    """Data, teacher and settings of a run, on one device.

    Attributes:
        cache: folder of stored signals and of models trained once (assistants); shared by all workers of a run.
        others: further fixed teachers, by name: "teacher2" and so on.
    """

    data: Data
    teacher: TeacherModel | None
    settings: Settings
    cache: Path
    metric: str = "accuracy"
    seed: int = 0
    assistants: dict[str, TeacherModel] = field(default_factory=dict)
    others: dict[str, TeacherModel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises UserError where the metric compares embeddings and the teacher has none."""
        if self.metric in COMPARING and self.teacher is not None and self.teacher.spec.embedding is None:
            raise UserError(f"metric: {self.metric} compares embeddings, and teacher {self.teacher.name} has none")

    @property
    def judge(self) -> str:
        """The metric that trainings here are watched by: nll where the run's compares with a teacher and none is."""
        return "nll" if self.metric in COMPARING and self.teacher is None else self.metric

    def reference(self, split: str = "validation") -> Tensor | None:
        """The teacher's embeddings [N, D] of a split where the metric compares with them; None elsewhere."""
        if self.metric not in COMPARING or self.teacher is None:
            return None
        return self.teacher.embeddings(self.data, split)

    @property
    def teachers(self) -> dict[str, TeacherModel]:
        """All fixed teachers by name, the first one's before the others'."""
        return {} if self.teacher is None else {TEACHER: self.teacher, **self.others}

    def data_spec(self) -> DataSpec:
        """What methods may know of the training data, the largest batch included."""
        return replace(self.data.spec(), batch=self.settings.batch_size)

    @property
    def device(self) -> torch.device:
        return self.data.device
