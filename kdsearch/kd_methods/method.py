"""The contract of the catalogue: what a KD method declares and what it computes. Importing this needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from kdsearch.kd_methods.curriculum import Course, Curriculum
from kdsearch.kd_methods.signals import Batch, Companion, DataSpec, ModelSpec, Need, Needs, Signals, Softened, View
from kdsearch.parameters import Declared, Value

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from kdsearch.kd_methods.soft_labels import SoftLabels


@dataclass(frozen=True)
class Stage:
    """A part of a staged training: its share of the budget and what is optimised in it.

    Attributes:
        terms: "own" (only the terms of the method that declares the stage), "others" (every other term), "all" or
            "none".
        labels: whether the hard-label cross-entropy takes part.
        rate: factor on the learning rate.
        best: begins from the weights that scored best on validation in the stage before, not from its last ones.
    """

    name: str
    share: float
    terms: str = "all"
    labels: bool = True
    rate: float = 1.0
    best: bool = False


def alone_first(name: str, share: float, then: str = "student", *, terms: str = "others") -> tuple[Stage, Stage]:
    """A method's own terms without labels for `share` of the budget, then `terms` ("others" or "all") with labels."""
    return Stage(name, share, terms="own", labels=False), Stage(then, 1.0 - share, terms=terms)


class Frozen(Protocol):
    """A frozen teacher and the training data, as `KDMethod.prepare` sees them.

    `spec` holds the paired stages alone, `seed` is for whatever is drawn or initialised. `module` is the network
    itself, for its parameters: whoever runs it goes through `signals`.
    """

    module: nn.Module
    spec: ModelSpec
    data: DataSpec
    device: torch.device
    seed: int

    def signals(
        self,
        needs: frozenset[Need],
        *,
        order: Tensor | None = None,
        apply: Callable[[Tensor], Tensor] | None = None,
        batch_size: int = 256,
    ) -> Iterator[tuple[Tensor, Signals]]:
        """One pass over the training samples as they are: ids [B] and detached signals, in evaluation mode.

        `order` gives the ids to show, in order (all by default); `apply` changes the images [B, ...] first.
        """
        ...


class KDMethod(Declared):
    """One entry of the catalogue. A subclass is one file; everything but `name`, `title` and the loss is optional.

    Class attributes:
        name, slot: the key it registers under and the kind of choice it is in a recipe.
        title, paper, year: what it is and where it comes from.
        needs: the signals its loss reads.
        branches: edits the student must offer (a distillation token, say); the space pairs it with such students only.
        pairing: None where the recipe's layer pairing applies, else the one policy that the method is defined for;
            "separate" gives it all stages of either side, unpaired.
        spatial: reads maps larger than 1×1; the space keeps it away from stages without any.
        reads_labels: of every sample: it cannot be used where some have none.
        additive: its loss is the sum over the layer pairs, so that each pair may have a share of its own.
        same_classes: compares logits class by class, so that teacher and student need the same classes.
        ce_weight: the published weight of the hard-label cross-entropy beside this method.
        views_only: it reads a teacher in its own views alone, never at the batch or at a companion: nothing of these is
            computed or stored for it.
        searched: False keeps it out of a space that does not name it: it changes what is compared, not how well.
        student_view: it changes what the student is shown at test time too, so that baselines keep it.
        prepares: hyper-parameters that `prepare` depends on; others share its result.
        preset: slots of a recipe that holds this method, where the recipe does not mention them.
        functional: the loss as a pure function, reached as `kdsearch.kd_methods.functional.<name>`.
    """

    slot: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    year: ClassVar[int]
    needs: ClassVar[Needs] = Needs()
    branches: ClassVar[frozenset[str]] = frozenset()
    pairing: ClassVar[str | None] = None
    spatial: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = False
    additive: ClassVar[bool] = False
    same_classes: ClassVar[bool] = False
    ce_weight: ClassVar[float] = 1.0
    views_only: ClassVar[bool] = False
    searched: ClassVar[bool] = True
    student_view: ClassVar[bool] = False
    prepares: ClassVar[tuple[str, ...]] = ()
    preset: ClassVar[Mapping[str, Any]] = {}
    functional: ClassVar[Callable[..., Any] | None] = None

    parts: Any = None
    """What `bind` built, set by whoever trains; trained with the student, absent from its size and its export."""

    supplier = "teacher"
    """Who teaches this instance, by its name in the plan; set before `bind` by whoever joins it to another."""

    place = (0, 1)
    """Which supplier of how many that is; set before `bind` where there are several."""

    @classmethod
    def settled(cls, answers: Mapping[str, Value]) -> Mapping[str, Value]:
        """Hyper-parameters whose value follows from those before them: a space does not ask for these.

        Args:
            answers: the hyper-parameters so far, in the order of their declaration.
        """
        return {}

    prepared: Any = None
    """Tensors by name that `prepare` gave for the teacher the method is about to be bound to, or None."""

    def views(self) -> tuple[View, ...]:
        """Extra inputs made of the batch's own images. Asked for after `bind`."""
        return ()

    def companions(self) -> tuple[Companion, ...]:
        """Further samples to be seen beside the batch. Asked for after `bind`."""
        return ()

    def stages(self) -> tuple[Stage, ...]:
        """The stages of a staged method; empty where one stage with all terms will do."""
        return ()

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module | None:
        """Projectors, banks, heads: built once per training, before its first step. Buffers survive a resume.

        Raises:
            ValueError: student and teacher cannot be joined by this method; the message says why.
        """
        return None

    def prepare(self, teacher: Frozen) -> dict[str, Tensor] | None:
        """Work on the teacher alone, done once and cached by content; `bind` then finds it in `self.prepared`.

        `prepared` stays None where a trained student is only put together again: its values then come from its file.
        """
        return None

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """The term's value, a scalar, without its outer weight."""
        raise TypeError(f"{self.name} is a {self.slot} method and has no loss of its own")

    def export(self, student: nn.Module) -> nn.Module:
        """The network to evaluate and hand out: the student itself, unless more of the method stays in it.

        What is given shares the student's parameters, so that it can be evaluated while the student is trained.
        """
        return student


class LossMethod(KDMethod):
    """A method that fills a loss slot: logits, features, relations or tokens. Its `weight` is a hyper-parameter."""

    weight: float


class LogitMethod(LossMethod):
    """A loss on logits.

    Class attributes:
        softens: a temperature policy acts on it although it declares no temperature of its own.
    """

    slot = "logits"
    needs = Needs.of(Need.LOGITS)
    same_classes = True
    softens: ClassVar[bool] = False

    def soften(self, student: Signals, teacher: Signals, batch: Batch) -> Softened:
        """Logits and temperature under the recipe's temperature policy, or at the term's own temperature."""
        if batch.soften is not None:
            return batch.soften(student.logits, teacher.logits, batch)
        return Softened(student.logits, teacher.logits, getattr(self, "temperature", 1.0))


class FeatureMethod(LossMethod):
    """A loss on stage features, paired and in order of depth."""

    slot = "features"
    needs = Needs.of(Need.FEATURES)


class RelationMethod(LossMethod):
    """A loss on how the samples of a batch relate to one another."""

    slot = "relations"


class TokenMethod(LossMethod):
    """A loss on tokens or token heads of a vision transformer."""

    slot = "tokens"


class TemperatureMethod(KDMethod):
    """How logits are softened. `constant` leaves each term its own temperature."""

    slot = "temperature"

    def soften(self, student_logits: Tensor, teacher_logits: Tensor, batch: Batch) -> Softened:
        """Transformed logits and the temperature for every logit term of the recipe."""
        raise TypeError(f"{self.name} does not soften")


class TargetMethod(KDMethod):
    """Where labels or soft labels come from. May add a term of its own (`weight`) and scale the cross-entropy.

    Class attributes:
        of_labels: its term is a part of the label loss (smoothing, say): it shares the cross-entropy's weight, and no
            schedule of the distillation terms switches it off.
    """

    slot = "targets"
    of_labels: ClassVar[bool] = False

    def label_weight(self) -> float:
        """Factor on the hard-label cross-entropy."""
        return 1.0


class ScheduleMethod(KDMethod):
    """When, and how strongly, the distillation terms act."""

    slot = "schedule"

    def distillation_weight(self, progress: float) -> float:
        """Factor on every distillation term, at a share of the training in [0, 1)."""
        return 1.0

    def learning_rate(self, progress: float) -> float:
        """Factor on the learning rate, at a share of the stage in [0, 1)."""
        return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class ViewPolicy:
    """What is shown: how a view is made of a sample. Mixing strengths are Beta parameters; 0 switches mixing off.

    Attributes:
        crop: smallest and largest share of the area of random resized crops, in place of the data set's own crops.
        operations: random changes of shape and colour to each image, one after the other.
        magnitude: their strength, of 10.
        student_resolution: share of the image side that the student sees, in training and after it.
    """

    augment: bool = True
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    crop: tuple[float, float] | None = None
    operations: int = 0
    magnitude: float = 0.0
    # The teacher's stored answers are addressed by the policy's text, and this changes none of them.
    student_resolution: float = field(default=1.0, repr=False)


class DataMethod(KDMethod):
    """What is shown, to student and teacher alike."""

    slot = "data"
    needs_teacher: ClassVar[bool] = False  # a recipe without a logit term cannot use it
    fixed_teacher: ClassVar[bool] = False  # a plan in which nobody is trained beforehand cannot use it

    def policy(self) -> ViewPolicy:
        return ViewPolicy()

    def label_weight(self) -> float:
        """Factor on the hard-label cross-entropy."""
        return 1.0

    def distinct_views(self, views: int) -> int:
        """Different views of each sample, where the run shows `views`."""
        return views

    def soft_labels(self) -> SoftLabels | None:
        """How a fixed teacher's logits are stored; None for as they are."""
        return None

    def curriculum(self, course: Course) -> Curriculum:
        """Which views of which samples each epoch shows: one object for each training."""
        return Curriculum(course)


class AnalysisMethod(KDMethod):
    """What is measured of a trained student beside its teacher. No choice of a recipe."""

    slot = "analysis"

    def measure(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> dict[str, float]:
        """Named numbers of both models' logits [N, C] on a split with labels [N]."""
        raise TypeError(f"{self.name} measures nothing")


class OptimizerMethod(KDMethod):
    """How the student's parameters move."""

    slot = "optimizer"
    split_gradients: ClassVar[bool] = False  # wants task and distillation gradients apart

    def build(self, parameters: list[Tensor]) -> Any:
        """A torch optimizer over these parameters at the declared learning rate.

        With `split_gradients` it offers `step_split(task_gradients, distillation_gradients)`, either list holding None
        where a parameter has no such gradient.
        """
        raise TypeError(f"{self.name} builds no optimizer")
