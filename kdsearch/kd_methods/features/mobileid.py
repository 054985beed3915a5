"""MobileID: only those neurons of the teacher are imitated that tell classes apart and are not redundant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import FeatureMethod, Frozen
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.kd_methods.softening import reduce
from kdsearch.parameters import Choice, Float

if TYPE_CHECKING:
    from torch import Tensor, nn


def mobileid(
    student_neurons: Tensor, teacher_neurons: Tensor, *, average: str = "samples", reduction: str = "mean"
) -> Tensor:
    """Half the squared distance of the student's regressed neurons from the teacher's selected ones.

    Args:
        student_neurons, teacher_neurons: [B, M].
        average: "samples", the paper's sum over neurons averaged over the batch, or "elements", over both.
        reduction: "mean", or "none" for [B].

    Source: Luo, Zhu, Liu, Wang, Tang, Face Model Compression by Distilling Knowledge from Neurons, AAAI 2016.

    Raises:
        ValueError: an unknown average or reduction.
    """
    from kdsearch.kd_methods.numerics import widen

    if average not in ("samples", "elements"):
        raise ValueError(f"mobileid: average must be 'samples' or 'elements', not {average!r}")
    squared = 0.5 * (widen(student_neurons) - widen(teacher_neurons)).square()
    return reduce(squared.sum(1) if average == "samples" else squared.mean(1), reduction)


@register
class MobileID(FeatureMethod):
    """Neuron selection on the teacher's embedding, then regression of what was selected.

    How well a neuron alone tells class j from the rest, at its best threshold, stands for the paper's forty face
    attributes; a neuron is cheap that is good at some classes and not at all of them (the paper's ratio of attributes
    that do and do not belong to an identity needs such groups, which a data set of classes has not). Similar neurons
    repel each other; `redundancy` is λ times the number of neurons. Mean-field inference on the published energy keeps
    every neuron with a probability under ½: it gives a ranking, and the first `kept` of it are imitated. At most 2000
    samples, spread over the training data, are looked at.

    The student's embedding reaches the neurons through a linear layer, which the export drops. No weight of
    cross-entropy was published: there the embedding was the result.
    """

    name = "mobileid"
    title = "Face Model Compression by Distilling Knowledge from Neurons"
    paper = "AAAI 2016"
    year = 2016
    reads_labels = True
    needs = Needs.of(Need.EMBEDDING)
    prepares = ("redundancy",)
    functional = staticmethod(mobileid)

    weight: float = Float(1.0, low=0.01, high=10, log=True)
    kept: float = Float(0.5, low=0.25, high=0.75, domain=(0.01, 1.0), doc="share of the teacher's neurons to imitate")
    redundancy: float = Choice(
        1.0, [0.0, 1.0, 10.0, 100.0], searched=[1.0, 10.0, 100.0], doc="how strongly alike neurons exclude each other"
    )
    average: str = Choice("samples", ("samples", "elements"), searched=("samples",), doc="of the squared differences")

    def prepare(self, teacher: Frozen) -> dict[str, Tensor] | None:
        """All neurons of the teacher's embedding [D], best first.

        Raises:
            ValueError: the data has no labels.
        """
        from kdsearch.kd_methods.features._mobileid import rank_neurons

        if teacher.spec.embedding is None:
            return None  # `bind` says why
        return {"ranking": rank_neurons(teacher, self.redundancy)}

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        if student.embedding is None or teacher.embedding is None:
            raise ValueError("mobileid reads embeddings; student and teacher must both have one")
        from kdsearch.kd_methods.features._mobileid import Selection

        count = max(1, round(self.kept * teacher.embedding))
        return Selection(student.embedding, count, None if self.prepared is None else self.prepared["ranking"])

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        if not self.parts.ready:
            raise ValueError("mobileid has no ranking of the teacher's neurons: set `prepared` before `bind`")
        return mobileid(*self.parts(student.embedding, teacher.embedding), average=self.average)
