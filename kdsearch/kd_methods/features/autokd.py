"""Auto-KD: a path through the published tree of distillers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import FeatureMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Signals
from kdsearch.parameters import Choice, Flag, Float, Value

if TYPE_CHECKING:
    from torch import Tensor, nn

SCALES = ("whole", "multi_scale", "local")
RELATIONS = ("global", "batch", "channel")
DISTANCES = ("l2", "kl")


def autokd(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    attention: bool = False,
    scale: str = "whole",
    relation: str = "global",
    distance: str = "l2",
) -> Tensor:
    """The loss of one leaf of the tree, summed over the pairs.

    Args:
        student_features, teacher_features: maps [B, C, H, W], one pair an entry. Sizes and widths have to agree as far
            as the relation compares them: between samples by l2 nothing has to, between channels by l2 the channels.
        attention: first of all, the sum of squares over channels, of length one over the positions.
        scale: "multi_scale" takes the mean of the losses after max-pooling by 1, 2 and 4; "local" of those with every
            patch of side 1, 2 and 4 as a channel of its own, as far as the map is that large.
        relation: "global" compares as it is; "batch" samples, "channel" channels with one another.
        distance: "l2" of Gram matrices with rows of length one (global: of the maps); "kl" at T = 1 of a softmax over
            the samples ("batch") or over the positions ("channel"), summed, over B · C.

    Raises:
        ValueError: an unknown name, "kl" of the global relation, or "local" patches in another relation than "channel".

    Source: Li et al., Automated Knowledge Distillation via Monte Carlo Tree Search, ICCV 2023, section 3; the formulas
    and the tree are those of code that the same authors released.
    """
    import torch

    from kdsearch.kd_methods.decomposed.tree import Path, leaf

    _check(scale, relation, distance)
    path = Path(attention, scale, relation, distance)
    pairs = zip(student_features, teacher_features, strict=True)
    return torch.stack([leaf(s, t, path) for s, t in pairs]).sum()


def _check(scale: str, relation: str, distance: str) -> None:
    for value, known in ((scale, SCALES), (relation, RELATIONS), (distance, DISTANCES)):
        if value not in known:
            raise ValueError(f"autokd knows {', '.join(known)}, not {value!r}")
    if scale == "local" and relation != "channel":
        raise ValueError(f"scale=local makes patches channels; relation must be 'channel', not {relation!r}")
    if relation == "global" and distance != "l2":
        raise ValueError(f"relation=global compares maps by l2 alone; distance cannot be {distance!r}")


@register
class AutoKD(FeatureMethod):
    """A leaf of Auto-KD's tree: 24 of them, as the authors' script lists them for features.

    Two of the 24 say the same of every student and are refused: attention leaves one channel, whose correlation with
    itself is one ("channel" by "l2", at one scale or several). Some leaves are methods of their own: attention with
    "global" is attention transfer, "batch" by "l2" similarity preservation, "channel" by "l2" ICKD, "channel" by "kl"
    channel-wise distillation at T = 1.

    Where the authors' code differs from their formulas the formulas stand: the teacher's channel Gram matrix is its
    own, where theirs multiplies the student by the teacher; scales are 1, 2 and 4, where theirs pools by 2 once more.
    Maps are brought together as in `kdzero_features`; their regressor is there also where nothing needs it. Weight 100
    is their script's. No source gives the weights or temperatures of the paper's own search.
    """

    name = "autokd"
    title = "Automated Knowledge Distillation via Monte Carlo Tree Search"
    paper = "ICCV 2023"
    year = 2023
    additive = True
    spatial = True
    searched = False
    functional = staticmethod(autokd)

    weight: float = Float(100.0, low=0.1, high=1000, log=True)
    attention: bool = Flag(False, searched=(False, True), doc="compare attention maps")
    scale: str = Choice("whole", SCALES, doc="one scale, several, or patches")
    relation: str = Choice("global", RELATIONS, doc="what is related to what")
    distance: str = Choice("l2", DISTANCES, doc="l2 (of Gram matrices) or Kullback-Leibler")

    @classmethod
    def settled(cls, answers: Mapping[str, Value]) -> Mapping[str, Value]:
        if answers.get("scale") == "local":
            return {"relation": "channel"}
        return {"distance": "l2"} if answers.get("relation") == "global" else {}

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        from functools import partial

        from kdsearch.kd_methods.decomposed.joining import JoinedStages
        from kdsearch.kd_methods.decomposed.tree import Path, leaf, reached

        _check(self.scale, self.relation, self.distance)
        path = Path(self.attention, self.scale, self.relation, self.distance)
        return JoinedStages(student.stages, teacher.stages, partial(reached, path), partial(leaf, path=path))

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        pairs = self.parts(student.features, teacher.features)
        return autokd(
            [s for s, _ in pairs],
            [t for _, t in pairs],
            attention=self.attention,
            scale=self.scale,
            relation=self.relation,
            distance=self.distance,
        )
