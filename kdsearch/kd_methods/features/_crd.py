"""The heads, memories and sampler of contrastive representation distillation."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from kdsearch.kd_methods.adapters import linear_projector, to_dtype_of
from kdsearch.kd_methods.features.crd import _log_z, _scores, crd
from kdsearch.kd_methods.numerics import unit, widen


class Memory(nn.Module):
    """Two memories of every training sample, the heads that fill them, and the draw of negatives.

    Buffers: `student_bank` and `teacher_bank` [N, D], and `log_z` [2], the constants fixed by the first batch (NaN
    until then). All of them are part of the state that a resume needs. Nothing is remembered in evaluation mode or
    without gradients.

    Raises:
        ValueError: the data has no sample to contrast with.
    """

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        samples: int,
        labels: Tensor | None,
        *,
        width: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        other_classes: bool = True,
        relax: bool = False,
    ) -> None:
        super().__init__()
        self.temperature, self.momentum, self.relax = temperature, momentum, relax
        self.student_head = linear_projector(student_width, width)
        self.teacher_head = linear_projector(teacher_width, width)
        bound = (3.0 / width) ** 0.5  # slots of length one on average
        self.student_bank: Tensor
        self.teacher_bank: Tensor
        self.log_z: Tensor
        self.register_buffer("student_bank", torch.empty(samples, width).uniform_(-bound, bound))
        self.register_buffer("teacher_bank", torch.empty(samples, width).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.full((2,), torch.nan))

        # A sample is contrasted with every other group: its class, or itself alone.
        self.groups: Tensor
        own = torch.arange(samples)
        classes = own if labels is None else labels.detach().cpu().long()
        if len(classes) != samples:
            raise ValueError(f"crd: {len(classes)} labels for {samples} samples")
        groups = classes if other_classes else own
        self.largest = int(groups.unique(return_counts=True)[1].max())
        self.negatives = min(negatives, samples - self.largest)
        if self.negatives < 1:
            raise ValueError("crd has no negatives: all samples are of one class")
        self.register_buffer("groups", groups, persistent=False)
        if relax:
            self.members: Tensor
            self.first: Tensor
            self.counts: Tensor
            counts = classes.bincount()
            self.register_buffer("members", classes.argsort(stable=True), persistent=False)
            self.register_buffer("first", (counts.cumsum(0) - counts)[classes], persistent=False)
            self.register_buffer("counts", counts[classes], persistent=False)

        self._constant: bool | None = None
        self.register_load_state_dict_post_hook(_look_again)

    def forward(self, student: Tensor, teacher: Tensor, ids: Tensor, generator: Generator | None = None) -> Tensor:
        """The loss [] of a batch, after which its slots of the memories have moved."""
        s = unit(widen(self.student_head(to_dtype_of(self.student_head.weight, student))))
        t = unit(widen(self.teacher_head(to_dtype_of(self.teacher_head.weight, teacher))))
        index = torch.cat((self.draw_positives(ids, generator)[:, None], self.draw_negatives(ids, generator)), 1)
        with torch.autocast(s.device.type, enabled=False):  # exp(score / 0.07) leaves half precision no digit
            if self.training and torch.is_grad_enabled():
                return self._step(s, t, ids, index)
            return self._value(s, t, index)

    def _step(self, student: Tensor, teacher: Tensor, ids: Tensor, index: Tensor) -> Tensor:
        """The loss, with the constants set and the memories moved.

        The memories move here, while the graph of the scores would need the old ones until the backward pass. So the
        gradient at the two embeddings is taken at once, and a term of value zero carries it on.
        """
        if not self._has_constants():
            self._set_constants(student, teacher, index)
        s, t = student.detach().requires_grad_(), teacher.detach().requires_grad_()
        value = self._value(s, t, index)
        at_s, at_t = torch.autograd.grad(value, (s, t))
        s, t = s.detach(), t.detach()
        self._remember(ids, s, t)
        return value.detach() + ((student - s) * at_s).sum() + ((teacher - t) * at_t).sum()

    def draw_positives(self, ids: Tensor, generator: Generator | None = None) -> Tensor:
        """[B]: the samples themselves, or any of their class."""
        if not self.relax:
            return ids
        share = torch.rand(ids.shape, generator=generator, device=ids.device)
        return self.members[self.first[ids] + (share * self.counts[ids]).long()]

    def draw_negatives(self, ids: Tensor, generator: Generator | None = None) -> Tensor:
        """[B, K]: samples of other groups, distinct within a row, every such sample equally likely.

        All samples are laid in a random circle. A row takes its first K members of other groups from a random place
        on; a window of K plus the largest group's size is sure to hold as many.
        """
        samples, count = len(self.groups), self.negatives
        window = min(samples, count + self.largest)
        circle = torch.randperm(samples, generator=generator, device=ids.device)
        circle = torch.cat((circle, circle[: window - 1]))
        start = torch.randint(samples, ids.shape, generator=generator, device=ids.device)
        drawn = circle.unfold(0, window, 1)[start]
        other = self.groups[circle].unfold(0, window, 1)[start] != self.groups[ids][:, None]
        place = other.cumsum(1, dtype=torch.int32).sub_(1)
        place = torch.where(other & (place < count), place, count)  # the rest goes to a column that is cut off
        return drawn.new_empty(len(ids), count + 1).scatter_(1, place.long(), drawn)[:, :count]

    def _value(self, student: Tensor, teacher: Tensor, index: Tensor) -> Tensor:
        return crd(
            student,
            teacher,
            student_bank=self.student_bank,
            teacher_bank=self.teacher_bank,
            index=index,
            temperature=self.temperature,
            log_z=(self.log_z[0], self.log_z[1]) if self._has_constants() else None,
        )

    def _has_constants(self) -> bool:
        """Read off the buffer once, and again after a state was loaded; a training step asks the device nothing."""
        if self._constant is None:
            self._constant = not bool(self.log_z.isnan().any())
        return self._constant

    @torch.no_grad()
    def _set_constants(self, student: Tensor, teacher: Tensor, index: Tensor) -> None:
        samples = len(self.student_bank)
        self.log_z[0] = _log_z(_scores(student, self.teacher_bank, index, self.temperature), samples)
        self.log_z[1] = _log_z(_scores(teacher, self.student_bank, index, self.temperature), samples)
        self._constant = True

    @torch.no_grad()
    def _remember(self, ids: Tensor, student: Tensor, teacher: Tensor) -> None:
        for bank, new in ((self.student_bank, student), (self.teacher_bank, teacher)):
            moved = self.momentum * bank[ids] + (1.0 - self.momentum) * new.to(bank.dtype)
            bank.index_copy_(0, ids, unit(moved))


def _look_again(memory: Memory, incompatible: object) -> None:
    """After a state was loaded: its constants may be set or not. (A function, so that the module can be pickled.)"""
    memory._constant = None
