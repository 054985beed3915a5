"""Who teaches. A strategy states a plan; the run carries it out and hands over everybody's signals.

In a step each supplier of the plan's `teachers` gives its signals, `lessons` pairs them with the student's, and every
term of the recipe is applied to every lesson. So any loss works under any strategy that supplies what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kdsearch.kd_methods.method import KDMethod
from kdsearch.kd_methods.signals import Batch, Need, Signals

if TYPE_CHECKING:
    from torch import Tensor, nn

TEACHER = "teacher"  # the run's fixed teacher; further ones are teacher2, teacher3, ...
EVERY = "every"  # all of the run's fixed teachers
PEERS = "peers"  # the other learners of the same step
PIVOT = "pivot"  # the run's teacher as a learner: it is trained on while it teaches
HYBRID = "hybrid"  # the learners' mean in weight space; its losses reach all of them
AVERAGE = "average"  # the student's own moving average
SELF = "self"  # the student's own signals, cut off from the graph


def peer(index: int) -> str:
    """The supplier's name of one learner, 0 being the student, where a plan's learners differ in size."""
    return f"peer{index}"


@dataclass(frozen=True)
class Pretrain:
    """A model to train before the student (cached by content, its cost counted in the trial's).

    Attributes:
        name: how `teachers` of later models and of the plan refer to it.
        size: 0 for the student's size, 1 for the teacher's, in between on the scale of log parameters.
        teachers: who teaches it: `"teacher"` or names trained before it; empty for labels only.
        by: the losses it learns by. "kd": plain KD at published defaults, each teacher with the same share; "strategy":
            plain KD in this strategy's own lessons; "recipe": everything that the student learns by.
        generation: another one has other initial weights and another order of samples.
    """

    name: str
    size: float
    teachers: tuple[str, ...] = (TEACHER,)
    by: str = "kd"
    generation: int = 0


@dataclass(frozen=True)
class Plan:
    """Whom to train, and who supplies signals to the student.

    Attributes:
        teachers: suppliers of the student's lessons: TEACHER, EVERY, PEERS, PIVOT, HYBRID, AVERAGE, SELF or names in
            `pretrain`.
        pretrain: models trained beforehand, in order.
        members: names in `pretrain` that `combine` puts together with the student in the network that is handed out.
        residuals: further students, at most, trained one after the other to correct the sum of those before.
        residual_size: their share of the student's channels.
        peers: further learners, trained in the same steps.
        peer_size: theirs, as in `Pretrain.size`; 0 for the student's own architecture.
        peer_sizes: one size for each peer. Learners then are suppliers of their own: `peer(0)`, the student, and so on;
            each learner's strategy has its place among them in `place`.
        peers_learn: whether peers take lessons too; otherwise they learn from labels alone.
        turns: learners move one after the other, each seeing the present answers of all others.
        alike: all learners begin with the student's initial weights.
        own_views: each learner sees its own view of the samples; not where views are mixtures of samples.
        pivot: learning rate of PIVOT over the student's.
        fuse: share of the learners' mean that is blended into each of them, every `fuse_every` steps (0: every epoch).
        average: decay of the student's moving average; 0 keeps none.
        second_view: AVERAGE sees another view of each sample than the student does, under the same condition.
        keep: whose weights are the result: "student", AVERAGE or HYBRID.
    """

    teachers: tuple[str, ...] = (TEACHER,)
    pretrain: tuple[Pretrain, ...] = ()
    members: tuple[str, ...] = ()
    residuals: int = 0
    residual_size: float = 1.0
    peers: int = 0
    peer_size: float = 0.0
    peer_sizes: tuple[float, ...] = ()
    peers_learn: bool = True
    turns: bool = False
    alike: bool = False
    own_views: bool = False
    pivot: float = 0.0
    fuse: float = 0.0
    fuse_every: int = 0
    average: float = 0.0
    second_view: bool = False
    keep: str = "student"


@dataclass
class Lesson:
    """One pairing of a learner's signals with a teacher's, and its share of the distillation objective.

    `supplier` is the name in the plan's `teachers` that the teacher's signals came from; terms keep projectors for
    each.
    """

    student: Signals
    teacher: Signals
    weight: float | Tensor = 1.0
    supplier: str = TEACHER


ALL_SIGNALS = frozenset(Need)


class TeachingStrategy(KDMethod):
    """Base of the teaching slot.

    Class attributes:
        supplies: the teacher-side signals that a lesson under this strategy has; terms that read others are invalid.
        learns: the student-side signals that its lessons have: those of early exits, say, are few.
        needs: signals of the student that the strategy itself reads.
        own_objective: `loss` is the published objective of a lesson; it stands in where the recipe has no logit term.
        shaping: hyper-parameters that say which models there are and nothing of how each is trained: models of plans
            that differ in these alone are the same.
    """

    slot = "teaching"
    supplies: ClassVar[frozenset[Need]] = ALL_SIGNALS
    learns: ClassVar[frozenset[Need]] = ALL_SIGNALS
    own_objective: ClassVar[bool] = False
    shaping: ClassVar[tuple[str, ...]] = ()

    suppliers: tuple[str, ...] = ()
    """Who teaches in this training, by name: a model of the plan may have fewer teachers than the student. Set before
    `label_weight` is asked for."""

    def plan(self) -> Plan:
        """What is to be trained, and who teaches the student."""
        return Plan()

    def lessons(self, student: Signals, teachers: dict[str, list[Signals]], batch: Batch) -> list[Lesson]:
        """Pairings of this step, with their shares. `teachers` holds each supplier's signals, detached.

        Under HYBRID `student.views[HYBRID]` are its signals within the graph.
        """
        supplied = [(name, signals) for name, given in teachers.items() for signals in given]
        return [Lesson(student, signals, 1.0 / len(supplied), name) for name, signals in supplied]

    def supervise(self, student: Signals, batch: Batch) -> Tensor | None:
        """Label losses beside the main cross-entropy: those of early exits, say."""
        return None

    def label_weight(self) -> float:
        """Factor on the hard-label cross-entropy of the main output."""
        return 1.0

    def distillation_weight(self, progress: float) -> float:
        """Factor on every lesson, at a share of the training in [0, 1)."""
        return 1.0

    def weigh(self, distances: Mapping[str, Sequence[float]]) -> dict[str, list[float]] | None:
        """Shares of the suppliers, one for each paired layer, from training-free distances; None weighs them alike.

        Args:
            distances: by supplier, of the untrained student to it at each layer pair of the recipe's pairing.
        """
        return None

    def intensive(self, images: Tensor, answers: Sequence[Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """What PIVOT is trained on in this step: images [B, ...] and soft labels [B, C].

        Args:
            images: of the batch.
            answers: all other learners' logits [B, C].
        """
        raise TypeError(f"{self.name} has no pivot")

    def combine(self, members: Sequence[nn.Module], student: nn.Module) -> nn.Module:
        """The network handed out, of the plan's `members` or earlier residual students, frozen, and the student.

        It shares the student's parameters, so that it can be evaluated while the student is trained.
        """
        raise TypeError(f"{self.name} combines no networks")

    def enough(self, energies: Sequence[float]) -> bool:
        """Whether no further residual student is trained. `energies` are what the gap to the teacher has left, first
        without any residual student, then after each.
        """
        return False
