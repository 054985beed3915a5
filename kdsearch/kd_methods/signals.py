"""What a method may read: the signals of student and teacher, and the batch they belong to.

A method never calls a model. It declares what it `needs`; whoever runs the models fills these records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator, Tensor


class Need(StrEnum):
    """A signal by name."""

    LOGITS = "logits"  # [B, C]
    FEATURES = "features"  # stage outputs after their activation: maps [B, C, H, W] or tokens [B, N, D]
    PREACT = "preact"  # the same stages before their last activation
    EMBEDDING = "embedding"  # [B, D], what the classifier reads
    MAP = "map"  # [B, D, H, W], the map whose mean over positions is the embedding
    CLASSIFIER = "classifier"  # weight [C, D] and bias [C] of the last linear layer
    INPUT = "input"  # [B, ...], the images as the model saw them, part of the graph of its signals
    INPUT_GRADIENT = "input_gradient"  # [B, ...], d logit[true class] / d input
    ATTENTION_GRADIENT = "attention_gradient"  # by stage [B, ...], d its largest attention / d input; reads FEATURES
    DISTILLATION_HEAD = "distillation_head"  # [B, C], the extra head of a distilled transformer
    TOKEN_HEADS = "token_heads"  # [B, C] each, all extra heads of a transformer, in order
    PATCH_LOGITS = "patch_logits"  # [B, N, C], the last patch tokens through the head of the distillation token
    QKV = "qkv"  # by stage [B, 3, heads, N, d]: queries, keys and values of its last attention, prefix tokens first


UNLABELLED = -100
"""The label of a sample that has none; torch's cross-entropy leaves it out."""

STAGED = frozenset({Need.FEATURES, Need.PREACT, Need.QKV, Need.ATTENTION_GRADIENT})
"""What is read at the paired stages, one tensor a stage."""


@dataclass(frozen=True)
class Needs:
    """Signals that a method reads of the student and of the teacher."""

    student: frozenset[Need] = frozenset()
    teacher: frozenset[Need] = frozenset()

    @staticmethod
    def of(*both: Need, student: tuple[Need, ...] = (), teacher: tuple[Need, ...] = ()) -> Needs:
        """`both` from either side, plus what only one side has to give."""
        return Needs(frozenset(both + student), frozenset(both + teacher))

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.student | other.student, self.teacher | other.teacher)


@dataclass
class Signals:
    """One model's answer to one batch. Fields that nobody needs stay empty.

    In a term, `features`, `preact` and `qkv` hold the *paired* stages only: entry k of the student goes with entry k of
    the teacher, in order of depth. `input` is there to be differentiated by: it stays whole where the other fields are
    rows of a larger batch, of which the batch's own images are the first rows.
    """

    logits: Tensor
    features: list[Tensor] = field(default_factory=list)
    preact: list[Tensor] = field(default_factory=list)
    embedding: Tensor | None = None
    map: Tensor | None = None
    classifier: tuple[Tensor, Tensor | None] | None = None
    input: Tensor | None = None
    input_gradient: Tensor | None = None
    attention_gradient: list[Tensor] = field(default_factory=list)
    distillation_head: Tensor | None = None
    token_heads: list[Tensor] = field(default_factory=list)
    patch_logits: Tensor | None = None
    qkv: list[Tensor] = field(default_factory=list)
    views: dict[str, Signals] = field(default_factory=dict)

    def detach(self) -> Signals:
        """The same values, cut off from the graph: a teacher's signals."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach()

        return Signals(
            logits=self.logits.detach(),
            features=[f.detach() for f in self.features],
            preact=[f.detach() for f in self.preact],
            embedding=cut(self.embedding),
            map=cut(self.map),
            classifier=None if self.classifier is None else (self.classifier[0].detach(), cut(self.classifier[1])),
            input_gradient=cut(self.input_gradient),
            attention_gradient=[gradient.detach() for gradient in self.attention_gradient],
            distillation_head=cut(self.distillation_head),
            token_heads=[head.detach() for head in self.token_heads],
            patch_logits=cut(self.patch_logits),
            qkv=[x.detach() for x in self.qkv],
            views={name: view.detach() for name, view in self.views.items()},
        )

    def rows(self, start: int, stop: int) -> Signals:
        """The answer to a part of the batch."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[start:stop]

        return Signals(
            logits=self.logits[start:stop],
            features=[f[start:stop] for f in self.features],
            preact=[f[start:stop] for f in self.preact],
            embedding=cut(self.embedding),
            map=cut(self.map),
            classifier=self.classifier,
            input=self.input,
            input_gradient=cut(self.input_gradient),
            attention_gradient=[gradient[start:stop] for gradient in self.attention_gradient],
            distillation_head=cut(self.distillation_head),
            token_heads=[head[start:stop] for head in self.token_heads],
            patch_logits=cut(self.patch_logits),
            qkv=[x[start:stop] for x in self.qkv],
        )

    def float(self) -> Signals:
        """The same signals in float32: losses are computed outside autocast."""

        def up(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.float()

        return replace(
            self,
            logits=self.logits.float(),
            features=[f.float() for f in self.features],
            preact=[f.float() for f in self.preact],
            embedding=up(self.embedding),
            map=up(self.map),
            input_gradient=up(self.input_gradient),
            attention_gradient=[gradient.float() for gradient in self.attention_gradient],
            distillation_head=up(self.distillation_head),
            token_heads=[head.float() for head in self.token_heads],
            patch_logits=up(self.patch_logits),
            qkv=[x.float() for x in self.qkv],
            views={name: view.float() for name, view in self.views.items()},
        )

    def select(self, stages: list[int]) -> Signals:
        """Only these stages, in this order."""
        return replace(
            self,
            features=[self.features[k] for k in stages] if self.features else [],
            preact=[self.preact[k] for k in stages] if self.preact else [],
            qkv=[self.qkv[k] for k in stages] if self.qkv else [],
            attention_gradient=[self.attention_gradient[k] for k in stages] if self.attention_gradient else [],
            views={name: view.select(stages) for name, view in self.views.items()},
        )


@dataclass
class Softened:
    """Logits and the temperature at which both are compared: float, [B, 1], or (student's, teacher's)."""

    student: Tensor
    teacher: Tensor
    temperature: float | Tensor | tuple[Any, Any]


@dataclass
class Batch:
    """What a step is about, beside the two models' signals.

    Attributes:
        target: [B] class labels, UNLABELLED where there is none; under mixup the label of the larger share.
        soft_target: [B, C] mixed labels under mixup or cutmix, else None; no share of a class for what has no label.
        ids: [B] sample ids in 0..N-1 of the training split; they address memory banks.
        progress: share of the present stage that is done, in [0, 1).
        generator: for draws a method makes itself, on the tensors' device.
        soften: the recipe's temperature policy; None leaves each term its own temperature.
        views: by name, the batch that a view or companion of this step makes: its own labels and ids.
        share: [B], in a view that mixes two images: the share of the first.
        aside: what a view's `apply` gave beside its images, such as the mask it has drawn.
        partly: some training samples have no label.
    """

    target: Tensor
    ids: Tensor
    progress: float = 0.0
    soft_target: Tensor | None = None
    generator: Generator | None = None
    soften: Callable[[Tensor, Tensor, Batch], Softened] | None = None
    views: dict[str, Batch] = field(default_factory=dict)
    share: Tensor | None = None
    aside: Any = None
    partly: bool = False


@dataclass(frozen=True)
class View:
    """An extra input that a method wants the models to see in the same step: the batch's images, changed.

    `apply(images [B, ...], generator)` gives [copies * B, ...], sample b's copies in rows copies * b to
    copies * b + copies - 1. With `beside`, the name of a companion, it is `apply(images, the companion's, generator)`
    and gives the images and the first one's share [B], which arrives as `batch.views[name].share`. Without, it may give
    the images and anything else that the loss has to know, which arrives as `batch.views[name].aside`. The view's
    signals arrive as `student.views[name]` (and the teacher's, if `teacher`, from a live pass).

    Where `sparse` names kinds of stages, that is a record with `visible` [B, h, w] and `kept`, how many cells of each
    image are visible, and models of these kinds are kept to what is visible. "token": those with an `entrance` run on
    the patches of visible cells alone, where these divide the patch grid; their stages hold zeros elsewhere, and what
    has no place on the grid (`qkv`, `patch_logits`) has the visible tokens only. "map": hidden places are set to zero
    before every convolution. Other models are shown the images as they are.
    """

    name: str
    copies: int
    apply: Callable[..., Any]
    teacher: bool = False
    beside: str | None = None
    sparse: tuple[str, ...] = ()


@dataclass(frozen=True)
class Companion:
    """Further training samples, or another view of the batch's own, that a method wants seen in the same step.

    `pick(ids [B], generator)` gives the sample ids [R] to show, R of any size. Their signals arrive as
    `student.views[name]` if `student`, as `teacher.views[name]` if `teacher` (stored ones where the plan stores them),
    and their labels and ids as `batch.views[name]`. Where `pick` gives none, the name is absent in that step.

    Attributes:
        other_view: shown in the next view of the schedule, not in the one of the batch.
    """

    name: str
    pick: Callable[[Tensor, Generator | None], Tensor]
    other_view: bool = True
    student: bool = True
    teacher: bool = False


@dataclass(frozen=True)
class StageSpec:
    """A stage of a model, measured in a dry forward pass.

    `kind` is "map" (channels, size = H, W) or "token" (channels = D, size = patch grid, `prefix` class tokens in
    front); `depth` is the share of the model's layers that lie before its end, in (0, 1]. `attention` is the path of
    the stage's last self-attention over all its tokens, with its `heads` and their width `head_dim`; empty where the
    stage has none whose queries, keys and values come from one linear layer.
    """

    path: str
    kind: str
    channels: int
    size: tuple[int, int]
    depth: float
    prefix: int = 0
    attention: str = ""
    heads: int = 0
    head_dim: int = 0


@dataclass(frozen=True)
class ModelSpec:
    """What a method may know of a model when it builds its projectors. `stages` are the paired ones, in order.

    `classifier` is the path of the layer that gives the logits, None where that is no linear layer. `map` is the stage
    whose mean over positions is the embedding, None where nothing in the model is. `entrance` is the layer behind which
    tokens know their positions and patches may be left out, None where they may not.
    """

    stages: tuple[StageSpec, ...]
    classes: int
    input_shape: tuple[int, int, int]
    embedding: int | None = None
    parameters: int = 0
    classifier: str | None = None
    map: StageSpec | None = None
    entrance: str | None = None


@dataclass(frozen=True)
class DataSpec:
    """What a method may know of the training data. `labels` is [N], by sample id, UNLABELLED where there is none;
    `batch` the largest batch; `partly` says that some labels are missing.
    """

    samples: int
    classes: int
    input_shape: tuple[int, int, int]
    labels: Tensor | None = None
    batch: int = 64
    partly: bool = False
