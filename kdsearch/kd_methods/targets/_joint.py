"""A student that answers with its joint head, which tells classes and transformations apart."""

from __future__ import annotations

from torch import Tensor, nn

from kdsearch.kd_methods.signals import ModelSpec, Need
from kdsearch.kd_methods.tap import Tap
from kdsearch.kd_methods.targets._transformations import copies, transform


def own_slices(joint_logits: Tensor, count: int) -> Tensor:
    """[M · B, C · M] to [B, C, M]: of copy k its C columns for transformation k, which are c · M + k; `count` is M."""
    by_class = joint_logits.view(-1, count, joint_logits.shape[1] // count, count).transpose(1, 2)
    return by_class.flatten(2)[:, :, :: count + 1]  # the diagonal, in steps that exporters know


def aggregate(joint_logits: Tensor, count: int) -> Tensor:
    """[M · B, C · M] to [B, C]: the mean of the copies' own logits, softmax of which is the aggregated prediction.

    Source: Lee, Hwang, Shin, ICML 2020, section 2.
    """
    return own_slices(joint_logits, count).mean(2)


class JointClassifier(nn.Module):
    """Images [B, ...] to logits [B, C] of a joint head on the student's embedding. Shares the student's parameters.

    Args:
        student: the network, whose own logits are left aside.
        spec: the student's, with the path of its classifier; what enters that layer is the embedding.
        head: embedding [B, D] to joint logits [B, C · M], class-major.
        transformations: the set the head was trained on.
        aggregated: mean over all M transformed copies, in M forward passes' work; otherwise the untransformed copy's
            slice in one.

    Raises:
        ValueError: the network has no layer of that path, because another method has replaced it, say.
    """

    def __init__(
        self, student: nn.Module, spec: ModelSpec, head: nn.Module, transformations: str, *, aggregated: bool
    ) -> None:
        super().__init__()
        self.student, self.head = student, head
        self.transformations, self.aggregated = transformations, aggregated
        self.spec, self.copies = spec, copies(transformations)
        try:
            student.get_submodule(spec.classifier or "")
        except AttributeError:
            raise ValueError(f"the student has no layer {spec.classifier!r} for a joint head to stand beside") from None

    def embedding(self, images: Tensor) -> Tensor:
        """What enters the student's classifier, [B, D]."""
        # For this pass only: the student may be trained, tapped and copied between two evaluations.
        with Tap(self.student, self.spec, frozenset({Need.EMBEDDING})) as tap:
            embedding = tap(images).embedding
        assert embedding is not None
        return embedding

    def forward(self, images: Tensor) -> Tensor:
        if self.aggregated:
            return aggregate(self.head(self.embedding(transform(images, name=self.transformations))), self.copies)
        return self.head(self.embedding(images))[:, :: self.copies]
