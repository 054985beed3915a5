"""Encoding: what the task needs of a large embedding, in a small one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.kd_methods.catalogue import register
from kdsearch.kd_methods.method import FeatureMethod
from kdsearch.kd_methods.signals import Batch, DataSpec, ModelSpec, Need, Needs, Signals
from kdsearch.parameters import Choice, Float

if TYPE_CHECKING:
    from torch import Tensor, nn


def word_embedding(
    student_embedding: Tensor,
    encoded_embedding: Tensor,
    encoded_logits: Tensor,
    target: Tensor,
    *,
    encoding_weight: float = 1.0,
) -> Tensor:
    """Mean squared difference of the student's embedding and the encoded one, plus the latter's cross-entropy.

    The difference moves the student alone; the cross-entropy moves the encoding and the classifier on it.

    Args:
        student_embedding, encoded_embedding: [B, D].
        encoded_logits: [B, classes], of the encoded embedding.
        target: labels [B] or label shares [B, classes].
        encoding_weight: of the cross-entropy.

    Source: Mou, Jia, Xu, Li, Zhang, Jin, Distilling Word Embeddings: An Encoding Approach, CIKM 2016: the encoding
    layer and its training by labels. The difference takes the place of the paper's table of encoded words.
    """
    import torch.nn.functional as F

    from kdsearch.kd_methods.numerics import widen

    imitation = F.mse_loss(widen(student_embedding), widen(encoded_embedding).detach())
    return imitation + encoding_weight * F.cross_entropy(widen(encoded_logits), target)


@register
class WordEmbedding(FeatureMethod):
    """The teacher's embedding, encoded to the student's width by the labels alone, is what the student imitates.

    In the paper a layer e' = f(W e + b) encodes large, frozen word embeddings into small ones; layer and task network
    learn from labels, without any teacher network, and afterwards e' is stored for every word. Images are no words and
    have no such table. Here the teacher's penultimate embedding is the large one, the student's classifier is the task
    network on e', and the student's own network learns to give e', so that the encoding can be thrown away. The large
    embedding stays frozen. f is not known; a rectifier is our default because every student can reach what it gives,
    where the embedding of a rectified network has no negative values for a tanh.
    """

    name = "word_embedding"
    title = "Distilling Word Embeddings: An Encoding Approach"
    paper = "arXiv 1506.04488"
    year = 2016
    reads_labels = True
    needs = Needs.of(Need.EMBEDDING, student=(Need.CLASSIFIER,))
    functional = staticmethod(word_embedding)

    weight: float = Float(1.0, low=0.05, high=20, log=True)
    activation: str = Choice("relu", ("relu", "tanh", "identity"), searched=("relu", "tanh"), doc="f of the encoding")
    encoding_weight: float = Float(1.0, low=0.1, high=10, log=True, doc="of the encoding's cross-entropy")

    def bind(self, student: ModelSpec, teacher: ModelSpec, data: DataSpec) -> nn.Module:
        """The encoding layer.

        Raises:
            ValueError: a model has no embedding, or the student no linear classifier.
        """
        if student.embedding is None or teacher.embedding is None or student.classifier is None:
            raise ValueError(
                "word_embedding needs embeddings of student and teacher, and a linear classifier of the student"
            )
        from torch import nn

        from kdsearch.kd_methods.adapters import linear_projector

        activations = {"relu": nn.ReLU, "tanh": nn.Tanh, "identity": nn.Identity}
        return nn.Sequential(linear_projector(teacher.embedding, student.embedding), activations[self.activation]())

    def loss(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        import torch.nn.functional as F

        from kdsearch.kd_methods.adapters import to_dtype_of

        if student.embedding is None or teacher.embedding is None or student.classifier is None:
            raise ValueError("word_embedding reads both embeddings and the student's classifier, and got not all")
        encoded = self.parts(to_dtype_of(self.parts[0].weight, teacher.embedding))
        weight, bias = student.classifier
        logits = F.linear(encoded.to(weight.dtype), weight, bias)
        target = batch.target if batch.soft_target is None else batch.soft_target
        return word_embedding(student.embedding, encoded, logits, target, encoding_weight=self.encoding_weight)
