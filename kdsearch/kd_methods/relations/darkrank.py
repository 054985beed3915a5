"""DarkRank: the teacher's ranking of the samples that are nearest to each sample."""

from __future__ import annotations

import math
from itertools import permutations
from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import RelationMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.parameters import Choice, Flag, Float, Int

if TYPE_CHECKING:
    from torch import Tensor, nn

LONGEST = 7
"""Longest list whose permutations are all compared: there are 5040 of them."""


def darkrank(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    *,
    transfer: str = "soft",
    list_length: int = 4,
    alpha: float = 12.25,
    beta: float = 4.0,
    queries: str = "all",
    normalise: bool = True,
    eps: float = 0.0,
) -> Tensor:
    """How far the student ranks the teacher's nearest samples otherwise than the teacher, a mean over the queries.

    A sample's score for a query is -alpha · distance^beta; a permutation's probability is Plackett and Luce's, the
    product of each item's share of the exponentiated scores of those not yet placed.

    Args:
        student_embedding, teacher_embedding: [B, D]; D may differ, maps are flattened.
        transfer: "hard", minus the log-probability of the teacher's own ranking, or "soft", the divergence
            KL(teacher || student) of the probabilities of all permutations.
        list_length: of the teacher's nearest samples to a query, that many are ranked; at most B - 1.
        alpha, beta: of the scores.
        queries: "all" samples of the batch, or its "first_half", as in the authors' code. The candidates are always all
            others.
        normalise: rows are brought to length one first, as the authors' networks do.
        eps: added to the probability under "hard"; the authors' 1e-12 bounds the loss at 27.6 and gives unlikely
            rankings no gradient.

    Equal rows have no direction to move in: their distance gets no gradient. A batch of one gives 0.

    Source: Chen, Wang, Zhang, DarkRank, AAAI 2018, equations 2 to 6.

    Raises:
        ValueError: an unknown `transfer` or `queries`, or more than 7 items under "soft".
    """
    import torch

    if transfer not in ("soft", "hard"):
        raise ValueError(f"darkrank: transfer must be 'soft' or 'hard', not {transfer!r}")
    if queries not in ("all", "first_half"):
        raise ValueError(f"darkrank: queries must be 'all' or 'first_half', not {queries!r}")
    batch = len(student_embedding)
    length = min(list_length, batch - 1)
    if transfer == "soft" and length > LONGEST:
        raise ValueError(f"darkrank: the soft form compares all permutations of at most {LONGEST} items, not {length}")
    asked = batch if queries == "all" else max(batch // 2, 1)
    s, t = _points(student_embedding, normalise), _points(teacher_embedding, normalise)
    if length < 1:
        return s.sum() * 0
    # Not by a product of matrices: the nearest samples are the ones whose digits would cancel.
    distances = torch.cdist(t[:asked], t, compute_mode="donot_use_mm_for_euclid_dist")
    # A query ranks everybody but itself, whatever rounding says of its own distance.
    own = torch.eye(asked, batch, dtype=torch.bool, device=s.device)
    ranking = distances.detach().masked_fill(own, torch.inf).argsort(dim=1, stable=True)[:, :length]
    # Of the student's distances only the ranked ones are needed.
    ranked = torch.linalg.vector_norm(s[:asked, None] - s[ranking], dim=2)
    s, t = _scores(ranked, alpha, beta), _scores(distances.gather(1, ranking), alpha, beta)
    if transfer == "hard":
        likely = _log_probability(s)
        if eps:
            likely = torch.logaddexp(likely, likely.new_tensor(math.log(eps)))
        return -likely.mean()
    orders = torch.tensor(list(permutations(range(length))), device=s.device)
    p, q = (_log_probability(x[:, orders]) for x in (t, s))
    return (p.exp() * (p - q)).sum(1).mean()


def _points(embedding: Tensor, normalise: bool) -> Tensor:
    """[B, D]."""
    from kdsearch.kd_methods.numerics import rescale, unit, widen

    x = widen(embedding).flatten(1)
    return unit(rescale(x)) if normalise else x


def _scores(distances: Tensor, alpha: float, beta: float) -> Tensor:
    import torch

    apart = distances > torch.finfo(distances.dtype).tiny
    return -alpha * torch.where(apart, torch.where(apart, distances, 1.0) ** beta, 0.0)


def _log_probability(scores: Tensor) -> Tensor:
    """Plackett and Luce's log-probability [...] of placing items in the order in which their scores stand [..., L]."""
    return (scores - scores.flip(-1).logcumsumexp(-1).flip(-1)).sum(-1)


@register
class DarkRank(RelationMethod):
    """Rankings of the batch by distance of embeddings; the soft form with the authors' recipe.

    That recipe for re-identification is weight 16, lists of 4, and scores of (3.5 d²)², which are alpha 12.25 and beta
    4 of the paper's; it stands beside losses of metric learning, which are left out here. Its batches hold two images
    of one person as neighbours in their first half, which ask, while all others are candidates; ours are drawn at
    random, so that every sample may ask. The authors' backward pass leaves the query's own part out of the gradient;
    here it is whole. The authors' hard form ranks the whole batch: a `list_length` of at least the batch size.
    """

    name = "darkrank"
    title = "DarkRank: Accelerating Deep Metric Learning via Cross Sample Similarities Transfer"
    paper = "arXiv 1707.01220"
    year = 2018
    needs = Needs.of(Need.EMBEDDING)
    functional = staticmethod(darkrank)

    weight: float = Float(16.0, low=0.5, high=64, log=True)
    transfer: str = Choice("soft", ("soft", "hard"), doc="all permutations, or the teacher's ranking alone")
    list_length: int = Int(4, low=3, high=5, domain=(2, math.inf), doc="nearest samples that are ranked")
    alpha: float = Float(12.25, low=1, high=50, log=True, doc="factor of the scores")
    beta: float = Float(4.0, low=1, high=6, domain=(0.5, 20), doc="power of the distance in the scores")
    queries: str = Choice("all", ("all", "first_half"), searched=("all",), doc="which samples ask for a ranking")
    normalise: bool = Flag(True, doc="embeddings are brought to length one")

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module | None:
        if student.embedding is None or teacher.embedding is None:
            raise ValueError("darkrank compares embeddings; student and teacher must both have one")
        if self.transfer == "soft" and min(self.list_length, data.batch - 1) > LONGEST:
            raise ValueError(
                f"darkrank compares all permutations of at most {LONGEST} items, not {self.list_length}; "
                "transfer='hard' ranks longer lists"
            )
        return None

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        assert student.embedding is not None
        assert teacher.embedding is not None
        return darkrank(
            student.embedding,
            teacher.embedding,
            transfer=self.transfer,
            list_length=self.list_length,
            alpha=self.alpha,
            beta=self.beta,
            queries=self.queries,
            normalise=self.normalise,
        )
